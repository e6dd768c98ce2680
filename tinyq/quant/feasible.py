"""Which (multiplier, addend) pairs climb a staircase: a convex polygon for each channel.

The requantization ``(mulhi(acc << pre, M) + a) >> post`` reaches level v exactly when
``m * acc + alpha >= v`` with ``m = M * 2**(pre - post - 32)`` and ``alpha = a * 2**-post``: both
floors disappear because the addend is an integer. A step to v at threshold T is two linear
constraints, ``m * T + alpha >= v`` and ``m * (T - 1) + alpha < v``, so the exact pairs of a channel
form a convex polygon whatever the shifts are. It is found once, in float64, and is then searched
for integer points at each pair of shifts, in exact int64 arithmetic. Rounding ties to even puts
the odd levels two units of the addend higher, which is again a polygon, one for each shift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyq.quant.requantize import Ties, late_levels
from tinyq.quant.staircase import Int64, Staircase

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Evaluate = Callable[[Float64], tuple[Float64, Float64]]
"""A concave function of m, per row: (value, slope) at m."""

SLOPE_MARGIN = 1 / 8
"""How far the slope may be from its hint, relatively."""

_ADDEND_ORDER = (0.5, 0.375, 0.625, 0.25, 0.75, 0.125, 0.875, 0.0, 1.0)
"""Where in the range of feasible addends to look, middle first; all of them if they are nine."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Constraints of N rows (a channel each, or variants of one channel) with K steps.

    level: int64[K]. below, above: int64[N, K]; at ``below`` and lower the output must be under the
    level, at ``above`` and higher it must have reached it. A strict staircase has
    ``above == below + stride``; a step that may fall anywhere in a gap has more. A row's constraint
    outside its reachable [lo, hi] (int64[N]) does not count.
    stride: int64[N], how far apart reachable accumulators are.
    hint: float64[N], the expected slope (output units per accumulator).
    ties: "up", or the levels that win an exact half; the others begin two units of the
        addend (2 * 2**-post) later.
    """

    level: Int64
    below: Int64
    above: Int64
    lo: Int64
    hi: Int64
    stride: Int64
    hint: Float64
    ties: Ties = "up"

    @classmethod
    def of(cls, stair: Staircase, hint: Float64, *, ties: Ties = "up") -> Steps:
        """Return the constraints of every channel of a staircase."""
        level = np.arange(stair.qmin + 1, stair.qmax + 1, dtype=np.int64)
        stride = np.asarray(stair.stride)
        below, above = stair.thresholds - stride[:, None], stair.thresholds
        return cls(level, below, above, stair.lo, stair.hi, stride, hint, ties)

    def rows(self, index: Int64) -> Steps:
        """Return the rows named by ``index``, in that order."""
        return Steps(
            self.level,
            self.below[index],
            self.above[index],
            self.lo[index],
            self.hi[index],
            self.stride[index],
            self.hint[index],
            self.ties,
        )

    @property
    def late(self) -> Int64:
        """int64[K], units of the addend by which each level begins late."""
        return late_levels(self.level, self.ties)

    @property
    def upper_on(self) -> Bool:
        """bool[N, K], where the upper constraint can be broken by a reachable accumulator."""
        return self.below >= self.lo[:, None]

    @property
    def lower_on(self) -> Bool:
        """bool[N, K], where the lower constraint can be broken by a reachable accumulator."""
        return self.above <= self.hi[:, None]


@dataclass(frozen=True, eq=False)
class Polygons:
    """Feasible region of each row: slopes, offsets, and the constraints that bound it.

    width: float64[N], most freedom in the offset that one slope leaves (output units; not above 0:
    nothing is feasible). slope, offset: float64[N], the point in the middle of that freedom.
    slope_max: float64[N]. offset_min, offset_max: float64[N] over the region.
    tight_upper, tight_lower: int64[N, 2], steps whose constraints limit the width.
    """

    width: Float64
    slope: Float64
    offset: Float64
    slope_max: Float64
    offset_min: Float64
    offset_max: Float64
    tight_upper: Int64
    tight_lower: Int64


def _maximize(evaluate: Evaluate, left: Float64, right: Float64) -> tuple[Float64, Float64]:
    """Bracket each row's maximum of a concave, piecewise linear function: cutting planes.

    Returns (left, right) whose pieces meet at the maximum: both ends once the maximum is found are
    on the pieces that bound it.
    """
    left, right = left.copy(), right.copy()
    (value_l, slope_l), (value_r, slope_r) = evaluate(left), evaluate(right)
    right = np.where(slope_l <= 0, left, right)
    left = np.where((slope_r >= 0) & (slope_l > 0), right, left)
    active = left < right
    for _ in range(64):
        if not active.any():
            break
        fall = np.where(active, slope_l - slope_r, 1.0)
        meet = (value_r - value_l + slope_l * left - slope_r * right) / fall
        meet = np.clip(meet, left, right)
        bound = value_l + slope_l * (meet - left)
        value, slope = evaluate(np.where(active, meet, left))
        # Where the function touches its bound, the two pieces already are those of the maximum.
        active &= value < bound - 1e-12 * (1 + np.abs(bound))
        rising, falling = active & (slope > 0), active & (slope <= 0)
        left, value_l, slope_l = _choose(rising, (meet, value, slope), (left, value_l, slope_l))
        right, value_r, slope_r = _choose(falling, (meet, value, slope), (right, value_r, slope_r))
    return left, right


def _choose(where: Bool, new: tuple[Float64, ...], old: tuple[Float64, ...]) -> tuple[Float64, ...]:
    return tuple(np.where(where, n, o) for n, o in zip(new, old, strict=True))


def _root(evaluate: Evaluate, outside: Float64) -> Float64:
    """Newton's method for a concave function from where it is negative: never overshoots."""
    m = outside
    for _ in range(64):
        value, slope = evaluate(m)
        step = np.where(value < 0, value / np.where(slope == 0, 1.0, slope), 0.0)
        if np.all(np.abs(step) <= 1e-15 * m):
            break
        m = m - step
    return m


