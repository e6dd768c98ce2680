"""Placement: offsets for buffers with lifetimes, as low as a greedy search with restarts finds.

The problem (dynamic storage allocation) is NP-hard. Each order of the buffers gives a placement by
best fit; a few good orders are tried, then random exchanges of the best one, until the lower bound
is met or the budget is spent. The seed is fixed, so that the same network gives the same plan.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16
"""Of every offset, in bytes: what a 128-bit vector load can ask for."""

_BUDGET = 200_000
"""Comparisons of two buffers that hill climbing may spend: about 0.1 s."""

_SEED = 1


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


def lower_bound(spans: Sequence[Span]) -> int:
    """Bytes that every placement needs: the live ones at the fullest time.

    All live buffers but the topmost one take their aligned size.
    """
    times = sorted({span.start for span in spans})
    starting = _grouped(spans, [span.start for span in spans])
    live: list[Span] = []
    most = 0
    for time in times:
        live = [span for span in live if span.end >= time] + starting[time]
        slack = max(span.aligned - span.bytes for span in live)
        most = max(most, sum(span.aligned for span in live) - slack)
    return most


def _grouped(spans: Sequence[Span], keys: Sequence[int]) -> dict[int, list[Span]]:
    groups: dict[int, list[Span]] = {}
    for key, span in zip(keys, spans, strict=True):
        groups.setdefault(key, []).append(span)
    return groups


def place(spans: Sequence[Span]) -> list[int]:
    """Offset of each buffer; buffers that are live together do not overlap."""
    if not spans:
        return []
    conflicts = _conflicts(spans)
    indices = range(len(spans))
    orders = [
        sorted(indices, key=lambda k: (-spans[k].bytes, spans[k].start)),
        sorted(indices, key=lambda k: (-spans[k].bytes * _duration(spans[k]), spans[k].start)),
        sorted(indices, key=lambda k: (-_duration(spans[k]), -spans[k].bytes)),
        sorted(indices, key=lambda k: (spans[k].start, -spans[k].bytes)),
    ]
    best: list[int] = []
    best_size, best_order = -1, orders[0]
    for order in orders:
        offsets, size = _greedy(spans, conflicts, order)
        if best_size < 0 or size < best_size:
            best, best_size, best_order = offsets, size, order
    return _climb(spans, conflicts, best_order, best, best_size)


def _duration(span: Span) -> int:
    return span.end - span.start + 1


def _conflicts(spans: Sequence[Span]) -> list[list[int]]:
    """For each buffer those that are live at some common time, by one sweep over the starts."""
    conflicts: list[list[int]] = [[] for _ in spans]
    live: list[int] = []
    for k in sorted(range(len(spans)), key=lambda k: spans[k].start):
        live = [other for other in live if spans[other].end >= spans[k].start]
        for other in live:
            conflicts[k].append(other)
            conflicts[other].append(k)
        live.append(k)
    return conflicts


def _greedy(
    spans: Sequence[Span], conflicts: list[list[int]], order: Sequence[int]
) -> tuple[list[int], int]:
    """Place in ``order``, each buffer into the smallest gap that holds it."""
    offsets = [-1] * len(spans)
    size = 0
    for k in order:
        taken = sorted(
            (offsets[other], offsets[other] + spans[other].aligned)
            for other in conflicts[k]
            if offsets[other] >= 0
        )
        offsets[k] = _best_fit(taken, spans[k].bytes)
        size = max(size, offsets[k] + spans[k].bytes)
    return offsets, size


def _best_fit(taken: Sequence[tuple[int, int]], wanted: int) -> int:
    top, found, room = 0, -1, -1
    for low, high in taken:
        gap = low - top
        if gap >= wanted and (room < 0 or gap < room):
            found, room = top, gap
        top = max(top, high)
    return top if found < 0 else found


def _climb(
    spans: Sequence[Span], conflicts: list[list[int]], order: list[int], best: list[int], size: int
) -> list[int]:
    """Exchange two buffers of the order again and again, keeping what is not worse."""
    target = lower_bound(spans)
    rounds = _BUDGET // (len(spans) + sum(map(len, conflicts))) if len(spans) > 1 else 0
    generator = random.Random(_SEED)
    current, current_size = list(order), size
    for _ in range(rounds):
        if size <= target:
            break
        trial = list(current)
        a, b = generator.randrange(len(trial)), generator.randrange(len(trial))
        trial[a], trial[b] = trial[b], trial[a]
        offsets, reached = _greedy(spans, conflicts, trial)
        if reached <= current_size:
            current, current_size = trial, reached
        if reached < size:
            best, size = offsets, reached
    return best
