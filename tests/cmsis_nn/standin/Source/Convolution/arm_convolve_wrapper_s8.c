#include "standin.h"

arm_cmsis_nn_status arm_convolve_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_conv_params *params,
    const cmsis_nn_per_channel_quant_params *quant, const cmsis_nn_dims *in, const int8_t *x,
    const cmsis_nn_dims *filter, const int8_t *w, const cmsis_nn_dims *bias_dims,
    const int32_t *bias, const cmsis_nn_dims *out, int8_t *y) {
    int32_t groups = in->c / filter->c;
    int32_t per_group = out->c / groups;
    (void)bias_dims;
    for (int32_t oy = 0; oy < out->h; oy++) {
        for (int32_t ox = 0; ox < out->w; ox++) {
            for (int32_t oc = 0; oc < out->c; oc++) {
                int32_t first = oc / per_group * filter->c;
                int32_t acc = bias[oc];
                for (int32_t ky = 0; ky < filter->h; ky++) {
                    for (int32_t kx = 0; kx < filter->w; kx++) {
                        int32_t iy = oy * params->stride.h - params->padding.h + ky * params->dilation.h;
                        int32_t ix = ox * params->stride.w - params->padding.w + kx * params->dilation.w;
                        if (iy < 0 || ix < 0 || iy >= in->h || ix >= in->w) {
                            continue;
                        }
                        for (int32_t ic = 0; ic < filter->c; ic++) {
                            int32_t weight = w[((oc * filter->h + ky) * filter->w + kx) * filter->c + ic];
                            int32_t value = x[(iy * in->w + ix) * in->c + first + ic];
                            acc += weight * (value + params->input_offset);
                        }
                    }
                }
                acc = standin_rescale(acc, quant->multiplier[oc], quant->shift[oc]);
                *y++ = standin_clamp(acc + params->output_offset, params->activation.min,
                                     params->activation.max);
            }
        }
    }
    return standin_spoil(ctx);
}
