#include "standin.h"

arm_cmsis_nn_status arm_elementwise_mul_s8(
    const int8_t *a, const int8_t *b, int32_t a_offset, int32_t b_offset, int8_t *y,
    int32_t y_offset, int32_t y_mult, int32_t y_shift, int32_t low, int32_t high, int32_t count) {
    for (int32_t k = 0; k < count; k++) {
        int32_t product = (a[k] + a_offset) * (b[k] + b_offset);
        y[k] = standin_clamp(standin_rescale(product, y_mult, y_shift) + y_offset, low, high);
    }
    return ARM_CMSIS_NN_SUCCESS;
}
