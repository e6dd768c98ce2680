"""The memory plan: lifetimes, overlays, placement.

Time is the index of the layer. A byte of a tensor lives from the layer that writes it to the last
one that reads it; graph inputs from before the first layer (-1), graph outputs until after the last
one. Tensors that share memory (:mod:`tinyq.plan.sharing`) are one buffer, of which each byte has
its own life. At the layer where an input dies and an output begins, the kernel may allow the two to
share memory: at one offset (in place), or with the output a stated distance lower, so that it
follows the reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from tinyq.ir import Value
from tinyq.ops.base import KernelCall
from tinyq.plan.placement import ALIGNMENT, Handover, Segment, Span, fullness, fullness_at, place
from tinyq.plan.sharing import share_memory
from tinyq.plan.solve import solve
from tinyq.plan.verify import verify_plan
from tinyq.select import Layer, Schedule

Method = Literal["heuristic", "solver", "solver, proved least"]


@dataclass(frozen=True, eq=False)
class MemoryPlan:
    """Where everything lies in the arena; all numbers are bytes.

    ``offsets`` has every run-time tensor, ``scratch`` one entry a layer (None without scratch);
    they are 16-byte aligned but for tensors that lie within others, which are 4-byte aligned.
    ``overlays`` names the input whose memory each layer's output covers (alias, in place, or in
    part), or None.
    ``live_bytes`` is the largest number of bytes that are live at one time: no placement of these
    buffers is smaller. ``method`` is what found the offsets, or has proved that none take less
    where ``live_bytes`` is not reached.
    """

    arena_bytes: int
    live_bytes: int
    offsets: Mapping[Value, int]
    scratch: tuple[int | None, ...]
    overlays: tuple[Value | None, ...]
    method: Method = "heuristic"


def plan(schedule: Schedule) -> MemoryPlan:
    """The smallest plan found for the layers as they are; it is proved before it returns."""
    found = _plan(schedule)
    verify_plan(schedule, found)
    return found


def plan_shared(schedule: Schedule) -> tuple[Schedule, MemoryPlan]:
    """The plan with tensors sharing memory where that makes no larger arena, and its schedule."""
    apart = plan(schedule)
    joined = share_memory(schedule)
    if joined is schedule:
        return schedule, apart
    shared = plan(joined)
    if shared.arena_bytes <= apart.arena_bytes:
        return joined, shared
    return schedule, apart


def plan_exactly(schedule: Schedule, known: MemoryPlan) -> MemoryPlan:
    """A smaller plan for a schedule than the one ``known``, or that none is: by the solver.

    The same object where it has the least bytes that are needed, without OR-tools, and where the
    solver neither finds fewer nor proves that there are none. A new one is proved like every plan.
    """
    if known.method != "heuristic" or known.arena_bytes == known.live_bytes:
        return known
    problem = Problem(schedule)
    placed = problem.placed(known)
    solved = solve(problem.spans, problem.handovers, placed, known.live_bytes)
    if solved is None or (solved.offsets == placed and not solved.proved):
        return known
    method: Method = "solver, proved least" if solved.proved else "solver"
    found = replace(problem.plan(solved.offsets), method=method)
    verify_plan(schedule, found)
    return found


class _Buffers:
    """Which values share memory, and when each byte of a shared buffer is live."""

    def __init__(self, schedule: Schedule) -> None:
        self.root: dict[Value, Value] = {}
        self.at: dict[Value, int] = {}
        self.members: dict[Value, list[Value]] = {}
        self.start: dict[Value, int] = {}
        self.last: dict[Value, int] = {}
        for value in schedule.graph.inputs:
            self._define(value, -1)
        for layer in schedule.layers:
            if not layer.call.alias:
                for value in layer.inputs:
                    self.last[value] = layer.index
            for value in layer.outputs:
                self._define(value, layer.index)
            if layer.call.alias:
                self._join(layer)
        for value in schedule.graph.outputs:
            if not value.is_constant:
                self.last[value] = len(schedule.layers)

    def _define(self, value: Value, time: int) -> None:
        """A value in a buffer of its own."""
        self.root[value], self.at[value], self.members[value] = value, 0, [value]
        self.start[value] = self.last[value] = time

    def _join(self, layer: Layer) -> None:
        sharing = layer.call.sharing
        assert sharing is not None
        if sharing.whole == "input":
            self._put(layer.outputs[0], layer.inputs[0], sharing.offsets[0])
            return
        for value, offset in zip(layer.inputs, sharing.offsets, strict=True):
            self._put(value, layer.outputs[0], offset)

    def _put(self, part: Value, whole: Value, offset: int) -> None:
        """The buffer of ``part`` within that of ``whole``, so that part begins at ``offset``."""
        old, new = self.root[part], self.root[whole]
        shift = self.at[whole] + offset - self.at[part]
        for value in self.members.pop(old):
            self.root[value] = new
            self.at[value] += shift
            self.members[new].append(value)

    def spans(self) -> dict[Value, Span]:
        """Use of each buffer, by its root."""
        return {root: self._span(root, members) for root, members in self.members.items()}

    def _span(self, root: Value, members: list[Value]) -> Span:
        if len(members) == 1:
            return Span.whole(self.start[root], self.last[root], root.type.bytes)
        ranges = [(self.at[v], self.at[v] + v.type.bytes, v) for v in members]
        cuts = sorted({edge for low, high, _ in ranges for edge in (low, high)})
        pieces = []
        for low, high in pairwise(cuts):
            over = [v for a, b, v in ranges if a <= low and high <= b]
            first, last = min(self.start[v] for v in over), max(self.last[v] for v in over)
            pieces.append((first, last, low, high))
        return Span(root.type.bytes, _segments(pieces))


def _segments(pieces: list[tuple[int, int, int, int]]) -> tuple[Segment, ...]:
    """When which bytes are in use, from pieces (first, last, low, high); gaps count as used."""
    times = sorted({t for first, last, _, _ in pieces for t in (first, last + 1)})
    found: list[Segment] = []
    for start, after in pairwise(times):
        live = [p for p in pieces if p[0] <= start <= p[1]]
        if not live:
            continue
        low, high = min(p[2] for p in live), max(p[3] for p in live)
        if found and (found[-1].low, found[-1].high) == (low, high):
            found[-1] = Segment(found[-1].start, after - 1, low, high)
        else:
            found.append(Segment(start, after - 1, low, high))
    return tuple(found)


class Problem:
    """What is to be placed: the buffers, then the scratch of the layers that have some."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.buffers = _Buffers(schedule)
        roots = self.buffers.spans()
        self.index = {root: k for k, root in enumerate(roots)}
        self.with_scratch = [layer for layer in schedule.layers if layer.call.scratch_bytes]
        self.spans = [
            *roots.values(),
            *(Span.whole(la.index, la.index, la.call.scratch_bytes) for la in self.with_scratch),
        ]
        self.handovers = _handovers(schedule, self.buffers, self.index)

    def needed_with(self, layer: Layer, call: KernelCall) -> int:
        """Bytes that every placement needs while ``layer`` runs, if ``call`` is its kernel."""
        now = layer.index
        spans = self.spans[: len(self.index)]
        live = {root: k for root, k in self.index.items() if spans[k].at(now) is not None}
        index = {root: n for n, root in enumerate(live)}
        scratch = [Span.whole(now, now, call.scratch_bytes)] if call.scratch_bytes else []
        found: dict[tuple[int, int], list[Handover]] = {}
        for pair, handover in _handovers_of(replace(layer, call=call), self.buffers, index):
            found.setdefault(pair, []).append(handover)
        return fullness_at(now, [*(spans[k] for k in live.values()), *scratch], found)

    def plan(self, placed: list[int]) -> MemoryPlan:
        """The plan with each span at its offset."""
        schedule, buffers = self.schedule, self.buffers
        offsets = {v: placed[self.index[r]] + buffers.at[v] for v, r in buffers.root.items()}
        scratch: list[int | None] = [None] * len(schedule.layers)
        for layer, offset in zip(self.with_scratch, placed[len(self.index) :], strict=True):
            scratch[layer.index] = offset
        used = [offset + span.bytes for offset, span in zip(placed, self.spans, strict=True)]
        return MemoryPlan(
            arena_bytes=max([1, *used]),
            live_bytes=max([1, *fullness(self.spans, self.handovers).values()]),
            offsets=offsets,
            scratch=tuple(scratch),
            overlays=tuple(_overlaid(layer, offsets) for layer in schedule.layers),
        )

    def placed(self, known: MemoryPlan) -> list[int]:
        """Where a plan has each span."""
        scratch = [known.scratch[layer.index] for layer in self.with_scratch]
        return [
            *(known.offsets[root] for root in self.index),
            *(offset for offset in scratch if offset is not None),
        ]


