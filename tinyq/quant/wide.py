"""Requantization of layers with int16 tensors: one 64-bit product, rounded once.

onnxruntime has no integer kernels for int16, so there is no integer rule to equal: it computes such
a layer in float32. What is computed here is the real result, rounded half up:

    y = clamp((acc * M[c] + a[c]) >> shift, qmin, qmax)

acc is the exact sum of products. M is the real scale times 2^shift, to the nearest integer, and a
holds bias, zero points and the half that rounds. The sum before the shift is off from the real
number by at most ``deviation`` outputs, far below one, so that y is the real result rounded unless
that lies within ``deviation`` of a half. docs/decisions/0007-int16-activations.md has the reasons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tinyq.quant.staircase import Int64, frozen

Float64 = NDArray[np.float64]

FLOAT32_UNIT = 2.0**-24
"""Largest relative error of one rounding to float32."""

_MOST_DEVIATION = 2.0**-8
_LARGEST_SHIFT = 62


@dataclass(frozen=True, eq=False)
class WideLinear:
    """What a linear layer with int16 input or output stands for, in output levels.

    y = acc * scale + bias - x_zero_point * sum(w) * scale + zero_point, rounded half up and clamped

    scale: float64[C], x_scale * w_scale / y_scale. bias: float64[C], in output levels. offset:
    int64[C], ``-x_zero_point * sum(w)``. x_low, x_high: the range of the input's integers.
    """

    scale: Float64
    bias: Float64
    offset: Int64
    zero_point: int
    qmin: int
    qmax: int
    x_low: int
    x_high: int

    def levels(self, acc: Int64) -> Float64:
        """Outputs before rounding and clamp, float64[..., C], of raw accumulators int64[..., C]."""
        found: Float64 = (acc + self.offset) * self.scale + self.bias + self.zero_point
        return found

    def __call__(self, acc: Int64) -> Int64:
        """Outputs int64[C, n] of raw accumulators int64[C, n], for the analysis of ranges."""
        levels = np.floor(self.levels(acc.T).T + 0.5)
        return np.clip(levels, self.qmin, self.qmax).astype(np.int64)

    def requantization(self, low: Int64, high: Int64) -> WideRequant:
        """Parameters that are right for accumulators int64[C] from ``low`` to ``high``."""
        constant = [
            Fraction(float(b)) + int(o) * Fraction(float(s)) + self.zero_point
            for b, o, s in zip(self.bias, self.offset, self.scale, strict=True)
        ]
        return wide_requant(self.scale, constant, low, high, self.qmin, self.qmax)


@dataclass(frozen=True, eq=False)
class WideRequant:
    """y = clamp((acc * multiplier[c] + addend[c]) >> shift, qmin, qmax), in int64.

    multiplier: int32[C]. addend: int64[C]. Everything fits int64 for the accumulators that it was
    made for. deviation: how far the level before rounding may be from the real one, in outputs.
    """

    multiplier: NDArray[np.int32]
    addend: Int64
    shift: int
    qmin: int
    qmax: int
    deviation: float

    def __post_init__(self) -> None:
        for name in ("multiplier", "addend"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def __call__(self, acc: Int64) -> Int64:
        """Outputs int64[..., C] of raw accumulators int64[..., C]."""
        total = np.asarray(acc, np.int64) * self.multiplier.astype(np.int64) + self.addend
        levels: Int64 = np.clip(total >> self.shift, self.qmin, self.qmax)
        return levels


def wide_requant(
    scale: Float64,
    constant: list[Fraction],
    low: Int64,
    high: Int64,
    qmin: int,
    qmax: int,
    terms: int = 1,
) -> WideRequant:
    """Parameters for outputs ``acc * scale[c] + constant[c]``, accumulators in [low, high].

    ``terms``: how many channels one output adds up.

    The largest shift at which multipliers fit int32, levels int32 and sums int64. Raises ValueError
    where that leaves less than eight bits below the output's last one.
    """
    ends = [max(abs(int(a)), abs(int(b))) for a, b in zip(low, high, strict=True)]
    exact = [Fraction(float(s)) for s in scale]
    for shift in range(_LARGEST_SHIFT, 0, -1):
        multipliers = [_nearest(s * 2**shift) for s in exact]
        if max(map(abs, multipliers), default=0) >= 2**31:
            continue
        addends = [_nearest((c + Fraction(1, 2)) * 2**shift) for c in constant]
        sums = [e * abs(m) + abs(a) for e, m, a in zip(ends, multipliers, addends, strict=True)]
        if max(sums, default=0) * terms < min(2**63, 2 ** (31 + shift)):
            break
    else:
        raise ValueError("the scales are too far apart for 64-bit sums")
    deviation = _deviation(exact, constant, ends, shift, max(abs(qmin), abs(qmax)) + 1)
    if deviation > _MOST_DEVIATION:
        raise ValueError(f"the scales leave an error of {deviation:.2g} outputs")
    return WideRequant(
        np.array(multipliers, np.int32), np.array(addends, np.int64), shift, qmin, qmax, deviation
    )


def _nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _deviation(
    scale: list[Fraction], constant: list[Fraction], ends: list[int], shift: int, top: int
) -> float:
    """Half a unit of M for every unit of the largest accumulator that is not clamped, and of a."""
    reach = [
        min(Fraction(end), (top + abs(c)) / abs(s)) if s else Fraction(end)
        for s, c, end in zip(scale, constant, ends, strict=True)
    ]
    return float((max(reach, default=Fraction(0)) + 1) / 2 ** (shift + 1))
