"""Placement: offsets for buffers with lifetimes, as low as a greedy search with restarts finds.

The problem (dynamic storage allocation) is NP-hard. Each order of the buffers gives a placement by
first fit; a few good orders are tried, then random exchanges of the best one, until the lower bound
is met or the budget is spent. The seed is fixed, so that the same network gives the same plan.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Allowance:
    """How an output may lie over an input that dies at its layer, instead of apart from it.

    exact: at the same offset. distance: at least this many bytes lower (None: not at all).
    """

    exact: bool = False
    distance: int | None = None

    @property
    def aligned(self) -> int | None:
        """The distance rounded up, so that both offsets are aligned."""
        return None if self.distance is None else -(-self.distance // ALIGNMENT) * ALIGNMENT

    def union(self, output: int, source: int) -> int:
        """Least bytes that both need together, from their sizes."""
        options = [output + source]
        if self.exact:
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

    ``others[k]`` has (j, below, above, exact): k begins at least ``below`` bytes under j or at
    least ``above`` over it, or, if exact, where j begins. Negative: it may begin that far inside.
    """

    others: list[list[tuple[int, int, int, bool]]]

    @classmethod
    def of(cls, spans: Sequence[Span], allowances: Allowances) -> _Conflicts:
        """By one sweep over the starts."""
        others: list[list[tuple[int, int, int, bool]]] = [[] for _ in spans]
        live: list[int] = []
        for k in sorted(range(len(spans)), key=lambda k: spans[k].start):
            live = [other for other in live if spans[other].end >= spans[k].start]
            for j in live:
                exact = any(
                    a is not None and a.exact
                    for a in (allowances.get((k, j)), allowances.get((j, k)))
                )
                k_under_j = _gap(spans[k].aligned, allowances.get((k, j)))
                j_under_k = _gap(spans[j].aligned, allowances.get((j, k)))
                others[k].append((j, k_under_j, j_under_k, exact))
                others[j].append((k, j_under_k, k_under_j, exact))
            live.append(k)
        return cls(others)

    def __len__(self) -> int:
        return sum(map(len, self.others))


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
        forbidden: list[tuple[int, int]] = []
        for j, below, above, exact in conflicts.others[k]:
            at = offsets[j]
            if at < 0:
                continue
            if exact and at - below < at < at + above:
                forbidden += [(at - below, at), (at, at + above)]
            else:
                forbidden.append((at - below, at + above))
        offsets[k] = _first_fit(sorted(forbidden))
        size = max(size, offsets[k] + spans[k].bytes)
    return offsets, size


def _first_fit(forbidden: Sequence[tuple[int, int]]) -> int:
    """The least offset inside none of the open intervals (low, high), sorted by low."""
    offset = 0
    for low, high in forbidden:
        if low < offset < high:
            offset = high
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
