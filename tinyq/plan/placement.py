"""Placement: offsets for buffers with lifetimes, as low as two heuristics find.

The problem (dynamic storage allocation) is NP-hard. Each order of the buffers gives a placement by
first fit; a few good orders are tried, then random exchanges of the best one. Where that does not
meet the lower bound, buffers are placed in the order of time within a cap that is raised from the
bound on, several partial placements at once: in chains of layers, whose results have to lie lower
than what they read, buffers must keep off the ends, which first fit never does. The seed is fixed,
so that the same network gives the same plan.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

ALIGNMENT = 16
"""Of every buffer, in bytes: what a 128-bit vector load can ask for."""

_BUDGET = 200_000
"""Comparisons of two buffers that hill climbing may spend: about 0.1 s."""

_SEED = 1

_WIDTH = 16
"""Partial placements that are kept."""

_BEAM_BUDGET = 400_000
"""Comparisons that one search within a cap may take: large problems keep fewer placements, and
those with which two would take more are not searched."""

_CAPS = (1.0, 1.0025, 1.005, 1.01, 1.02, 1.04, 1.08, 1.16)
"""Of the lower bound: the caps that are tried."""

_NEVER = 1 << 40
"""A period that leaves one offset."""


def aligned(size: int) -> int:
    """``size`` rounded up, which is what keeps the next buffer aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Segment:
    """From time ``start`` to ``end``, both included, bytes ``low`` to ``high`` are in use."""

    start: int
    end: int
    low: int
    high: int

    @property
    def bytes(self) -> int:
        """What it takes at least of the arena: to the next aligned offset where it begins so."""
        return self.high - self.low if self.low else aligned(self.high)


@dataclass(frozen=True)
class Span:
    """A buffer of ``bytes`` and which of them are in use when, in order of time."""

    bytes: int
    segments: tuple[Segment, ...]

    @classmethod
    def whole(cls, start: int, end: int, size: int) -> Span:
        """A buffer that is in use as a whole from ``start`` to ``end``, both included."""
        return cls(size, (Segment(start, end, 0, size),))

    @property
    def start(self) -> int:
        """First time of use."""
        return self.segments[0].start

    @property
    def end(self) -> int:
        """Last time of use."""
        return self.segments[-1].end

    def at(self, time: int) -> Segment | None:
        """What is in use at ``time``."""
        if time < self.start or time > self.end:
            return None
        return next((s for s in self.segments if s.start <= time <= s.end), None)


@dataclass(frozen=True)
class Handover:
    """At ``time`` a kernel writes part of one buffer from what it reads of another.

    The result is ``written`` bytes at ``result_at`` of the output's buffer, the operand begins at
    ``operand_at`` of the source's. exact: they may begin at one address. distance: the result may
    begin at least this many bytes lower (None: not at all). phase: wherever the addresses differ by
    a multiple of this many bytes (0: not at all).
    """

    time: int
    result_at: int
    written: int
    operand_at: int
    exact: bool = False
    distance: int | None = None
    phase: int = 0


