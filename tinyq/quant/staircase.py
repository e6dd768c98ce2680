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
    qmin, qmax: the output's limits.
    thresholds: int64[C, qmax - qmin]; ``thresholds[c, i]`` is the smallest accumulator in
        [lo, hi + 1] whose output is at least ``qmin + 1 + i`` (lo: all of them; hi + 1: none).
    """

    lo: Int64
    hi: Int64
    qmin: int
    qmax: int
    thresholds: Int64

    def __post_init__(self) -> None:
        steps = self.qmax - self.qmin
        if steps < 1 or self.thresholds.shape != (len(self.lo), steps):
            raise ValueError("thresholds must be [C, qmax - qmin] with qmax above qmin")
        if np.any(self.lo > self.hi):
            raise ValueError("a channel's lowest accumulator is above its highest")
        if np.any(np.diff(self.thresholds, axis=1) < 0):
            raise ValueError("thresholds must not decrease: the oracle is not monotone")
        for name in ("lo", "hi", "thresholds"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.lo)

    @property
    def reachable(self) -> int:
        """Number of reachable accumulators, over all channels."""
        return int(np.sum(self.hi - self.lo + 1))

    def output(self, channel: int, accumulators: Int64) -> Int64:
        """Outputs int64[n] that the oracle wants for accumulators int64[n] of one channel."""
        return self.qmin + np.searchsorted(self.thresholds[channel], accumulators, side="right")


def build_staircase(oracle: Oracle, lo: Int64, hi: Int64, qmin: int, qmax: int) -> Staircase:
    """Find every threshold of ``oracle`` between ``lo`` and ``hi`` (int64[C], included).

    Bisects all thresholds of all channels together: as many oracle calls on [C, qmax - qmin] as
    the widest range has bits. Right for any monotone oracle. A single output (qmin = qmax) gets a
    neighbour that nothing reaches.
    """
    lo = np.asarray(lo, np.int64)
    hi = np.asarray(hi, np.int64)
    if qmin == qmax:
        if qmin > -128:
            return Staircase(lo, hi, qmin - 1, qmax, lo[:, None])
        return Staircase(lo, hi, qmin, qmax + 1, hi[:, None] + 1)
    levels = np.arange(qmin + 1, qmax + 1, dtype=np.int64)
    size = max(1, _CHUNK // max(1, len(lo)))
    parts = [
        _bisect(oracle, lo, hi, levels[start : start + size])
        for start in range(0, len(levels), size)
    ]
    return Staircase(lo, hi, qmin, qmax, np.concatenate(parts, axis=1))


def _bisect(oracle: Oracle, lo: Int64, hi: Int64, levels: Int64) -> Int64:
    below = np.repeat(lo[:, None], len(levels), axis=1)
    above = np.repeat(hi[:, None] + 1, len(levels), axis=1)
    for _ in range(int(np.max(hi - lo, initial=0) + 1).bit_length()):
        # A settled threshold (below == above) may lie at hi + 1, which the oracle is not asked.
        middle = np.minimum((below + above) >> 1, hi[:, None])
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
