/* IEEE 754 single precision in integer instructions: what tensors quantized at run time need, and
 * layers whose integer form leaves some sums to the rule that it stands for.
 *
 * A real is the 32 bits of a float32. Every operation gives the bits that a processor's gives when
 * it rounds to nearest even and keeps subnormal numbers. There are no NaNs and no infinite operands;
 * a result too large becomes infinite (networks in which that could happen are not compiled).
 */
#ifndef TINYQ_REALS_H
#define TINYQ_REALS_H

#include "tinyq_dsp.h"
#include "tinyq_math.h"

#define TINYQ_REAL_SIGN UINT32_C(0x80000000)
#define TINYQ_REAL_ONE UINT32_C(0x3F800000)

/* Parameters found at run time: real = mantissa * 2^exponent * (integer - zero_point). */
typedef struct {
    int32_t mantissa;
    int32_t exponent;
    int32_t zero_point;
} tinyq_scale_t;

/* Zeros above the highest bit of v, which is not 0. */
TINYQ_INLINE int32_t tinyq_leading_zeros(uint32_t v) {
#if defined(__GNUC__) && (!defined(__arm__) || defined(__ARM_FEATURE_CLZ))
    return __builtin_clz(v);
#else
    int32_t n = 0;
    int32_t step;
    for (step = 16; step > 0; step >>= 1) {
        if ((v >> (32 - step)) == 0U) {
            n += step;
            v <<= step;
        }
    }
    return n;
#endif
}

/* Top 32 bits of the unsigned product. */
TINYQ_INLINE uint32_t tinyq_mulhi_unsigned(uint32_t p, uint32_t q) {
#ifdef TINYQ_NO_LONG_MULTIPLY
    const uint32_t p_low = p & 0xFFFFU;
    const uint32_t q_low = q & 0xFFFFU;
    const uint32_t p_high = p >> 16;
    const uint32_t q_high = q >> 16;
    const uint32_t first = p_high * q_low + ((p_low * q_low) >> 16);
    const uint32_t second = q_high * p_low + (first & 0xFFFFU);
    return p_high * q_high + (first >> 16) + (second >> 16);
#else
    return (uint32_t)(((uint64_t)p * q) >> 32);
#endif
}

/* Magnitude of a real that is not zero: m * 2^e with 2^23 <= m < 2^24. */
TINYQ_INLINE uint32_t tinyq_real_parts(uint32_t a, int32_t *e) {
    uint32_t m = a & 0x7FFFFFU;
    int32_t field = (int32_t)((a >> 23) & 0xFFU);
    if (field != 0) {
        m |= 0x800000U;
    } else {
        const int32_t shift = tinyq_leading_zeros(m) - 8;
        m <<= shift;
        field = 1 - shift;
    }
    *e = field - 150;
    return m;
}

/* m * 2^e rounded, m not 0. Bit 0 of m stands for all that is below it where m has 26 bits or more. */
static TINYQ_NOINLINE TINYQ_UNUSED uint32_t tinyq_real_round(uint32_t sign, int32_t e, uint32_t m) {
    const int32_t shift = tinyq_leading_zeros(m);
    int32_t field = e - shift + 158;
    int32_t drop = 8;
    uint32_t rest;
    uint32_t kept;
    m <<= shift;
    if (field < 1) {
        drop = 9 - field;
        field = 1;
        if (drop > 32) {
            return sign;
        }
    }
    kept = drop == 32 ? 0U : m >> drop;
    rest = m << (32 - drop);
    kept += rest > TINYQ_REAL_SIGN || (rest == TINYQ_REAL_SIGN && (kept & 1U) != 0U) ? 1U : 0U;
    kept += (uint32_t)(field - 1) << 23; /* a carry out of the mantissa is one more in the exponent */
    return sign | (field > 254 || kept > 0x7F800000U ? 0x7F800000U : kept);
}

