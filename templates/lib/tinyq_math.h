/* Integer arithmetic of the portable kernels.
 *
 * Right shifts of negative numbers must floor, as they do in every compiler for Arm; the first
 * declaration below does not compile where they don't.
 */
#ifndef TINYQ_MATH_H
#define TINYQ_MATH_H

#include <stdint.h>
#include <string.h>

#include "tinyq_common.h"

typedef char tinyq_right_shift_floors[((-3) >> 1) == -2 ? 1 : -1];

/* Cores without a 32x32 to 64 bit multiply take it from four 16-bit products. */
#if !defined(TINYQ_NO_LONG_MULTIPLY) && \
    (defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__))
#define TINYQ_NO_LONG_MULTIPLY 1
#endif

/* Top 32 bits of the product: floor(p * q / 2^32). */
static inline int32_t tinyq_mulhi(int32_t p, int32_t q) {
#ifdef TINYQ_NO_LONG_MULTIPLY
    const uint32_t p_low = (uint32_t)p & 0xFFFFU;
    const uint32_t q_low = (uint32_t)q & 0xFFFFU;
    const int32_t p_high = p >> 16;
    const int32_t q_high = q >> 16;
    /* Each partial sum stays below 2^31: 32767 * 65535 + 65535 at most. */
    const int32_t first = p_high * (int32_t)q_low + (int32_t)((p_low * q_low) >> 16);
    const int32_t second = q_high * (int32_t)p_low + (int32_t)((uint32_t)first & 0xFFFFU);
    return p_high * q_high + (first >> 16) + (second >> 16);
#else
    return (int32_t)(((int64_t)p * q) >> 32);
#endif
}

/* The layer's level with its fraction. acc << pre_shift and the sum fit int32 (proved when the
 * parameters are made). */
static inline int32_t tinyq_rescale_sum(int32_t acc, int32_t multiplier, int32_t addend,
                                        int pre_shift) {
    return tinyq_mulhi((int32_t)((uint32_t)acc << pre_shift), multiplier) + addend;
}

/* The layer's level before corrections and clamp. */
static inline int32_t tinyq_rescale(int32_t acc, int32_t multiplier, int32_t addend, int pre_shift,
                                    int post_shift) {
    return tinyq_rescale_sum(acc, multiplier, addend, pre_shift) >> post_shift;
}

/* The same with exact halves given to even levels (odd 0) or odd ones (odd 1): the levels that lose
 * ties begin two units of the sum later. post_shift is at least 1. */
static inline int32_t tinyq_rescale_ties(int32_t acc, int32_t multiplier, int32_t addend,
                                         int pre_shift, int post_shift, int odd) {
    const int32_t sum = tinyq_rescale_sum(acc, multiplier, addend, pre_shift);
    const int32_t late = (((sum >> post_shift) ^ odd) & 1) * 2;
    return (sum - late) >> post_shift;
}

/* acc * multiplier * 2^(shift - 31), rounded twice: the high half of the doubled product half up, the
 * remaining right shift half away from zero. acc << shift fits int32 where shift is positive. */
static inline int32_t tinyq_rescale_twice(int32_t acc, int32_t multiplier, int shift) {
    const int32_t scaled = shift > 0 ? (int32_t)((uint32_t)acc << shift) : acc;
    const int32_t high = (int32_t)(((int64_t)scaled * multiplier + (1 << 30)) >> 31);
    const int right = shift < 0 ? -shift : 0;
    const int32_t mask = (int32_t)((UINT32_C(1) << right) - 1U);
    const int32_t half = (mask >> 1) + (high < 0 ? 1 : 0);
    return (high >> right) + ((high & mask) > half ? 1 : 0);
}

/* v limited to [low, high], which lie in int8: one instruction for a limit of the type itself. */
static inline int8_t tinyq_clamp_s8(int32_t v, int32_t low, int32_t high) {
#if defined(__ARM_FEATURE_SAT) && defined(__thumb2__) && !defined(TINYQ_NO_ASM)
    __asm__("ssat %0, #8, %1" : "=r"(v) : "r"(v));
    v = low > -128 && v < low ? low : v;
    v = high < 127 && v > high ? high : v;
#else
    v = v < low ? low : v;
    v = v > high ? high : v;
#endif
    return (int8_t)v;
}

/* v limited to [low, high], which lie in int16: one instruction for a limit of the type itself. */
static inline int16_t tinyq_clamp_s16(int32_t v, int32_t low, int32_t high) {
#if defined(__ARM_FEATURE_SAT) && defined(__thumb2__) && !defined(TINYQ_NO_ASM)
    __asm__("ssat %0, #16, %1" : "=r"(v) : "r"(v));
    v = low > -32768 && v < low ? low : v;
    v = high < 32767 && v > high ? high : v;
#else
    v = v < low ? low : v;
    v = v > high ? high : v;
#endif
    return (int16_t)v;
}

#endif
