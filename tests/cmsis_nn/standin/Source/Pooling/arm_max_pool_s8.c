#include "standin.h"

arm_cmsis_nn_status arm_max_pool_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *in,
    const int8_t *x, const cmsis_nn_dims *filter, const cmsis_nn_dims *out, int8_t *y) {
    for (int32_t oy = 0; oy < out->h; oy++) {
        for (int32_t ox = 0; ox < out->w; ox++) {
            for (int32_t c = 0; c < in->c; c++) {
                int32_t best = -129;
                for (int32_t ky = 0; ky < filter->h; ky++) {
                    for (int32_t kx = 0; kx < filter->w; kx++) {
                        int32_t iy = oy * params->stride.h - params->padding.h + ky;
                        int32_t ix = ox * params->stride.w - params->padding.w + kx;
                        if (iy >= 0 && ix >= 0 && iy < in->h && ix < in->w) {
                            int32_t value = x[(iy * in->w + ix) * in->c + c];
                            best = value > best ? value : best;
                        }
                    }
                }
                *y++ = standin_clamp(best, params->activation.min, params->activation.max);
            }
        }
    }
    return standin_spoil(ctx);
}
