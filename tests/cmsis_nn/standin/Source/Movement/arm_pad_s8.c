#include "standin.h"

arm_cmsis_nn_status arm_pad_s8(const int8_t *x, int8_t *y, int8_t value, const cmsis_nn_dims *in,
                               const cmsis_nn_dims *before, const cmsis_nn_dims *after) {
    for (int32_t n = -before->n; n < in->n + after->n; n++) {
        for (int32_t h = -before->h; h < in->h + after->h; h++) {
            for (int32_t w = -before->w; w < in->w + after->w; w++) {
                for (int32_t c = -before->c; c < in->c + after->c; c++) {
                    int inside = n >= 0 && h >= 0 && w >= 0 && c >= 0 && n < in->n && h < in->h &&
                                 w < in->w && c < in->c;
                    *y++ = inside ? x[((n * in->h + h) * in->w + w) * in->c + c] : value;
                }
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
