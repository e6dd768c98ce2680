"""Oracles of TensorFlow Lite's integer kernels and of CMSIS-NN: a scale as a fixed-point number.

Both represent a real scale as ``multiplier * 2**(shift - 31)`` with a 31-bit multiplier, and round
either once (add half, shift) or twice: first the high half of the product, half up, then the
remaining right shift, half away from zero. Which operator does which is a property of the kernel,
so it is a value here: :class:`Rounding`. The names in brackets are TensorFlow Lite's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from tinyq.quant.staircase import Int64

Float64 = NDArray[np.float64]


class Rounding(Enum):
    """How a fixed-point requantization rounds."""

    ONCE = "once"
    TWICE = "twice"


def quantize_multiplier(real: float) -> tuple[int, int]:
    """The fixed-point form of a positive real: (multiplier, shift), real = m * 2^(shift - 31).

    [QuantizeMultiplier] multiplier is in [2^30, 2^31), or 0 where the real is below 2^-32.
    """
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2.0**31 + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -31:
        return 0, 0
    return (2**31 - 1, 30) if shift > 30 else (multiplier, shift)


def high_multiply(x: Int64, multiplier: Int64 | int) -> Int64:
    """(x * multiplier) / 2^31, halves up. [SaturatingRoundingDoublingHighMul] without saturation:
    the one case that saturates, both operands -2^31, cannot occur with a positive multiplier.
    """
    return (x * multiplier + (1 << 30)) >> 31


def rounding_shift(x: Int64, exponent: Int64 | int) -> Int64:
    """x / 2^exponent, halves away from zero. [RoundingDivideByPOT]"""
    mask = (np.int64(1) << np.asarray(exponent, np.int64)) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def multiply(x: Int64, multiplier: Int64 | int, shift: Int64 | int, rounding: Rounding) -> Int64:
    """x * multiplier * 2^(shift - 31), rounded. [MultiplyByQuantizedMultiplier]

    x: int64 in int32's range; multiplier and shift broadcast over it.
    """
    shifts = np.asarray(shift, np.int64)
    factors = np.asarray(multiplier, np.int64)
    if rounding is Rounding.ONCE:
        total = 31 - shifts
        return (x * factors + (np.int64(1) << (total - 1))) >> total
    left, right = np.maximum(shifts, 0), np.maximum(-shifts, 0)
    return rounding_shift(high_multiply(x << left, factors), right)


def away_from_zero(x: Float64 | np.float64) -> Int64:
    """Nearest integers, halves away from zero. [TfLiteRound]"""
    return (np.sign(x) * np.floor(np.abs(x) + 0.5)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class FixedPointLinear:
    """A convolution or dense layer of TensorFlow Lite or CMSIS-NN.

    y = clamp(multiply(acc + bias + offset, multiplier, shift) + zero_point, qmin, qmax)

    multiplier, shift, bias, offset: int64[C]; offset is ``-x_zero_point * sum(w)``.
    """

    multiplier: Int64
    shift: Int64
    bias: Int64
    offset: Int64
    zero_point: int
    rounding: Rounding
    qmin: int = -128
    qmax: int = 127
    literal: bool = True
    """Whether the requantization must have this very form, or may be any that is equal."""

    @classmethod
    def of_scales(
        cls,
        real: Float64,
        bias: Int64,
        offset: Int64,
        zero_point: int,
        rounding: Rounding,
        qmin: int = -128,
        qmax: int = 127,
    ) -> FixedPointLinear:
        """From real scales float64[C], x_scale * w_scale / y_scale computed in float64."""
        pairs = np.array([quantize_multiplier(float(r)) for r in real], np.int64).reshape(-1, 2)
        return cls(pairs[:, 0], pairs[:, 1], bias, offset, zero_point, rounding, qmin, qmax)

    def __call__(self, acc: Int64) -> Int64:
        """Outputs int64[C, n] of raw accumulators int64[C, n]."""
        total = acc + (self.bias + self.offset)[:, None]
        levels = multiply(total, self.multiplier[:, None], self.shift[:, None], self.rounding)
        return np.clip(levels + self.zero_point, self.qmin, self.qmax)


@dataclass(frozen=True, eq=False)
class RealLinear:
    """FULLY_CONNECTED of TensorFlow Lite's reference kernels: one product in float64.

    y = clamp(round_half_away(float64(acc + bias + offset) * scale) + zero_point, qmin, qmax)

    scale: float64[C], x_scale * w_scale / y_scale in this order. bias, offset: int64[C].
    """

    scale: Float64
    bias: Int64
    offset: Int64
    zero_point: int
    qmin: int = -128
    qmax: int = 127

    def __call__(self, acc: Int64) -> Int64:
        """Outputs int64[C, n] of raw accumulators int64[C, n]."""
        total = (acc + (self.bias + self.offset)[:, None]).astype(np.float64)
        levels = away_from_zero(total * self.scale[:, None]) + self.zero_point
        return np.clip(levels, self.qmin, self.qmax)


def rounded_mean(total: Int64, count: int) -> Int64:
    """AVERAGE_POOL_2D: the mean of raw integers, halves away from zero."""
    mean: Int64 = np.sign(total) * ((np.abs(total) + count // 2) // count)
    return mean


def mean_multiplier(x_scale: float, y_scale: float, count: int) -> tuple[int, int]:
    """MEAN: the fixed-point form of x_scale / (y_scale * count), the count divided in last."""
    multiplier, shift = quantize_multiplier(x_scale / y_scale)
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << extra) // count, shift - extra
