/* Arm DSP-extension primitives with portable twins.
 *
 * Every function gives the same bits on both paths, so that a kernel built on the host computes
 * what the core computes. Accumulators wrap modulo 2^32, as the instructions do.
 * A word holds two int16 values: "bottom" is bits 15..0, "top" is bits 31..16 (little endian).
 * TINYQ_ASM is 1 where the instructions exist; define TINYQ_NO_ASM to force the portable path.
 */
#ifndef TINYQ_DSP_H
#define TINYQ_DSP_H

#include <stdint.h>
#include <string.h>

#ifndef TINYQ_REQUANT_T
#define TINYQ_REQUANT_T
/* One output channel: y = clamp((mulhi(acc << pre_shift, multiplier) + addend) >> post_shift). */
typedef struct {
    int32_t multiplier;
    int32_t addend;
} tinyq_requant_t;
#endif

#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && !defined(TINYQ_NO_ASM)
#define TINYQ_ASM 1
#else
#define TINYQ_ASM 0
#endif

/* Assembly for ARMv6-M, in the syntax of GCC. */
#if (defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__)) && defined(__OPTIMIZE__) && \
    !defined(__clang__) && !defined(TINYQ_NO_ASM)
#define TINYQ_ASM_V6M 1
#else
#define TINYQ_ASM_V6M 0
#endif

#if defined(__GNUC__)
#define TINYQ_INLINE static inline __attribute__((always_inline, unused))
#define TINYQ_NOINLINE __attribute__((noinline))
#define TINYQ_UNUSED __attribute__((unused))
#define TINYQ_MEMCPY __builtin_memcpy /* one instruction even where -ffreestanding hides memcpy */
#else
#define TINYQ_INLINE static inline
#define TINYQ_NOINLINE
#define TINYQ_UNUSED
#define TINYQ_MEMCPY memcpy
#endif

/* Word at any byte address (one LDR or STR where unaligned access is allowed). */
TINYQ_INLINE uint32_t tinyq_load32(const void *p) {
    uint32_t v;
    TINYQ_MEMCPY(&v, p, sizeof v);
    return v;
}

TINYQ_INLINE uint32_t tinyq_load16(const void *p) {
    uint16_t v;
    TINYQ_MEMCPY(&v, p, sizeof v);
    return v;
}

TINYQ_INLINE void tinyq_store32(void *p, uint32_t v) {
    TINYQ_MEMCPY(p, &v, sizeof v);
}

TINYQ_INLINE void tinyq_store16(void *p, uint32_t v) {
    const uint16_t h = (uint16_t)v;
    TINYQ_MEMCPY(p, &h, sizeof h);
}

TINYQ_INLINE int32_t tinyq_bottom(uint32_t v) {
    return (int16_t)(v & 0xFFFFU);
}

TINYQ_INLINE int32_t tinyq_top(uint32_t v) {
    return (int16_t)(v >> 16);
}

TINYQ_INLINE uint32_t tinyq_pair(int32_t bottom, int32_t top) {
    return ((uint32_t)bottom & 0xFFFFU) | ((uint32_t)top << 16);
}

TINYQ_INLINE int32_t tinyq_wrap_add(int32_t a, int32_t b) {
    return (int32_t)((uint32_t)a + (uint32_t)b);
}

#if TINYQ_ASM
#define TINYQ_DSP3(NAME, OP)                                                     \
    TINYQ_INLINE int32_t NAME(uint32_t x, uint32_t w, int32_t acc) {             \
        int32_t r;                                                               \
        __asm__(OP " %0, %1, %2, %3" : "=r"(r) : "r"(x), "r"(w), "r"(acc));      \
        return r;                                                                \
    }
TINYQ_DSP3(tinyq_smlad, "smlad")
TINYQ_DSP3(tinyq_smlabb, "smlabb")
TINYQ_DSP3(tinyq_smlabt, "smlabt")
TINYQ_DSP3(tinyq_smlatb, "smlatb")
TINYQ_DSP3(tinyq_smlatt, "smlatt")
#undef TINYQ_DSP3

/* Both products added to a sum of 64 bits. */
TINYQ_INLINE int64_t tinyq_smlald(uint32_t x, uint32_t w, int64_t acc) {
    __asm__("smlald %Q0, %R0, %1, %2" : "+r"(acc) : "r"(x), "r"(w));
    return acc;
}