static TINYQ_NOINLINE TINYQ_UNUSED uint32_t tinyq_real_from_int(int32_t v) {
    const uint32_t sign = (uint32_t)v & TINYQ_REAL_SIGN;
    return v == 0 ? 0U : tinyq_real_round(sign, 0, sign != 0U ? 0U - (uint32_t)v : (uint32_t)v);
}

static TINYQ_NOINLINE TINYQ_UNUSED uint32_t tinyq_real_multiply(uint32_t a, uint32_t b) {
    const uint32_t sign = (a ^ b) & TINYQ_REAL_SIGN;
    int32_t ea;
    int32_t eb;
    uint32_t ma;
    uint32_t mb;
    if ((a << 1) == 0U || (b << 1) == 0U) {
        return sign;
    }
    ma = tinyq_real_parts(a, &ea);
    mb = tinyq_real_parts(b, &eb);
    return tinyq_real_round(sign, ea + eb + 16,
                            tinyq_mulhi_unsigned(ma << 8, mb << 8) |
                                (((ma * mb) & 0xFFFFU) != 0U ? 1U : 0U));
}

static TINYQ_NOINLINE TINYQ_UNUSED uint32_t tinyq_real_add(uint32_t a, uint32_t b) {
    uint32_t ma;
    uint32_t mb;
    int32_t ea;
    int32_t eb;
    int32_t distance;
    if ((a << 1) < (b << 1)) {
        const uint32_t smaller = a;
        a = b;
        b = smaller;
    }
    if ((b << 1) == 0U) {
        return (a << 1) == 0U ? a & b : a;
    }
    ma = tinyq_real_parts(a, &ea) << 6;
    mb = tinyq_real_parts(b, &eb) << 6;
    distance = ea - eb;
    if (distance > 31) {
        mb = 1U;
    } else if (distance > 0) {
        mb = (mb >> distance) | ((mb << (32 - distance)) != 0U ? 1U : 0U);
    }
    ma = ((a ^ b) & TINYQ_REAL_SIGN) != 0U ? ma - mb : ma + mb;
    return ma == 0U ? 0U : tinyq_real_round(a & TINYQ_REAL_SIGN, ea - 6, ma);
}

/* m1 / m2 * 2^28, both normalised as tinyq_real_parts leaves them, bit 0 set when it is not exact. */
static TINYQ_NOINLINE TINYQ_UNUSED uint32_t tinyq_real_ratio(uint32_t m1, uint32_t m2) {
    uint32_t quotient = m1 >= m2 ? 1U : 0U;
    uint32_t rest = m1 >= m2 ? m1 - m2 : m1;
    int32_t step;
    for (step = 0; step < 4; step++) {
        const int32_t bits = step < 3 ? 8 : 4; /* rest stays below 2^24 */
        const uint32_t digit = (rest << bits) / m2;
        rest = (rest << bits) - digit * m2;
        quotient = (quotient << bits) | digit;
    }
    return quotient | (rest != 0U ? 1U : 0U);
}

/* a / b; b is not zero. */
static TINYQ_NOINLINE TINYQ_UNUSED uint32_t tinyq_real_divide(uint32_t a, uint32_t b) {
    const uint32_t sign = (a ^ b) & TINYQ_REAL_SIGN;
    int32_t ea;
    int32_t eb;
    uint32_t ma;
    if ((a << 1) == 0U) {
        return sign;
    }
    ma = tinyq_real_parts(a, &ea);
    ma = tinyq_real_ratio(ma, tinyq_real_parts(b, &eb));
    return tinyq_real_round(sign, ea - eb - 28, ma);
}

/* The nearest integer, halves to even, limited to -1024 and 1024. */
TINYQ_INLINE int32_t tinyq_real_to_int(uint32_t a) {
    const int32_t field = (int32_t)((a >> 23) & 0xFFU);
    int32_t v = 1024;
    if (field < 126) {
        v = 0;
    } else if (field < 137) {
        const int32_t drop = 150 - field;
        const uint32_t m = (a & 0x7FFFFFU) | 0x800000U;
        const uint32_t rest = m << (32 - drop);
        v = (int32_t)(m >> drop);
        v += rest > TINYQ_REAL_SIGN || (rest == TINYQ_REAL_SIGN && (v & 1) != 0) ? 1 : 0;
    }
    return (a & TINYQ_REAL_SIGN) != 0U ? -v : v;
}

