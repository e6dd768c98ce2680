"""Attributes of operators whose oracle is CMSIS-NN: its own arithmetic, integer for integer.

They take the place of an operator's usual attributes. Parameters are derived from the scales as
TFLite Micro derives them, in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, Node
from tinyq.quant import (
    FixedPointLinear,
    OrtMatMulFloatBias,
    accumulator_bounds,
    build_staircase,
)
from tinyq.quant.exponential import exp_on_negative, one_over_one_plus
from tinyq.quant.fixed_point import (
    Rounding,
    high_multiply,
    multiply,
    quantize_multiplier,
    rounding_shift,
)
from tinyq.quant.staircase import Int64

ADD_LEFT_SHIFT = 20
SOFTMAX_INTEGER_BITS = 5
SOFTMAX_SUM_BITS = 12
MAX_RIGHT_SHIFT = 30
"""The library forms ``1 << shift`` in int32."""


class FixedPointAttrs(ABC):
    """Attributes that compute by themselves; only kernels of the same arithmetic may take them."""

    @abstractmethod
    def compute(self, inputs: tuple[AnyArray, ...]) -> AnyArray:
        """The operator's output (int8) for its operands."""


def is_fixed_point(node: Node) -> bool:
    """Whether the node's arithmetic is CMSIS-NN's own, with two roundings."""
    if isinstance(node.attrs, FixedPointAttrs):
        return True
    return bool(getattr(node.attrs, "is_fixed_point", False))


def shift_problem(shift: Int64 | int, largest: Int64 | int, deepest: int = MAX_RIGHT_SHIFT) -> str:
    """Why the library's result would be undefined, or ''.

    shift: int[C]. largest: the greatest magnitude [C] of a value that is rescaled. deepest: the
    largest right shift that it defines.
    """
    shifts = np.asarray(shift, np.int64)
    if shifts.min() < -deepest:
        return f"a right shift of {-int(shifts.min())} is beyond {deepest}"
    left = np.clip(shifts, 0, 31)
    if np.any((np.asarray(largest, np.int64) << left) > 2**31 - 1):
        return f"a left shift of {int(left.max())} leaves 32 bits"
    return ""


def fixed_point_linear(
    node: Node, rounding: Rounding, deepest: int = MAX_RIGHT_SHIFT
) -> FixedPointLinear | str:
    """The library's parameters of a conv2d or dense node, or why it cannot compute it."""
    oracle, weights = node.attrs.oracle, node.input(1).array.astype(np.int64)
    made = oracle
    if not isinstance(oracle, FixedPointLinear):
        bias = oracle.bias
        if isinstance(oracle, OrtMatMulFloatBias):
            bias = np.rint(bias.astype(np.float64) / oracle.scale).astype(np.int64)
        made = FixedPointLinear.of_scales(
            _factors(node), bias, oracle.offset, oracle.zero_point, rounding,
            oracle.qmin, oracle.qmax,
        )  # fmt: skip
    rows = np.abs(weights).reshape(len(weights), -1).sum(axis=1)
    largest = np.abs(made.bias) + np.maximum(255 * rows, np.abs(made.offset) + 128 * rows)
    if largest.max() > 2**31 - 1:
        return "its sums may leave 32 bits"
    made = _without_idle_shifts(made, largest)
    return shift_problem(made.shift, largest, deepest) or made


def _without_idle_shifts(made: FixedPointLinear, largest: Int64) -> FixedPointLinear:
    """The same with the factor 0 for channels whose factor gives 0 at every sum up to ``largest``.

    Channels that training made constant have factors so small that the library's shift would be
    undefined.
    """
    ends = np.stack([-largest, largest])
    rescaled = multiply(ends, made.multiplier, made.shift, made.rounding)
    idle = (made.shift < -MAX_RIGHT_SHIFT) & np.all(rescaled == 0, axis=0)
    if not idle.any():
        return made
    zero = np.int64(0)
    return replace(
        made,
        multiplier=np.where(idle, zero, made.multiplier),
        shift=np.where(idle, zero, made.shift),
    )


def _factors(node: Node) -> npt.NDArray[np.float64]:
    """Output units for one unit of the accumulator, float64[C].

    TFLite multiplies the scales in float64, but those of a dense layer of one weight scale in
    float32.
    """
    factors = np.asarray(node.attrs.scale, np.float64)
    x, y = node.input(0).type.quant, node.output.type.quant
    if node.op != "dense" or x is None or y is None or np.any(factors != factors[0]):
        return factors
    weight_scale = np.float32(factors[0] * y.scale / x.scale)
    product = np.float64(np.float32(x.scale) * weight_scale)
    return np.full(len(factors), product / y.scale)