Handovers = Mapping[tuple[int, int], Sequence[Handover]]
"""By (output, source), indices of spans."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """How an output's buffer may lie beside a source's; either may have no handover."""

    output: Span
    source: Span
    handovers: Sequence[Handover] = ()

    @cached_property
    def common(self) -> tuple[tuple[int, int, Segment, Segment], ...]:
        """Times, both included, at which one segment of each is in use: output's, source's."""
        found = []
        for a in self.output.segments:
            for b in self.source.segments:
                start, end = max(a.start, b.start), min(a.end, b.end)
                if start <= end:
                    found.append((start, end, a, b))
        return tuple(found)

    def under(self) -> int:
        """Least bytes by which the output's buffer begins before the source's."""
        most = -_NEVER
        for start, end, a, b in self.common:
            special = [h for h in self.handovers if start <= h.time <= end]
            if len(special) <= end - start:  # some time without a handover
                most = max(most, a.high - b.low)
            most = max([most, *(self.under_at(h, a, b) for h in special)])
        return aligned(most)

    def under_at(self, handover: Handover, a: Segment, b: Segment) -> int:
        """The same at the time of a handover."""
        apart = a.high - b.low
        if handover.distance is None:
            return apart
        needed = handover.distance + handover.result_at - handover.operand_at
        later, earlier = self.source.at(handover.time + 1), self.output.at(handover.time - 1)
        if later is not None:
            needed = max(needed, handover.result_at + handover.written - later.low)
        if earlier is not None:
            needed = max(needed, earlier.high - b.low)
        return min(apart, needed)

    def over(self) -> int:
        """Least bytes by which the output's buffer begins after the source's."""
        return aligned(max((b.high - a.low for _, _, a, b in self.common), default=-_NEVER))

    def shift(self) -> tuple[int, int]:
        """How far after the source's the output's buffer may begin too, and with which period."""
        for h in self.handovers:
            shift = h.operand_at - h.result_at
            if shift % ALIGNMENT == 0 and (h.exact or h.phase) and self._fits(shift):
                alone = self.source.end == h.time == self.output.start
                if h.phase and alone:
                    return shift, math.lcm(h.phase, ALIGNMENT)
                if h.exact:
                    return shift, _NEVER
        return 0, 0

    def _fits(self, shift: int) -> bool:
        """Whether nothing but operands is overwritten with the buffers ``shift`` bytes apart."""
        alike = {
            h.time: h for h in self.handovers
            if (h.exact or h.phase) and h.operand_at - h.result_at == shift
        }  # fmt: skip
        for start, end, a, b in self.common:
            apart = shift + a.high <= b.low or shift + a.low >= b.high
            if not apart and not (start == end and start in alike):
                return False
        return all(self._spares(h, shift) for h in alike.values())

    def _spares(self, handover: Handover, shift: int) -> bool:
        """Whether what is read later, and was written before, is left as it is."""
        low = shift + handover.result_at
        later, earlier = self.source.at(handover.time + 1), self.output.at(handover.time - 1)
        if later is not None and low < later.high and low + handover.written > later.low:
            return False
        now = self.source.at(handover.time)
        return earlier is None or now is None or (
            shift + earlier.high <= now.low or shift + earlier.low >= now.high
        )  # fmt: skip

    def union(self, handover: Handover) -> int:
        """Least bytes that both take together at the time of a handover."""
        a, b = self.output.at(handover.time), self.source.at(handover.time)
        assert a is not None
        assert b is not None
        options = [a.bytes + b.bytes]
        highest = -aligned(self.under_at(handover, a, b))
        shifts = [min(highest, k) for k in (highest, b.low - a.low, b.high - a.high)]
        shift, period = self.shift()
        if period:
            shifts.append(shift)
        for k in shifts:
            low, high = min(k + a.low, b.low), max(k + a.high, b.high)
            options.append(max(high - low, a.high - a.low, b.high - b.low))
        return min(options)


def lower_bound(spans: Sequence[Span], handovers: Handovers | None = None) -> int:
    """Bytes that every placement needs: those in use at the fullest time."""
    return max(fullness(spans, handovers).values(), default=0)


def fullness(spans: Sequence[Span], handovers: Handovers | None = None) -> dict[int, int]:
    """Bytes that every placement needs at each time at which something changes.

    All buffers in use but the topmost one take their aligned size; an output counts only for what
    it adds to the input that it may lie over.
    """
    saved = _savings(spans, handovers or {})
    times = {s.start for span in spans for s in span.segments} | saved.keys()
    # A saving is that of one time: what follows it has to be looked at again.
    times |= {time + 1 for time in saved}
    waiting = sorted(range(len(spans)), key=lambda k: spans[k].start, reverse=True)
    live: list[int] = []
    needed: dict[int, int] = {}
    for time in sorted(times):
        live = [k for k in live if spans[k].end >= time]
        while waiting and spans[waiting[-1]].start <= time:
            live.append(waiting.pop())
        used = [s for k in live if (s := spans[k].at(time)) is not None]
        needed[time] = _together_at(used, saved.get(time, 0))
    return needed


def fullness_at(time: int, spans: Sequence[Span], handovers: Handovers) -> int:
    """The same at one time; ``handovers`` may be those of this time alone."""
    used = [s for span in spans if (s := span.at(time)) is not None]
    return _together_at(used, _savings(spans, handovers).get(time, 0))


def _savings(spans: Sequence[Span], handovers: Handovers) -> dict[int, int]:
    """Bytes that outputs can share with inputs, by time."""
    saved: dict[int, int] = {}
    for (output, source), found in handovers.items():
        pair = _Pair(spans[output], spans[source], found)
        for handover in found:
            a, b = pair.output.at(handover.time), pair.source.at(handover.time)
            if a is not None and b is not None:
                gain = a.bytes + b.bytes - pair.union(handover)
                saved[handover.time] = max(saved.get(handover.time, 0), gain)
    return saved


def _together_at(used: Sequence[Segment], saved: int) -> int:
    slack = max((s.bytes - (s.high - s.low) for s in used), default=0)
    return sum(s.bytes for s in used) - saved - slack


def place(spans: Sequence[Span], handovers: Handovers | None = None) -> list[int]:
    """Offset of each buffer; bytes in use together do not overlap, but for handovers."""
    if not spans:
        return []
    conflicts = Conflicts.of(spans, handovers or {})
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
    target = lower_bound(spans, handovers)
    climbed = _climb(spans, target, conflicts, best_order, best, best_size)
    size = _size(spans, climbed)
    capped = _under_caps(spans, conflicts, target, size) if size > target else None
    return climbed if capped is None else capped


def _size(spans: Sequence[Span], offsets: Sequence[int]) -> int:
    return max(at + span.bytes for at, span in zip(offsets, spans, strict=True))


def _under_caps(
    spans: Sequence[Span], conflicts: Conflicts, target: int, size: int
) -> list[int] | None:
    """Offsets under the lowest cap below ``size`` at which the search finds some."""
    in_time = sorted(range(len(spans)), key=lambda k: (spans[k].start, -spans[k].bytes))
    work = sum(3 * len(others) ** 2 for others in conflicts.others)
    width = min(_WIDTH, _BEAM_BUDGET // max(1, work))
    if width < 2:
        return None
    for share in _CAPS:
        cap = int(target * share)
        if cap >= size:
            break
        for order in (in_time, in_time[::-1]):
            offsets = _under_cap(spans, conflicts, cap, order, width)
            if offsets is not None:
                return offsets
    return None


def _under_cap(
    spans: Sequence[Span], conflicts: Conflicts, cap: int, order: Sequence[int], width: int
) -> list[int] | None:
    """Offsets that keep ``cap``, by a beam search in ``order``; None where it finds none.

    Each buffer is tried at both ends of the arena and beside each one that is in use with it. Kept
    are the partial placements that leave the largest gap; they differ in what is still in use.
    """
    position = {k: i for i, k in enumerate(order)}
    last = [max((position[c.other] for c in conflicts.others[k]), default=-1) for k in order]
    states: list[tuple[int, ...]] = [()]
    for i, k in enumerate(order):
        placed = [(position[c.other], c) for c in conflicts.others[k] if position[c.other] < i]
        lasting = [j for j in range(i + 1) if last[j] > i]
        top = (cap - spans[k].bytes) // ALIGNMENT * ALIGNMENT
        found: dict[tuple[int, ...], tuple[int, ...]] = {}
        for offsets in states:
            for at in sorted(_places(offsets, placed, top)):
                extended = (*offsets, at)
                found.setdefault(tuple(extended[j] for j in lasting), extended)
        if not found:
            return None
        ranked = sorted(found.values(), key=lambda o: -_largest_gap(spans, order, lasting, o, cap))
        states = ranked[:width]
    best = [0] * len(order)
    for i, k in enumerate(order):
        best[k] = states[0][i]
    return best


def _places(offsets: tuple[int, ...], placed: Sequence[tuple[int, Conflict]], top: int) -> set[int]:
    """Where a buffer may begin, from 0 to ``top``: at an end, or beside a placed one."""
    tried = {0, top}
    for j, c in placed:
        tried |= {offsets[j] - c.below, offsets[j] + c.above}
        if c.period:
            tried.add(offsets[j] + c.shift)
    return {
        at for at in tried
        if 0 <= at <= top and not any(
            offsets[j] - c.below < at < offsets[j] + c.above
            and not (c.period and (at - offsets[j] - c.shift) % c.period == 0)
            for j, c in placed
        )
    }  # fmt: skip


def _largest_gap(
    spans: Sequence[Span], order: Sequence[int], lasting: Sequence[int],
    offsets: tuple[int, ...], cap: int,
) -> int:  # fmt: skip
    """Bytes between those of the ``lasting`` buffers that lie together."""
    gap = end = 0
    for low, size in sorted((offsets[j], spans[order[j]].bytes) for j in lasting):
        gap, end = max(gap, low - end), max(end, low + size)
    return max(gap, cap - end)


def _duration(span: Span) -> int:
    return span.end - span.start + 1


@dataclass(frozen=True)
class Conflict:
    """Where a buffer k may begin beside a buffer ``other``.

    At least ``below`` bytes under it or at least ``above`` over it (negative: that far inside), or
    a multiple of ``period`` from ``shift`` bytes after where it begins (0: nowhere else).
    """

    other: int
    below: int
    above: int
    shift: int
    period: int


@dataclass(frozen=True, eq=False)
class Conflicts:
    """For each buffer those that are in use at some common time."""

    others: list[list[Conflict]]

    @classmethod
    def of(cls, spans: Sequence[Span], handovers: Handovers) -> Conflicts:
        """By one sweep over the starts."""
        others: list[list[Conflict]] = [[] for _ in spans]
        for first, second in _together(spans):
            k, j = (second, first) if (second, first) in handovers else (first, second)
            pair = _Pair(spans[k], spans[j], handovers.get((k, j), ()))
            if not pair.common:
                continue
            below, above, (shift, period) = pair.under(), pair.over(), pair.shift()
            others[k].append(Conflict(j, below, above, shift, period))
            others[j].append(Conflict(k, above, below, -shift, period))
        return cls(others)

    def __len__(self) -> int:
        return sum(map(len, self.others))


def _together(spans: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """Pairs of buffers whose times of use overlap."""
    live: list[int] = []
    for k in sorted(range(len(spans)), key=lambda k: spans[k].start):
        live = [other for other in live if spans[other].end >= spans[k].start]
        yield from ((k, j) for j in live)
        live.append(k)


def _greedy(
    spans: Sequence[Span], conflicts: Conflicts, order: Sequence[int]
) -> tuple[list[int], int]:
    """Place in ``order``, each buffer as low as those placed before allow."""
    offsets = [-1] * len(spans)
    size = 0
    for k in order:
        forbidden = sorted(
            (offsets[c.other] - c.below, offsets[c.other] + c.above,
             offsets[c.other] + c.shift, c.period)
            for c in conflicts.others[k]
            if offsets[c.other] >= 0
        )  # fmt: skip
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
    spans: Sequence[Span], target: int, conflicts: Conflicts, order: list[int],
    best: list[int], size: int,
) -> list[int]:  # fmt: skip
    """Move or exchange buffers of the order again and again, keeping what is not worse."""
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