/* A number that is in the order of the reals; both zeros are equal. */
TINYQ_INLINE int32_t tinyq_real_order(uint32_t a) {
    return (a & TINYQ_REAL_SIGN) != 0U ? -(int32_t)(a & 0x7FFFFFFFU) : (int32_t)a;
}

TINYQ_INLINE uint32_t tinyq_real_of_order(int32_t order) {
    return order < 0 ? TINYQ_REAL_SIGN | (uint32_t)-order : (uint32_t)order;
}

/* The scale of a tensor as a real, and back. */
TINYQ_INLINE uint32_t tinyq_real_of_scale(const tinyq_scale_t *s) {
    const uint32_t m = (uint32_t)s->mantissa;
    return m < 0x800000U ? m : ((uint32_t)(s->exponent + 149) << 23) + m;
}

TINYQ_INLINE void tinyq_scale_of_real(uint32_t a, int32_t zero_point, tinyq_scale_t *s) {
    const int32_t field = (int32_t)(a >> 23);
    s->mantissa = (int32_t)((a & 0x7FFFFFU) | (field != 0 ? 0x800000U : 0U));
    s->exponent = (field != 0 ? field : 1) - 150;
    s->zero_point = zero_point;
}

/* Scale and zero point (of int8) of a tensor whose reals lie between low and high, as orders, by the
 * rule of DynamicQuantizeLinear: the range is widened to hold 0. Returns the scale as a real. */
static TINYQ_NOINLINE TINYQ_UNUSED uint32_t tinyq_real_range(int32_t low, int32_t high,
                                                             tinyq_scale_t *found) {
    const uint32_t least = tinyq_real_of_order(low < 0 ? low : 0);
    const uint32_t most = tinyq_real_of_order(high > 0 ? high : 0);
    const uint32_t width = tinyq_real_add(most, least ^ TINYQ_REAL_SIGN);
    uint32_t scale = TINYQ_REAL_ONE;
    int32_t zero_point = 0;
    if (width != 0U) {
        scale = tinyq_real_divide(width, UINT32_C(0x437F0000)); /* 255 */
        zero_point = 255;
        if (scale != 0U) {
            zero_point = tinyq_real_to_int(tinyq_real_divide(least ^ TINYQ_REAL_SIGN, scale));
            zero_point = zero_point > 255 ? 255 : zero_point;
        }
    }
    tinyq_scale_of_real(scale, zero_point - 128, found);
    return scale;
}

/* The int8 that stands for a real. A scale of 0 (a range below 255 times the smallest float32) tells
 * positive reals from the others alone. */
static TINYQ_NOINLINE TINYQ_UNUSED int32_t tinyq_real_quantize(uint32_t a, uint32_t scale,
                                                               int32_t zero_point) {
    if (scale == 0U) {
        return tinyq_real_order(a) > 0 ? 127 : -128;
    }
    return tinyq_clamp_s8(tinyq_real_to_int(tinyq_real_divide(a, scale)) + zero_point, -128, 127);
}

/* From integers to int8 in two instructions: of sum = mulhi(v << pre, multiplier) + addend the integer
 * is sum >> post, unless the bits below are less than window: there the reals decide. */
typedef struct {
    int32_t multiplier;
    int32_t addend;
    uint32_t window;
    int32_t pre;
    int32_t post;
} tinyq_real_map_t;

/* The map of round((v * step + bias) / scale) for |v| <= largest, less the zero point. With u = 2^-24
 * the four operations in float32 are off by 4.1 u |v step / scale| + 2.1 u |bias / scale| at most; the
 * sum of the map by five units of its own and 2^-27 of either term. What lies beyond 256 is clamped
 * and need not be exact. The window holds all of that on both sides of every rounding boundary. */
