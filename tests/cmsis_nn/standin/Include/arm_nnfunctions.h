/* Stand-in for CMSIS-NN in tests: the public names, structures and arithmetic, written from the
 * documentation of the API alone. Plain loops; no buffer is needed, but the one that is handed over
 * must be aligned and is overwritten, so that a buffer too small is found.
 *
 * $Revision:    V.0.1.0
 */
#ifndef ARM_NNFUNCTIONS_H
#define ARM_NNFUNCTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    ARM_CMSIS_NN_SUCCESS = 0,
    ARM_CMSIS_NN_ARG_ERROR = -1,
    ARM_CMSIS_NN_NO_IMPL_ERROR = -2,
    ARM_CMSIS_NN_FAILURE = -3
} arm_cmsis_nn_status;

typedef struct { int32_t w, h; } cmsis_nn_tile;
typedef struct { void *buf; int32_t size; } cmsis_nn_context;
typedef struct { int32_t n, h, w, c; } cmsis_nn_dims;
typedef struct { int32_t min, max; } cmsis_nn_activation;
typedef struct { int32_t *multiplier, *shift; } cmsis_nn_per_channel_quant_params;
typedef struct { int32_t *multiplier, *shift; int32_t is_per_channel; } cmsis_nn_quant_params;
typedef struct {
    int32_t input_offset, output_offset;
    cmsis_nn_tile stride, padding, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_conv_params;
typedef struct {
    int32_t input_offset, output_offset, ch_mult;
    cmsis_nn_tile stride, padding, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_dw_conv_params;
typedef struct {
    cmsis_nn_tile stride, padding;
    cmsis_nn_activation activation;
} cmsis_nn_pool_params;
typedef struct {
    int32_t input_offset, filter_offset, output_offset;
    cmsis_nn_activation activation;
} cmsis_nn_fc_params;
typedef struct { const int32_t num_dims; const uint32_t *permutations; } cmsis_nn_transpose_params;

arm_cmsis_nn_status arm_convolve_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_conv_params *params,
    const cmsis_nn_per_channel_quant_params *quant, const cmsis_nn_dims *in, const int8_t *x,
    const cmsis_nn_dims *filter, const int8_t *w, const cmsis_nn_dims *bias_dims,
    const int32_t *bias, const cmsis_nn_dims *out, int8_t *y);
arm_cmsis_nn_status arm_depthwise_conv_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *params,
    const cmsis_nn_per_channel_quant_params *quant, const cmsis_nn_dims *in, const int8_t *x,
    const cmsis_nn_dims *filter, const int8_t *w, const cmsis_nn_dims *bias_dims,
    const int32_t *bias, const cmsis_nn_dims *out, int8_t *y);
arm_cmsis_nn_status arm_fully_connected_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *params,
    const cmsis_nn_quant_params *quant, const cmsis_nn_dims *in, const int8_t *x,
    const cmsis_nn_dims *filter, const int8_t *w, const cmsis_nn_dims *bias_dims,
    const int32_t *bias, const cmsis_nn_dims *out, int8_t *y);
arm_cmsis_nn_status arm_avgpool_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *in,
    const int8_t *x, const cmsis_nn_dims *filter, const cmsis_nn_dims *out, int8_t *y);
arm_cmsis_nn_status arm_max_pool_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *in,
    const int8_t *x, const cmsis_nn_dims *filter, const cmsis_nn_dims *out, int8_t *y);
arm_cmsis_nn_status arm_elementwise_add_s8(
    const int8_t *a, const int8_t *b, int32_t a_offset, int32_t a_mult, int32_t a_shift,
    int32_t b_offset, int32_t b_mult, int32_t b_shift, int32_t left_shift, int8_t *y,
    int32_t y_offset, int32_t y_mult, int32_t y_shift, int32_t low, int32_t high, int32_t count);
arm_cmsis_nn_status arm_elementwise_mul_s8(
    const int8_t *a, const int8_t *b, int32_t a_offset, int32_t b_offset, int8_t *y,
    int32_t y_offset, int32_t y_mult, int32_t y_shift, int32_t low, int32_t high, int32_t count);
void arm_softmax_s8(const int8_t *x, int32_t rows, int32_t row_size, int32_t mult, int32_t shift,
                    int32_t diff_min, int8_t *y);
arm_cmsis_nn_status arm_pad_s8(const int8_t *x, int8_t *y, int8_t value, const cmsis_nn_dims *in,
                               const cmsis_nn_dims *before, const cmsis_nn_dims *after);
arm_cmsis_nn_status arm_transpose_s8(const int8_t *x, int8_t *y, const cmsis_nn_dims *in,
                                     const cmsis_nn_dims *out,
                                     const cmsis_nn_transpose_params *params);

#endif