@dataclass(frozen=True)
class Differences:
    """At how many of ``examined`` values two rules differ, and by how much at most."""

    differing: int = 0
    examined: int = 0
    largest: int = 0


def differing_accumulators(node: Node, made: FixedPointLinear) -> Differences:
    """Where ``made`` differs from the node's oracle, over every accumulator it can reach."""
    oracle = node.attrs.oracle
    if isinstance(oracle, FixedPointLinear):
        return Differences()
    weights = node.input(1).array.astype(np.int64)
    low, high = accumulator_bounds(weights.reshape(len(weights), -1), -128, 127)
    stairs = [build_staircase(each, low, high, made.qmin, made.qmax) for each in (oracle, made)]
    start = np.minimum(stairs[0].thresholds, stairs[1].thresholds)
    end = np.maximum(stairs[0].thresholds, stairs[1].thresholds)
    # The difference grows only where a span begins, so that the largest is found there.
    gaps = np.abs(oracle(start) - made(start)) * (start < end)
    # Spans of neighbouring levels may overlap: each begins behind the one before.
    start[:, 1:] = np.maximum(start[:, 1:], end[:, :-1])
    differing = int(np.maximum(end - start, 0).sum())
    return Differences(differing, stairs[0].reachable, int(gaps.max(initial=0)))


@dataclass(frozen=True)
class Scaling:
    """A real factor as multiplier and shift."""

    multiplier: int
    shift: int

    @classmethod
    def of(cls, factor: float) -> Scaling:
        """Nearest multiplier of 31 bits to a positive factor."""
        return cls(*quantize_multiplier(factor))

    def apply(self, value: Int64, rounding: Rounding) -> Int64:
        """Rescale int64 values."""
        return multiply(value, self.multiplier, self.shift, rounding)


@dataclass(frozen=True)
class FixedPointAdd(FixedPointAttrs):
    """y = clamp(rescale(rescale((a - za) << 20) + rescale((b - zb) << 20)) + zy)."""

    a_zero_point: int
    b_zero_point: int
    zero_point: int
    a: Scaling
    b: Scaling
    y: Scaling
    qmin: int
    qmax: int
    rounding: Rounding = Rounding.TWICE

    @classmethod
    def of(
        cls,
        scales: tuple[float, float, float],
        zero_points: tuple[int, int, int],
        limits: tuple[int, int],
        rounding: Rounding = Rounding.TWICE,
    ) -> FixedPointAdd:
        """From scales and zero points of a, b and y."""
        largest = 2.0 * max(scales[0], scales[1])
        a, b = Scaling.of(scales[0] / largest), Scaling.of(scales[1] / largest)
        y = Scaling.of(largest / ((1 << ADD_LEFT_SHIFT) * scales[2]))
        return cls(*zero_points, a, b, y, *limits, rounding)

    def compute(self, inputs: tuple[AnyArray, ...]) -> AnyArray:
        """The sum."""
        a = (inputs[0].astype(np.int64) - self.a_zero_point) << ADD_LEFT_SHIFT
        b = (inputs[1].astype(np.int64) - self.b_zero_point) << ADD_LEFT_SHIFT
        total = self.a.apply(a, self.rounding) + self.b.apply(b, self.rounding)
        level = self.y.apply(total, self.rounding) + self.zero_point
        return np.clip(level, self.qmin, self.qmax).astype(np.int8)

    def problem(self) -> str:
        """Why the library cannot compute it, or ''."""
        if self.y.shift > 0:
            return "the sum's scale is below 2^-20 of the operands'"
        shifts = np.array([self.a.shift, self.b.shift, self.y.shift])
        return shift_problem(np.minimum(shifts, 0), np.zeros(3, np.int64))


@dataclass(frozen=True)
class FixedPointMul(FixedPointAttrs):
    """y = clamp(rescale((a - za) * (b - zb)) + zy)."""

    a_zero_point: int
    b_zero_point: int
    zero_point: int
    y: Scaling
    qmin: int
    qmax: int
    rounding: Rounding = Rounding.TWICE

    @classmethod
    def of(
        cls,
        scales: tuple[float, float, float],
        zero_points: tuple[int, int, int],
        limits: tuple[int, int],
        rounding: Rounding = Rounding.TWICE,
    ) -> FixedPointMul:
        """From scales and zero points of a, b and y."""
        return cls(*zero_points, Scaling.of(scales[0] * scales[1] / scales[2]), *limits, rounding)

    def compute(self, inputs: tuple[AnyArray, ...]) -> AnyArray:
        """The product."""
        a = inputs[0].astype(np.int64) - self.a_zero_point
        b = inputs[1].astype(np.int64) - self.b_zero_point
        level = self.y.apply(a * b, self.rounding) + self.zero_point
        return np.clip(level, self.qmin, self.qmax).astype(np.int8)

    def problem(self) -> str:
        """Why the library cannot compute it, or ''."""
        return shift_problem(self.y.shift, 255 * 255)


