#include "standin.h"

arm_cmsis_nn_status arm_avgpool_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *in,
    const int8_t *x, const cmsis_nn_dims *filter, const cmsis_nn_dims *out, int8_t *y) {
    for (int32_t oy = 0; oy < out->h; oy++) {
        for (int32_t ox = 0; ox < out->w; ox++) {
            for (int32_t c = 0; c < in->c; c++) {
                int32_t sum = 0, count = 0, mean;
                for (int32_t ky = 0; ky < filter->h; ky++) {
                    for (int32_t kx = 0; kx < filter->w; kx++) {
                        int32_t iy = oy * params->stride.h - params->padding.h + ky;
                        int32_t ix = ox * params->stride.w - params->padding.w + kx;
                        if (iy >= 0 && ix >= 0 && iy < in->h && ix < in->w) {
                            sum += x[(iy * in->w + ix) * in->c + c];
                            count++;
                        }
                    }
                }
                if (count == 0) {
                    return ARM_CMSIS_NN_ARG_ERROR;
                }
                mean = sum >= 0 ? (2 * sum + count) / (2 * count) : -((-2 * sum + count) / (2 * count));
                *y++ = standin_clamp(mean, params->activation.min, params->activation.max);
            }
        }
    }
    return standin_spoil(ctx);
}