class _Envelope:
    """Upper and lower limits of the offset as functions of the slope m, per row."""

    def __init__(self, steps: Steps, unit: Float64) -> None:
        level = steps.level + steps.late * unit[:, None]
        self._upper_on, self._lower_on = steps.upper_on, steps.lower_on
        self._upper_level = np.where(self._upper_on, level, np.inf)
        self._lower_level = np.where(self._lower_on, level, -np.inf)
        self._below = steps.below.astype(np.float64)
        self._above = steps.above.astype(np.float64)
        self._row = np.arange(len(steps.lo))

    def upper_step(self, m: Float64) -> Int64:
        step: Int64 = np.argmin(self._upper_level - self._below * m[:, None], axis=1)
        return step

    def lower_step(self, m: Float64) -> Int64:
        step: Int64 = np.argmax(self._lower_level - self._above * m[:, None], axis=1)
        return step

    def upper(self, m: Float64) -> tuple[Float64, Float64]:
        k = self.upper_step(m)
        slope = -self._below[self._row, k]
        return self._upper_level[self._row, k] + slope * m, slope

    def lower_negated(self, m: Float64) -> tuple[Float64, Float64]:
        k = self.lower_step(m)
        slope = self._above[self._row, k]
        return slope * m - self._lower_level[self._row, k], slope

    def width(self, m: Float64) -> tuple[Float64, Float64]:
        (upper, rise), (lower, fall) = self.upper(m), self.lower_negated(m)
        return upper + lower, rise + fall


def solve(steps: Steps, post: Int64) -> Polygons:
    """Find the polygon of each row; every row needs at least one step inside (lo, hi].

    post: int64[N]; matters only where ties do not go up.
    """
    envelope = _Envelope(steps, np.exp2(-post.astype(np.float64)))
    start, end = steps.hint * (1 - SLOPE_MARGIN), steps.hint * (1 + SLOPE_MARGIN)
    left, right = _maximize(envelope.width, start, end)
    slope = _meeting(envelope.width, left, right)
    width, _ = envelope.width(slope)

    feasible = width > 0
    low = np.where(feasible, _root(envelope.width, np.where(feasible, start, slope)), slope)
    high = np.where(feasible, _root(envelope.width, np.where(feasible, end, slope)), slope)
    top = envelope.upper(slope)[0]
    return Polygons(
        width=width,
        slope=slope,
        offset=top - width / 2,
        slope_max=high,
        offset_min=-_highest(envelope.lower_negated, low, high),
        offset_max=_highest(envelope.upper, low, high),
        tight_upper=np.stack([envelope.upper_step(left), envelope.upper_step(right)], axis=1),
        tight_lower=np.stack([envelope.lower_step(left), envelope.lower_step(right)], axis=1),
    )


