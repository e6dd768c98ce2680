"""The fixed-point exponential and reciprocal of gemmlowp, which TFLite and CMSIS-NN use in Softmax.

All values are int32 held in int64 arrays. A format Qm.n has m integer bits and n fractional ones.
"""

from __future__ import annotations

import numpy as np

from tinyq.quant.fixed_point import high_multiply, rounding_shift
from tinyq.quant.staircase import Int64

_ONE = 2**31 - 1
_EXP_MINUS_EIGHTH = 1895147668
_THIRD = 715827883
# exp(-2^k) for k = -2 .. 4, with 31 fractional bits
_EXP_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
_QUARTER_BITS = 24  # Q5.26: 2^24 is a quarter


def exp_on_negative(value: Int64) -> Int64:
    """exp(value), value <= 0 in Q5.26, result in Q0.31 (1 is 2^31 - 1).

    A polynomial of degree four on (-1/4, 0], times powers for the rest of the argument.
    """
    value = np.asarray(value, np.int64)
    quarter = (value & ((1 << _QUARTER_BITS) - 1)) - (1 << _QUARTER_BITS)
    rest = quarter - value
    x = (quarter << 5) + (1 << 28)
    square = high_multiply(x, x)
    higher = rounding_shift(high_multiply(square, square), 2) + high_multiply(square, x)
    series = x + rounding_shift(high_multiply(higher, _THIRD) + square, 1)
    result = _EXP_MINUS_EIGHTH + high_multiply(series, _EXP_MINUS_EIGHTH)
    for k, power in enumerate(_EXP_POWERS):
        has = (rest >> (_QUARTER_BITS + k)) & 1
        result = np.where(has == 1, high_multiply(result, power), result)
    return np.where(value == 0, _ONE, result)


def one_over_one_plus(value: Int64) -> Int64:
    """1 / (1 + value) in Q0.31 for value in [0, 1) of the same format: three Newton steps."""
    total = np.asarray(value, np.int64) + _ONE
    half = (total + 1) // 2
    x = 1515870810 + high_multiply(half, -1010580540)
    for _ in range(3):
        x = x + _times_power(high_multiply(x, (1 << 29) - high_multiply(half, x)), 2)
    return _times_power(x, 1)


def _times_power(value: Int64, exponent: int) -> Int64:
    """value * 2^exponent, saturated to int32."""
    shifted: Int64 = np.clip(value << exponent, -(2**31), 2**31 - 1)
    return shifted
