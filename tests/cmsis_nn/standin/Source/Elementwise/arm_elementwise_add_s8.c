#include "standin.h"

arm_cmsis_nn_status arm_elementwise_add_s8(
    const int8_t *a, const int8_t *b, int32_t a_offset, int32_t a_mult, int32_t a_shift,
    int32_t b_offset, int32_t b_mult, int32_t b_shift, int32_t left_shift, int8_t *y,
    int32_t y_offset, int32_t y_mult, int32_t y_shift, int32_t low, int32_t high, int32_t count) {
    int32_t unit = (int32_t)1 << left_shift;
    if (a_shift > 0 || b_shift > 0 || y_shift > 0) {
        return ARM_CMSIS_NN_ARG_ERROR;
    }
    for (int32_t k = 0; k < count; k++) {
        int32_t sum = standin_rescale((a[k] + a_offset) * unit, a_mult, a_shift) +
                      standin_rescale((b[k] + b_offset) * unit, b_mult, b_shift);
        y[k] = standin_clamp(standin_rescale(sum, y_mult, y_shift) + y_offset, low, high);
    }
    return ARM_CMSIS_NN_SUCCESS;
}