/* Bytes 0 and 2 sign-extended to a pair. */
TINYQ_INLINE uint32_t tinyq_sxtb16(uint32_t v) {
    uint32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(v));
    return r;
}

/* Bytes 1 and 3 sign-extended to a pair. */
TINYQ_INLINE uint32_t tinyq_sxtb16_ror8(uint32_t v) {
    uint32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(v));
    return r;
}

/* addend + mulhi(acc, multiplier). */
TINYQ_INLINE int32_t tinyq_smmla(int32_t acc, int32_t multiplier, int32_t addend) {
    int32_t r;
    __asm__("smmla %0, %1, %2, %3" : "=r"(r) : "r"(acc), "r"(multiplier), "r"(addend));
    return r;
}
#else
TINYQ_INLINE int32_t tinyq_smlabb(uint32_t x, uint32_t w, int32_t acc) {
    return tinyq_wrap_add(acc, tinyq_bottom(x) * tinyq_bottom(w));
}

TINYQ_INLINE int32_t tinyq_smlabt(uint32_t x, uint32_t w, int32_t acc) {
    return tinyq_wrap_add(acc, tinyq_bottom(x) * tinyq_top(w));
}

TINYQ_INLINE int32_t tinyq_smlatb(uint32_t x, uint32_t w, int32_t acc) {
    return tinyq_wrap_add(acc, tinyq_top(x) * tinyq_bottom(w));
}

TINYQ_INLINE int32_t tinyq_smlatt(uint32_t x, uint32_t w, int32_t acc) {
    return tinyq_wrap_add(acc, tinyq_top(x) * tinyq_top(w));
}

TINYQ_INLINE int32_t tinyq_smlad(uint32_t x, uint32_t w, int32_t acc) {
    return tinyq_smlatt(x, w, tinyq_smlabb(x, w, acc));
}

TINYQ_INLINE int64_t tinyq_smlald(uint32_t x, uint32_t w, int64_t acc) {
    return acc + tinyq_bottom(x) * tinyq_bottom(w) + (int64_t)(tinyq_top(x) * tinyq_top(w));
}

TINYQ_INLINE uint32_t tinyq_sxtb16(uint32_t v) {
    return tinyq_pair((int8_t)(v & 0xFFU), (int8_t)((v >> 16) & 0xFFU));
}

TINYQ_INLINE uint32_t tinyq_sxtb16_ror8(uint32_t v) {
    return tinyq_sxtb16(v >> 8);
}

TINYQ_INLINE int32_t tinyq_smmla(int32_t acc, int32_t multiplier, int32_t addend) {
    return tinyq_wrap_add((int32_t)(((int64_t)acc * multiplier) >> 32), addend);
}
#endif

/* Copy and fill of n bytes that may lie at any address. */
static TINYQ_NOINLINE TINYQ_UNUSED void tinyq_copy(int8_t *dst, const int8_t *src, int32_t n) {
#if defined(__arm__) && !defined(__ARM_FEATURE_UNALIGNED)
    if ((((uintptr_t)dst | (uintptr_t)src) & 3U) == 0U) {
        for (; n >= 4; n -= 4, dst += 4, src += 4) {
            TINYQ_MEMCPY(__builtin_assume_aligned(dst, 4), __builtin_assume_aligned(src, 4), 4);
        }
    }
#else
    for (; n >= 4; n -= 4, dst += 4, src += 4) {
        tinyq_store32(dst, tinyq_load32(src));
    }
#endif
    for (; n > 0; n--) {
        *dst++ = *src++;
    }
}

static TINYQ_NOINLINE TINYQ_UNUSED void tinyq_fill(int8_t *dst, int32_t value, int32_t n) {
#if !defined(__arm__) || defined(__ARM_FEATURE_UNALIGNED)
    const uint32_t word = ((uint32_t)value & 0xFFU) * 0x01010101U;
    for (; n >= 4; n -= 4, dst += 4) {
        tinyq_store32(dst, word);
    }
#endif
    for (; n > 0; n--) {
        *dst++ = (int8_t)value;
    }
}

#endif