def _meeting(evaluate: Evaluate, left: Float64, right: Float64) -> Float64:
    """Where the pieces at both ends of a bracket meet; the left end if it has no width."""
    (value_l, slope_l), (value_r, slope_r) = evaluate(left), evaluate(right)
    fall = slope_l - slope_r
    ahead = (value_r - value_l + slope_r * (left - right)) / np.where(fall > 0, fall, 1.0)
    ahead = np.clip(np.where(fall > 0, ahead, 0.0), 0.0, right - left)
    meeting: Float64 = left + ahead
    return meeting


def _highest(evaluate: Evaluate, low: Float64, high: Float64) -> Float64:
    left, right = _maximize(evaluate, low, high)
    return evaluate(_meeting(evaluate, left, right))[0]


def integer_points(
    steps: Steps, polygons: Polygons, pre: int, post: Int64
) -> tuple[Int64, Int64, Bool]:
    """Look for an exact (multiplier, addend) per row at these shifts.

    post: int64[N]. Returns (multiplier int64[N], addend int64[N], found bool[N]).
    """
    n = len(steps.lo)
    unit = np.exp2(post.astype(np.float64))
    first = np.ceil(polygons.offset_min * unit)
    count = np.floor(polygons.offset_max * unit) - first
    multiplier, addend = np.ones(n, np.int64), np.zeros(n, np.int64)
    pending = (count >= 0) & (polygons.width > 0) & (np.abs(first) + count < 2.0**31)
    found = np.zeros(n, np.bool_)
    for place in _ADDEND_ORDER:
        todo = np.flatnonzero(pending)
        if not len(todo):
            break
        a = (first[todo] + np.rint(count[todo] * place)).astype(np.int64)
        low, high = _multipliers(steps.rows(todo), pre, post[todo], a)
        hit = low <= high
        index = todo[hit]
        multiplier[index] = (low[hit] + high[hit]) >> 1
        addend[index] = a[hit]
        found[index] = True
        pending[index] = False
    return multiplier, addend, found


def _multipliers(steps: Steps, pre: int, post: Int64, addend: Int64) -> tuple[Int64, Int64]:
    """Interval of exact multipliers int64[N] for given addends, empty if low > high."""
    need = (steps.level << post[:, None]) + steps.late - addend[:, None]
    # A needed top word beyond 2**30 is out of reach of a product of two int31; 2**31 leaves
    # the shifted numerator inside int64.
    reach = np.abs(need) < 2**31
    numerator = np.where(reach, need, 0) << 32
    low = np.ones(len(addend), np.int64)
    high = np.full(len(addend), 2**31 - 1, np.int64)
    # acc * M >= numerator wherever the level must be reached, acc * M < numerator where it must
    # not; dividing by a negative accumulator turns the inequality round.
    for accumulators, on, strict in (
        (steps.above, steps.lower_on, 0),
        (steps.below, steps.upper_on, 1),
    ):
        acc = accumulators << pre
        bad = np.any(on & ~reach, axis=1)
        zero = on & (acc == 0)
        bad |= np.any(zero & ((numerator > 0) if strict == 0 else (numerator <= 0)), axis=1)
        divisor = np.where(acc == 0, 1, acc)
        floor = numerator // divisor
        ceil = floor + (floor * divisor != numerator)
        positive, negative = on & (acc > 0), on & (acc < 0)
        if strict:
            upper, lower = np.where(positive, ceil - 1, 2**31), np.where(negative, floor + 1, 1)
        else:
            upper, lower = np.where(negative, floor, 2**31), np.where(positive, ceil, 1)
        high = np.where(bad, 0, np.minimum(high, upper.min(axis=1)))
        low = np.maximum(low, lower.max(axis=1))
    return low, high
