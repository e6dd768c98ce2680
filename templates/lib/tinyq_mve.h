/* What the Helium kernels share. Only for cores with integer MVE: the intrinsics have no portable twin.
 *
 * Loads and stores of bytes need no alignment.
 */
#ifndef TINYQ_MVE_H
#define TINYQ_MVE_H

#include <arm_mve.h>
#include <stdint.h>

#include "tinyq_math.h"

#define TINYQ_MVE_INLINE static inline __attribute__((always_inline, unused))
#define TINYQ_MVE_NOINLINE __attribute__((noinline))

/* v[lane] = low, v[lane + 2] = high: one instruction, which GCC does not find by itself. */
#ifdef __clang__
#define TINYQ_MVE_PAIR(v, lane, low, high) \
    ((v) = vsetq_lane_s32(high, vsetq_lane_s32(low, v, lane), (lane) + 2))
#else
#define TINYQ_MVE_PAIR(v, lane, low, high) \
    __asm__("vmov %q0[" #lane "+2], %q0[" #lane "], %1, %2" : "+w"(v) : "r"(low), "r"(high))
#endif

/* Loads through `pointer` stay behind the computation of `vector`: else they come so early that vectors
 * have to be kept on the stack. */
#define TINYQ_MVE_AFTER(pointer, vector) __asm__("" : "+r"(pointer), "+w"(vector))

/* count bytes; reads and writes nothing outside. */
TINYQ_MVE_INLINE void tinyq_mve_copy(int8_t *to, const int8_t *from, int32_t count) {
    while (count >= 16) {
        vstrbq_s8(to, vldrbq_s8(from));
        to += 16;
        from += 16;
        count -= 16;
    }
    if (count > 0) {
        const mve_pred16_t p = vctp8q((uint32_t)count);
        vstrbq_p_s8(to, vldrbq_z_s8(from, p), p);
    }
}

TINYQ_MVE_INLINE void tinyq_mve_fill(int8_t *to, int8_t value, int32_t count) {
    const int8x16_t v = vdupq_n_s8(value);
    while (count >= 16) {
        vstrbq_s8(to, v);
        to += 16;
        count -= 16;
    }
    if (count > 0) {
        vstrbq_p_s8(to, v, vctp8q((uint32_t)count));
    }
}

#endif