static TINYQ_NOINLINE TINYQ_UNUSED void tinyq_real_map(uint32_t step, uint32_t bias, uint32_t scale,
                                                       uint32_t largest, tinyq_real_map_t *map) {
    int32_t e;
    int32_t es;
    int32_t eb = 0;
    int32_t post;
    int32_t drop;
    int32_t shift;
    uint32_t b = 0U;
    uint32_t m;
    uint32_t divisor;
    uint32_t error;
    map->multiplier = map->addend = map->pre = map->post = 0;
    map->window = UINT32_MAX;
    if ((step << 1) == 0U || scale < (UINT32_C(20) << 23)) {
        return; /* subnormal numbers may be under way */
    }
    divisor = tinyq_real_parts(scale, &es);
    m = tinyq_real_ratio(tinyq_real_parts(step, &e), divisor);
    shift = tinyq_leading_zeros(m) - 1;
    m <<= shift;
    e -= es + 28 + shift;
    map->pre = largest == 0U ? 0 : tinyq_leading_zeros(largest) - 1;
    post = map->pre - 32 - e;
    post = post > 20 ? 20 : post;
    if ((bias << 1) != 0U) {
        b = tinyq_real_ratio(tinyq_real_parts(bias, &eb), divisor);
        eb -= es + 28;
        post = post > -eb ? -eb : post;
    }
    if (post < 4) {
        return; /* one term is far larger than the sum */
    }
    drop = map->pre - 32 - e - post;
    map->multiplier = drop > 30 ? 0 : (int32_t)(m >> drop);
    drop = -eb - post;
    b = b == 0U || drop > 30 ? 0U : b >> drop;
    error = 5U + ((UINT32_C(6) << post) >> 16) + (b >> 20);
    map->addend = ((bias & TINYQ_REAL_SIGN) != 0U ? -(int32_t)b : (int32_t)b) +
                  (INT32_C(1) << (post - 1)) + (int32_t)error;
    map->window = 2U * error;
    map->post = post;
}

/* Levels less the zero point, before the clamp, as the oracles of a layer compute them from a sum.
 * own: what is added to the sum, then the scale. All are within one of the layer's integer form. */

/* round(float32(acc + offset) * scale); scale is a real. */
static TINYQ_NOINLINE TINYQ_UNUSED int32_t tinyq_level_float(int32_t acc,
                                                             const tinyq_requant_t *own) {
    const uint32_t sum = tinyq_real_from_int(acc + own->multiplier);
    return tinyq_real_to_int(tinyq_real_multiply(sum, (uint32_t)own->addend));
}

/* round((float32(acc + offset) * scale + bias) / y_scale); the bias is the first of more. */
static TINYQ_NOINLINE TINYQ_UNUSED int32_t tinyq_level_float_bias(int32_t acc,
                                                                  const tinyq_requant_t *own,
                                                                  const tinyq_requant_t *more,
                                                                  uint32_t y_scale) {
    const uint32_t sum = tinyq_real_from_int(acc + own->multiplier);
    const uint32_t product = tinyq_real_multiply(sum, (uint32_t)own->addend);
    const uint32_t real = tinyq_real_add(product, (uint32_t)more->multiplier);
    return tinyq_real_to_int(tinyq_real_divide(real, y_scale));
}

/* (acc + offset) * scale * 2^(shift - 31), halves up; the shift is the first of more. */
static TINYQ_NOINLINE TINYQ_UNUSED int32_t tinyq_level_once(int32_t acc,
                                                            const tinyq_requant_t *own,
                                                            const tinyq_requant_t *more) {
    const int32_t right = 31 - more->multiplier;
    const int64_t product = (int64_t)(acc + own->multiplier) * own->addend;
    return (int32_t)((product + (INT64_C(1) << (right - 1))) >> right);
}

/* The same rounded twice. */
static TINYQ_NOINLINE TINYQ_UNUSED int32_t tinyq_level_twice(int32_t acc,
                                                             const tinyq_requant_t *own,
                                                             const tinyq_requant_t *more) {
    return tinyq_rescale_twice(acc + own->multiplier, own->addend, more->multiplier);
}

#endif
