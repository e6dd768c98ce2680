/* Arithmetic that the stand-in's functions share. */
#ifndef STANDIN_H
#define STANDIN_H

#include "arm_nnfunctions.h"

#include <string.h>

/* value * m * 2^(shift - 31): rounded half up once, or to 2^-31 half up and then to the shift half
 * away from zero. */
static inline int32_t standin_rescale(int32_t value, int32_t m, int32_t shift) {
#ifdef CMSIS_NN_USE_SINGLE_ROUNDING
    int64_t scaled = (int64_t)value * m;
    int64_t half = (int64_t)1 << (30 - shift);
    return (int32_t)((scaled + half) >> (31 - shift));
#else
    int64_t wide = (int64_t)value * ((int64_t)1 << (shift > 0 ? shift : 0));
    int64_t high = (wide * m + ((int64_t)1 << 30)) >> 31;
    int64_t unit = (int64_t)1 << (shift < 0 ? -shift : 0);
    return (int32_t)(high >= 0 ? (high + unit / 2) / unit : -((-high + unit / 2) / unit));
#endif
}

static inline int8_t standin_clamp(int32_t value, int32_t low, int32_t high) {
    return (int8_t)(value < low ? low : value > high ? high : value);
}

/* Spoils the working memory; an error when it is not aligned as documented. */
static inline arm_cmsis_nn_status standin_spoil(const cmsis_nn_context *ctx) {
    if (ctx->size > 0 && (ctx->buf == NULL || ((uintptr_t)ctx->buf & 15U) != 0U)) {
        return ARM_CMSIS_NN_ARG_ERROR;
    }
    if (ctx->size > 0) {
        memset(ctx->buf, 0xA5, (size_t)ctx->size);
    }
    return ARM_CMSIS_NN_SUCCESS;
}

#endif
