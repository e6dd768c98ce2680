#include "standin.h"

/* The context holds kernel sums in builds with Helium and is left alone. */
arm_cmsis_nn_status arm_fully_connected_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *params,
    const cmsis_nn_quant_params *quant, const cmsis_nn_dims *in, const int8_t *x,
    const cmsis_nn_dims *filter, const int8_t *w, const cmsis_nn_dims *bias_dims,
    const int32_t *bias, const cmsis_nn_dims *out, int8_t *y) {
    (void)ctx;
    (void)bias_dims;
    for (int32_t row = 0; row < in->n; row++) {
        for (int32_t o = 0; o < out->c; o++) {
            int32_t channel = quant->is_per_channel ? o : 0;
            int32_t acc = bias[o];
            for (int32_t i = 0; i < filter->n; i++) {
                acc += (x[row * filter->n + i] + params->input_offset) *
                       (w[o * filter->n + i] + params->filter_offset);
            }
            acc = standin_rescale(acc, quant->multiplier[channel], quant->shift[channel]);
            *y++ = standin_clamp(acc + params->output_offset, params->activation.min,
                                 params->activation.max);
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