def _plan(schedule: Schedule) -> MemoryPlan:
    problem = Problem(schedule)
    return problem.plan(place(problem.spans, problem.handovers))


def _handovers(
    schedule: Schedule, buffers: _Buffers, index: Mapping[Value, int]
) -> dict[tuple[int, int], list[Handover]]:
    """Where outputs may lie over inputs that nothing reads after their layer."""
    found: dict[tuple[int, int], list[Handover]] = {}
    for layer in schedule.layers:
        for pair, handover in _handovers_of(layer, buffers, index):
            found.setdefault(pair, []).append(handover)
    return found


def _handovers_of(
    layer: Layer, buffers: _Buffers, index: Mapping[Value, int]
) -> Iterator[tuple[tuple[int, int], Handover]]:
    """The same of one layer, by (output, source)."""
    if layer.call.alias:
        return
    result = layer.outputs[0]
    for root in dict.fromkeys(buffers.root[value] for value in layer.inputs):
        # Every operand in the buffer is overwritten, so each has to allow it.
        operands = [k for k, v in enumerate(layer.inputs) if buffers.root[v] is root]
        first = layer.inputs[operands[0]]
        exact = all(k in layer.call.in_place for k in operands)
        exact = exact and result.type.bytes <= first.type.bytes
        exact = exact and len({buffers.at[layer.inputs[k]] for k in operands}) == 1
        alone = operands == [0]
        handover = Handover(
            layer.index, buffers.at[result], result.type.bytes, buffers.at[first], exact,
            layer.call.overlap if alone else None, layer.call.phase if alone else 0,
        )  # fmt: skip
        if (exact or handover.phase or handover.distance is not None) and (
            buffers.root[result] is not root
        ):
            yield (index[buffers.root[result]], index[root]), handover


def _overlaid(layer: Layer, offsets: Mapping[Value, int]) -> Value | None:
    """The input whose memory the first output covers, in whole or in part."""
    result = layer.outputs[0]
    low, high = offsets[result], offsets[result] + result.type.bytes
    for value in layer.inputs:
        if low < offsets[value] + value.type.bytes and offsets[value] < high:
            return value
    return None


__all__ = ["ALIGNMENT", "MemoryPlan", "Problem", "plan", "plan_exactly", "plan_shared"]
