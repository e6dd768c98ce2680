"""The memory plan: lifetimes, overlays, placement.

Time is the index of the layer. A tensor lives from the layer that writes it to the last one that
reads it; graph inputs from before the first layer (-1), graph outputs until after the last one. At
the layer where an input dies and an output begins, the kernel may allow the two to share memory: at
one offset (in place), or with the output a stated distance lower, so that it follows the reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyq.ir import Value
from tinyq.plan.placement import ALIGNMENT, Allowance, Span, lower_bound, place
from tinyq.plan.verify import verify_plan
from tinyq.select import Layer, Schedule


@dataclass(frozen=True, eq=False)
class MemoryPlan:
    """Where everything lies in the arena; all numbers are bytes, offsets are 16-byte aligned.

    ``offsets`` has every run-time tensor, ``scratch`` one entry a layer (None without scratch).
    ``overlays`` names the input whose memory each layer's output covers (alias, in place, or in
    part), or None.
    ``live_bytes`` is the largest number of bytes that are live at one time: no placement of these
    buffers is smaller.
    """

    arena_bytes: int
    live_bytes: int
    offsets: Mapping[Value, int]
    scratch: tuple[int | None, ...]
    overlays: tuple[Value | None, ...]


def plan(schedule: Schedule) -> MemoryPlan:
    """The smallest plan found; it is proved before it returns."""
    found = _plan(schedule)
    verify_plan(schedule, found)
    return found


class _Buffers:
    """Which values share memory, and when each shared buffer is live."""

    def __init__(self, schedule: Schedule) -> None:
        self.end = len(schedule.layers)
        self.root: dict[Value, Value] = {}
        self.start: dict[Value, int] = {}
        self.last: dict[Value, int] = {}
        self.size: dict[Value, int] = {}
        self.reads: dict[Value, int] = {}
        for layer in schedule.layers:
            for value in layer.inputs:
                self.reads[value] = layer.index
        for value in schedule.graph.outputs:
            self.reads[value] = self.end

    def define(self, value: Value, time: int) -> None:
        """A value in a buffer of its own."""
        self.root[value] = value
        self.start[value] = time
        self.last[value] = max(time, self.reads.get(value, time))
        self.size[value] = value.type.bytes

    def share(self, value: Value, with_value: Value, time: int) -> None:
        """A value that overlays another one."""
        root = self.root[with_value]
        self.root[value] = root
        self.last[root] = max(self.last[root], time, self.reads.get(value, time))
        self.size[root] = max(self.size[root], value.type.bytes)

    def dies_at(self, value: Value, time: int) -> bool:
        """Whether nothing in the value's buffer is read after ``time``."""
        return self.last[self.root[value]] == time

    def spans(self) -> dict[Value, Span]:
        """Lifetime and size of each buffer, by its root."""
        return {r: Span(self.start[r], self.last[r], self.size[r]) for r in self.start}


def _plan(schedule: Schedule) -> MemoryPlan:
    buffers = _Buffers(schedule)
    for value in schedule.graph.inputs:
        buffers.define(value, -1)
    for layer in schedule.layers:
        _define(layer, buffers)
    roots = buffers.spans()
    with_scratch = [layer for layer in schedule.layers if layer.call.scratch_bytes]
    spans = [
        *roots.values(),
        *(Span(la.index, la.index, la.call.scratch_bytes) for la in with_scratch),
    ]
    allowances = _allowances(schedule, buffers, {root: k for k, root in enumerate(roots)})
    placed = place(spans, allowances)
    at = dict(zip(roots, placed, strict=False))
    offsets = {value: at[root] for value, root in buffers.root.items()}
    scratch: list[int | None] = [None] * len(schedule.layers)
    for layer, offset in zip(with_scratch, placed[len(roots) :], strict=True):
        scratch[layer.index] = offset
    used = [offset + span.bytes for offset, span in zip(placed, spans, strict=True)]
    return MemoryPlan(
        arena_bytes=max([1, *used]),
        live_bytes=lower_bound(spans, allowances),
        offsets=offsets,
        scratch=tuple(scratch),
        overlays=tuple(_overlaid(layer, offsets) for layer in schedule.layers),
    )


def _define(layer: Layer, buffers: _Buffers) -> None:
    """Give the outputs of a layer their buffers."""
    for number, value in enumerate(layer.outputs):
        if number == 0 and layer.call.alias:
            buffers.share(value, layer.inputs[0], layer.index)
        else:
            buffers.define(value, layer.index)


def _allowances(
    schedule: Schedule, buffers: _Buffers, index: Mapping[Value, int]
) -> dict[tuple[int, int], Allowance]:
    """Which outputs may lie over inputs that nothing reads after their layer."""
    found: dict[tuple[int, int], Allowance] = {}
    for layer in schedule.layers:
        if layer.call.alias:
            continue
        result = layer.outputs[0]
        for root in dict.fromkeys(buffers.root[value] for value in layer.inputs):
            # Every operand in the buffer is overwritten, so each has to allow it.
            operands = [k for k, v in enumerate(layer.inputs) if buffers.root[v] is root]
            exact = all(k in layer.call.in_place for k in operands)
            exact = exact and result.type.bytes <= layer.inputs[operands[0]].type.bytes
            first = operands == [0]
            distance = layer.call.overlap if first else None
            allowance = Allowance(exact, distance, layer.call.phase if first else 0)
            if buffers.dies_at(root, layer.index) and allowance != Allowance():
                found[index[buffers.root[result]], index[root]] = allowance
    return found


def _overlaid(layer: Layer, offsets: Mapping[Value, int]) -> Value | None:
    """The input whose memory the first output covers, in whole or in part."""
    result = layer.outputs[0]
    low, high = offsets[result], offsets[result] + result.type.bytes
    for value in layer.inputs:
        if low < offsets[value] + value.type.bytes and offsets[value] < high:
            return value
    return None


__all__ = ["ALIGNMENT", "MemoryPlan", "plan"]
