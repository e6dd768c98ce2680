#include "standin.h"

arm_cmsis_nn_status arm_transpose_s8(const int8_t *x, int8_t *y, const cmsis_nn_dims *in,
                                     const cmsis_nn_dims *out,
                                     const cmsis_nn_transpose_params *params) {
    int32_t rank = params->num_dims;
    int32_t size[4] = {in->n, in->h, in->w, in->c};
    int32_t moved[4] = {out->n, out->h, out->w, out->c};
    int32_t step[4] = {0, 0, 0, 0};
    int32_t total = 1;
    for (int32_t axis = rank - 1; axis >= 0; axis--) {
        step[axis] = total;
        total *= size[axis];
    }
    for (int32_t k = 0; k < total; k++) {
        int32_t rest = k, from = 0;
        for (int32_t axis = rank - 1; axis >= 0; axis--) {
            from += rest % moved[axis] * step[params->permutations[axis]];
            rest /= moved[axis];
        }
        y[k] = x[from];
    }
    return ARM_CMSIS_NN_SUCCESS;
}
