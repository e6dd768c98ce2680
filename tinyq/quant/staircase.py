"""A requantization seen as a staircase: the accumulators at which its int8 output steps up.

An oracle says what output a raw accumulator must give; it is monotone, so over the reachable
accumulators it is described completely by one threshold per output step. Synthesis and proof work
on the thresholds alone and never ask which oracle they came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Oracle = Callable[[Int64], Int64]
"""Maps raw accumulators int64[C, n] to outputs int64[C, n]; row c is monotone non-decreasing."""

_CHUNK = 1 << 20
"""Thresholds bisected at a time: bounds the memory that 16-bit outputs need."""


def frozen(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a read-only copy, so that a frozen dataclass is frozen all through."""
    copy = values.copy()
    copy.flags.writeable = False
    return copy


@dataclass(frozen=True, eq=False)
class Staircase:
    """Outputs of every reachable accumulator, per channel.

    lo, hi: int64[C], the reachable raw accumulators, both included.
    stride: int64[C], only ``lo + k * stride`` is reachable, ``hi`` among it; a number serves all.
    qmin, qmax: the output's limits.
    thresholds: int64[C, qmax - qmin]; ``thresholds[c, i]`` is the smallest accumulator in
        [lo, hi + stride], ``lo + k * stride``, whose output is at least ``qmin + 1 + i`` (lo: all
        of them; hi + stride: none).
    """

    lo: Int64
    hi: Int64
    qmin: int
    qmax: int
    thresholds: Int64
    stride: Int64 | int = 1

    def __post_init__(self) -> None:
        steps = self.qmax - self.qmin
        if steps < 1 or self.thresholds.shape != (len(self.lo), steps):
            raise ValueError("thresholds must be [C, qmax - qmin] with qmax above qmin")
        if np.any(self.lo > self.hi):
            raise ValueError("a channel's lowest accumulator is above its highest")
        if np.any(np.diff(self.thresholds, axis=1) < 0):
            raise ValueError("thresholds must not decrease: the oracle is not monotone")
        stride = np.broadcast_to(np.asarray(self.stride, np.int64), self.lo.shape)
        if np.any(stride < 1) or np.any((self.hi - self.lo) % stride):
            raise ValueError("a channel's highest accumulator is no whole strides above its lowest")
        object.__setattr__(self, "stride", stride)
        for name in ("lo", "hi", "thresholds", "stride"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.lo)

    @property
    def reachable(self) -> int:
        """Number of reachable accumulators, over all channels."""
        return int(np.sum((self.hi - self.lo) // self.stride + 1))

    def output(self, channel: int, accumulators: Int64) -> Int64:
        """Outputs int64[n] that the oracle wants for accumulators int64[n] of one channel."""
        return self.qmin + np.searchsorted(self.thresholds[channel], accumulators, side="right")


def build_staircase(
    oracle: Oracle, lo: Int64, hi: Int64, qmin: int, qmax: int, stride: Int64 | int = 1
) -> Staircase:
    """Find every threshold of ``oracle`` among ``lo``, ``lo + stride`` and so on to ``hi``.

    lo, hi: int64[C]; stride: int64[C], or a number for all.
    Bisects all thresholds of all channels together: as many oracle calls on [C, qmax - qmin] as
    the widest range has bits. Right for any monotone oracle. A single output (qmin = qmax) gets a
    neighbour that nothing reaches.
    """
    lo = np.asarray(lo, np.int64)
    hi = np.asarray(hi, np.int64)
    if qmin == qmax:
        if qmin > -128:
            return Staircase(lo, hi, qmin - 1, qmax, lo[:, None], stride)
        return Staircase(lo, hi, qmin, qmax + 1, (hi + stride)[:, None], stride)
    levels = np.arange(qmin + 1, qmax + 1, dtype=np.int64)
    size = max(1, _CHUNK // max(1, len(lo)))
    first, each = lo[:, None], np.broadcast_to(np.asarray(stride, np.int64), lo.shape)[:, None]
    last = (hi - lo) // each[:, 0]
    parts = [
        _bisect(lambda k: oracle(first + each * k), last, levels[start : start + size])
        for start in range(0, len(levels), size)
    ]
    return Staircase(lo, hi, qmin, qmax, first + each * np.concatenate(parts, axis=1), stride)


def _bisect(oracle: Oracle, last: Int64, levels: Int64) -> Int64:
    """Smallest arguments int64[C, K] from 0 to ``last`` (int64[C]) that reach the levels."""
    below = np.zeros((len(last), len(levels)), np.int64)
    above = np.repeat(last[:, None] + 1, len(levels), axis=1)
    for _ in range(int(np.max(last, initial=0) + 1).bit_length()):
        # A settled threshold (below == above) may lie at last + 1, which the oracle is not asked.
        middle = np.minimum((below + above) >> 1, last[:, None])
        reached = (oracle(middle) >= levels) & (below < above)
        np.copyto(above, middle, where=reached)
        np.copyto(below, middle + 1, where=~reached & (below < above))
    return above


def accumulator_bounds(weights: Int64, x_min: int, x_max: int) -> tuple[Int64, Int64]:
    """Reachable raw accumulators of ``sum(x * w)`` for inputs in [x_min, x_max].

    weights: integers [C, taps]. Returns (lo, hi), int64[C], both reached. A padded tap reads the
    input's zero point, which lies inside the range, so padding needs no case of its own.
    """
    w = np.asarray(weights, np.int64).reshape(len(weights), -1)
    low, high = w * x_min, w * x_max
    return np.minimum(low, high).sum(axis=1), np.maximum(low, high).sum(axis=1)


def accumulator_strides(weights: Int64) -> Int64:
    """Largest common factors int64[C] of the weights [C, taps]: accumulators are multiples of it.

    Weights of few levels, written times a factor that makes their biases' unit finer, reach few of
    the accumulators between their bounds.
    """
    rows = np.abs(np.asarray(weights, np.int64).reshape(len(weights), -1))
    strides: Int64 = np.maximum(np.gcd.reduce(rows, axis=1), 1)
    return strides