@dataclass(frozen=True)
class FixedPointMean(FixedPointAttrs):
    """Means of int8 windows, half away from zero, without regard to the zero point.

    kernel, stride (h, w); pads (top, left, bottom, right); padding does not count. Input and
    output have one quantization.
    """

    kernel_hw: tuple[int, int]
    stride_hw: tuple[int, int]
    pads: tuple[int, int, int, int]
    out_hw: tuple[int, int]
    qmin: int
    qmax: int

    def compute(self, inputs: tuple[AnyArray, ...]) -> AnyArray:
        """Sum and count of every window, then the rounded quotient."""
        x = inputs[0].astype(np.int64)
        total = _window_sums(self, x)
        count = _window_sums(self, np.ones((1, *x.shape[1:3], 1), np.int64))
        return self.divide(total, count).astype(np.int8)

    def divide(self, total: Int64, count: Int64) -> Int64:
        """round(total / count), half away from zero, clamped."""
        level = np.sign(total) * ((np.abs(total) + count // 2) // count)
        return np.asarray(np.clip(level, self.qmin, self.qmax), np.int64)


def _window_sums(a: FixedPointMean, x: Int64) -> Int64:
    top, left, bottom, right = a.pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    out_h, out_w = a.out_hw
    total = np.zeros((len(x), out_h, out_w, x.shape[3]), np.int64)
    for ky in range(a.kernel_hw[0]):
        for kx in range(a.kernel_hw[1]):
            rows = slice(ky, ky + (out_h - 1) * a.stride_hw[0] + 1, a.stride_hw[0])
            columns = slice(kx, kx + (out_w - 1) * a.stride_hw[1] + 1, a.stride_hw[1])
            total += padded[:, rows, columns]
    return total


@dataclass(frozen=True)
class FixedPointSoftmax(FixedPointAttrs):
    """Softmax over the last axis with gemmlowp's exponential.

    The output has scale 1/256 and zero point -128. Differences from the maximum below ``diff_min``
    count as zero.
    """

    multiplier: int
    shift: int
    diff_min: int

    @classmethod
    def of(cls, x_scale: float) -> FixedPointSoftmax:
        """From the input's scale."""
        unit = 1 << (31 - SOFTMAX_INTEGER_BITS)
        scaling = Scaling.of(min(x_scale * unit, 2.0**31 - 1.0))
        reach = ((1 << SOFTMAX_INTEGER_BITS) - 1) * float(unit) / float(1 << max(scaling.shift, 0))
        return cls(scaling.multiplier, scaling.shift, -math.floor(reach))

    def compute(self, inputs: tuple[AnyArray, ...]) -> AnyArray:
        """Exponentials, their sum, its reciprocal, rounded products."""
        x = inputs[0].astype(np.int64)
        diff = x - x.max(axis=-1, keepdims=True)
        used = diff >= self.diff_min
        scaled = high_multiply(np.where(used, diff, 0) << self.shift, self.multiplier)
        e = exp_on_negative(scaled)
        terms = np.where(used, rounding_shift(e, SOFTMAX_SUM_BITS), 0)
        total = terms.sum(axis=-1, keepdims=True)
        headroom = 32 - _bit_length(total)
        reciprocal = one_over_one_plus((total << headroom) - (1 << 31))
        level = rounding_shift(high_multiply(e, reciprocal), SOFTMAX_SUM_BITS - headroom + 23)
        return np.where(used, np.clip(level - 128, -128, 127), -128).astype(np.int8)

    def exponentials(self) -> Int64:
        """exp(-d * x_scale) for a difference d = 0..255 from the maximum, Q0.31; 0 where unused."""
        diff = -np.arange(256, dtype=np.int64)
        used = diff >= self.diff_min
        scaled = high_multiply(np.where(used, diff, 0) << self.shift, self.multiplier)
        return np.where(used, exp_on_negative(scaled), 0)

    def problem(self) -> str:
        """Why the library cannot compute it, or ''."""
        if self.shift < 0:
            return "the input's scale is below 2^-26"
        return ""


def _bit_length(value: Int64) -> Int64:
    return np.asarray(np.frexp(value.astype(np.float64))[1], np.int64)
