#include "standin.h"

/* round(a * b / 2^31), halves away from zero; the one product that overflows saturates. */
static int32_t high_product(int32_t a, int32_t b) {
    int64_t product = (int64_t)a * b;
    if (a == INT32_MIN && b == INT32_MIN) {
        return INT32_MAX;
    }
    return (int32_t)((product + ((int64_t)1 << 30)) >> 31);
}

static int32_t divide(int32_t value, int32_t bits) {
    int64_t unit = (int64_t)1 << bits;
    int64_t wide = value;
    return (int32_t)(wide >= 0 ? (wide + unit / 2) / unit : -((-wide + unit / 2) / unit));
}

static int32_t saturate(int64_t value) {
    return (int32_t)(value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : value);
}

/* exp of a value in Q5.26 that is not positive, in Q0.31: a polynomial within a quarter, and the
 * powers of e for the binary digits above it. */
static int32_t exponential(int32_t value) {
    static const int32_t power[7] = {1672461947, 1302514674, 790015084, 290630308,
                                     39332535,   720401,     242};
    int32_t quarter = (int32_t)1 << 24;
    int32_t below = (int32_t)((uint32_t)value & (uint32_t)(quarter - 1)) - quarter;
    uint32_t digits = (uint32_t)(below - value) >> 24;
    int32_t t = below * 32 + ((int32_t)1 << 28);
    int32_t t2 = high_product(t, t);
    int32_t t3 = high_product(t2, t);
    int32_t t4 = divide(high_product(t2, t2), 2);
    int32_t tail = divide(high_product(t4 + t3, 715827883) + t2, 1);
    int32_t result = 1895147668 + high_product(1895147668, t + tail);
    if (value == 0) {
        return INT32_MAX;
    }
    for (int k = 0; k < 7; k++) {
        if ((digits >> k & 1U) != 0U) {
            result = high_product(result, power[k]);
        }
    }
    return result;
}

/* 1 / (1 + value), both Q0.31: Newton's iteration from 48/17 - 32/17 d in Q2.29. */
static int32_t reciprocal(int32_t value) {
    int32_t half = (int32_t)(((int64_t)value + INT32_MAX + 1) / 2);
    int32_t guess = 1515870810 + high_product(half, -1010580540);
    for (int k = 0; k < 3; k++) {
        int32_t error = ((int32_t)1 << 29) - high_product(half, guess);
        guess += saturate((int64_t)high_product(guess, error) * 4);
    }
    return saturate((int64_t)guess * 2);
}

void arm_softmax_s8(const int8_t *x, int32_t rows, int32_t row_size, int32_t mult, int32_t shift,
                    int32_t diff_min, int8_t *y) {
    for (int32_t row = 0; row < rows; row++, x += row_size, y += row_size) {
        int32_t largest = -128, sum = 0, zeros = 0, scale;
        for (int32_t k = 0; k < row_size; k++) {
            largest = x[k] > largest ? x[k] : largest;
        }
        for (int32_t k = 0; k < row_size; k++) {
            int32_t diff = x[k] - largest;
            if (diff >= diff_min) {
                sum += divide(exponential(high_product(diff * ((int32_t)1 << shift), mult)), 12);
            }
        }
        while (((uint32_t)sum << zeros & 0x80000000U) == 0U) {
            zeros++;
        }
        scale = reciprocal((int32_t)(((uint32_t)sum << zeros) - 0x80000000U));
        for (int32_t k = 0; k < row_size; k++) {
            int32_t diff = x[k] - largest;
            int32_t e = exponential(high_product((diff >= diff_min ? diff : 0) * ((int32_t)1 << shift), mult));
            int32_t level = divide(high_product(scale, e), 35 - zeros) - 128;
            y[k] = diff >= diff_min ? standin_clamp(level, -128, 127) : (int8_t)-128;
        }
    }
}
