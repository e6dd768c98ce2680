"""Placement: offsets for buffers with lifetimes, as low as a greedy search with restarts finds.

The problem (dynamic storage allocation) is NP-hard. Each order of the buffers gives a placement by
first fit; a few good orders are tried, then random exchanges of the best one, until the lower bound
is met or the budget is spent. The seed is fixed, so that the same network gives the same plan.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 16
"""Of every offset, in bytes: what a 128-bit vector load can ask for."""

_BUDGET = 200_000
"""Comparisons of two buffers that hill climbing may spend: about 0.1 s."""

_SEED = 1

_NEVER = 1 << 40
"""A period that leaves one offset."""


@dataclass(frozen=True)
class Span:
    """A buffer of ``bytes`` that is live at times ``start`` to ``end``, both included."""

    start: int
    end: int
    bytes: int

    @property
    def aligned(self) -> int:
        """Size rounded up, which is what keeps the next buffer aligned."""
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Allowance:
    """How an output may lie over an input that dies at its layer, instead of apart from it.

    exact: at the same offset. distance: at least this many bytes lower (None: not at all). phase:
    wherever the offsets differ by a multiple of this many bytes (0: not at all).
    """

    exact: bool = False
    distance: int | None = None
    phase: int = 0

    @property
    def aligned(self) -> int | None:
        """The distance rounded up, so that both offsets are aligned."""
        return None if self.distance is None else -(-self.distance // ALIGNMENT) * ALIGNMENT

    def union(self, output: int, source: int) -> int:
        """Least bytes that both need together, from their sizes."""
        options = [output + source]
        if self.exact or self.phase:
            options.append(max(output, source))
        if self.aligned is not None:
            options.append(max(output, source + max(self.aligned, 0)))
        return min(options)


Allowances = Mapping[tuple[int, int], Allowance]
"""By (output, input), indices of spans."""


def lower_bound(spans: Sequence[Span], allowances: Allowances | None = None) -> int:
    """Bytes that every placement needs: the live ones at the fullest time.

    All live buffers but the topmost one take their aligned size; an output counts only for what it
    adds to the input that it may lie over.
    """
    indices = range(len(spans))
    saved: dict[int, int] = {}
    for (output, source), allowance in (allowances or {}).items():
        pair = spans[output].aligned, spans[source].aligned
        gain = sum(pair) - allowance.union(*pair)
        saved[spans[output].start] = max(saved.get(spans[output].start, 0), gain)
    starting: dict[int, list[int]] = {}
    for k in indices:
        starting.setdefault(spans[k].start, []).append(k)
    live: list[int] = []
    most = 0
    for time in sorted(starting):
        live = [k for k in live if spans[k].end >= time] + starting[time]
        slack = max(spans[k].aligned - spans[k].bytes for k in live)
        here = sum(spans[k].aligned for k in live) - saved.get(time, 0) - slack
        most = max(most, here)
    return most


def place(spans: Sequence[Span], allowances: Allowances | None = None) -> list[int]:
    """Offset of each buffer; those that are live together do not overlap, but for allowances."""
    if not spans:
        return []
    conflicts = _Conflicts.of(spans, allowances or {})
    indices = range(len(spans))
    orders = [
        sorted(indices, key=lambda k: (-spans[k].bytes, spans[k].start)),
        sorted(indices, key=lambda k: (-spans[k].bytes * _duration(spans[k]), spans[k].start)),
        sorted(indices, key=lambda k: (-_duration(spans[k]), -spans[k].bytes)),
        sorted(indices, key=lambda k: (spans[k].start, -spans[k].bytes)),
        sorted(indices, key=lambda k: (-spans[k].end, -spans[k].start, -spans[k].bytes)),
    ]
    best: list[int] = []
    best_size, best_order = -1, orders[0]
    for order in orders:
        offsets, size = _greedy(spans, conflicts, order)
        if best_size < 0 or size < best_size:
            best, best_size, best_order = offsets, size, order
    return _climb(spans, allowances or {}, conflicts, best_order, best, best_size)


def _duration(span: Span) -> int:
    return span.end - span.start + 1


@dataclass(frozen=True, eq=False)
class _Conflicts:
    """For each buffer those that are live at some common time, and how far off they must begin.

    ``others[k]`` has (j, below, above, period): k begins at least ``below`` bytes under j or at
    least ``above`` over it (negative: that far inside), or a multiple of ``period`` from where j
    begins (0: nowhere else).
    """

    others: list[list[tuple[int, int, int, int]]]

    @classmethod
    def of(cls, spans: Sequence[Span], allowances: Allowances) -> _Conflicts:
        """By one sweep over the starts."""
        others: list[list[tuple[int, int, int, int]]] = [[] for _ in spans]
        live: list[int] = []
        for k in sorted(range(len(spans)), key=lambda k: spans[k].start):
            live = [other for other in live if spans[other].end >= spans[k].start]
            for j in live:
                period = _period(allowances.get((k, j)) or allowances.get((j, k)))
                k_under_j = _gap(spans[k].aligned, allowances.get((k, j)))
                j_under_k = _gap(spans[j].aligned, allowances.get((j, k)))
                others[k].append((j, k_under_j, j_under_k, period))
                others[j].append((k, j_under_k, k_under_j, period))
            live.append(k)
        return cls(others)

    def __len__(self) -> int:
        return sum(map(len, self.others))


def _period(allowance: Allowance | None) -> int:
    if allowance is not None and allowance.phase:
        return math.lcm(allowance.phase, ALIGNMENT)
    return _NEVER if allowance is not None and allowance.exact else 0


def _gap(size: int, allowance: Allowance | None) -> int:
    """How far under another buffer one of ``size`` has to begin."""
    if allowance is None or allowance.aligned is None:
        return size
    return min(size, allowance.aligned)


def _greedy(
    spans: Sequence[Span], conflicts: _Conflicts, order: Sequence[int]
) -> tuple[list[int], int]:
    """Place in ``order``, each buffer as low as those placed before allow."""
    offsets = [-1] * len(spans)
    size = 0
    for k in order:
        forbidden = sorted(
            (offsets[j] - below, offsets[j] + above, offsets[j], period)
            for j, below, above, period in conflicts.others[k]
            if offsets[j] >= 0
        )
        offsets[k] = _first_fit(forbidden)
        size = max(size, offsets[k] + spans[k].bytes)
    return offsets, size


def _first_fit(forbidden: Sequence[tuple[int, int, int, int]]) -> int:
    """The least offset inside none of the open intervals (low, high), sorted by low.

    With (base, period) an interval leaves out the offsets a multiple of ``period`` from ``base``.
    """
    offset, moved = 0, True
    while moved:
        moved = False
        for low, high, base, period in forbidden:
            if low >= offset:
                break
            if offset < high and not (period and (offset - base) % period == 0):
                step = (base - offset) % period if period else high
                offset = min(high, offset + step)
                moved = True
    return offset


def _climb(
    spans: Sequence[Span], allowances: Allowances, conflicts: _Conflicts, order: list[int],
    best: list[int], size: int,
) -> list[int]:  # fmt: skip
    """Move or exchange buffers of the order again and again, keeping what is not worse."""
    target = lower_bound(spans, allowances)
    rounds = _BUDGET // (len(spans) + len(conflicts)) if len(spans) > 1 else 0
    generator = random.Random(_SEED)
    current, current_size = list(order), size
    for turn in range(rounds):
        if size <= target:
            break
        trial = list(current)
        a, b = generator.randrange(len(trial)), generator.randrange(len(trial))
        if turn % 2:
            trial[a], trial[b] = trial[b], trial[a]
        else:
            trial.insert(b, trial.pop(a))
        offsets, reached = _greedy(spans, conflicts, trial)
        if reached <= current_size:
            current, current_size = trial, reached
        if reached < size:
            best, size = offsets, reached
    return best
