"""The memory plan: lifetimes, overlays, placement.

Time is the index of the layer. A tensor lives from the layer that writes it to the last one that
reads it; graph inputs from before the first layer (-1), graph outputs until after the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tinyq.ir import Value
from tinyq.plan.placement import ALIGNMENT, Span, lower_bound, place
from tinyq.plan.verify import verify_plan
from tinyq.select import Layer, Schedule

_Policy = Callable[[Value, Value], bool]


@dataclass(frozen=True, eq=False)
class MemoryPlan:
    """Where everything lies in the arena; all numbers are bytes, offsets are 16-byte aligned.

    ``offsets`` has every run-time tensor, ``scratch`` one entry a layer (None without scratch).
    ``overlays`` names the input that each layer's output overlays (alias or in place), or None.
    ``live_bytes`` is the largest number of bytes that are live at one time: no placement of these
    buffers is smaller.
    """

    arena_bytes: int
    live_bytes: int
    offsets: Mapping[Value, int]
    scratch: tuple[int | None, ...]
    overlays: tuple[Value | None, ...]


def plan(schedule: Schedule) -> MemoryPlan:
    """The smallest plan found among three policies of overlaying; it is proved before it returns.

    Overlaying a large input by a small output keeps the large buffer alive, so that doing it
    always is not always best: always, only between equal sizes, and never are all tried.
    """
    plans = [_plan(schedule, policy) for policy in (_any_size, _equal_size, _never)]
    best = min(plans, key=lambda candidate: candidate.arena_bytes)
    verify_plan(schedule, best)
    return best


def _any_size(source: Value, result: Value) -> bool:
    return result.type.bytes <= source.type.bytes


def _equal_size(source: Value, result: Value) -> bool:
    return result.type.bytes == source.type.bytes


def _never(source: Value, result: Value) -> bool:
    return False


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


def _plan(schedule: Schedule, may_overlay: _Policy) -> MemoryPlan:
    buffers = _Buffers(schedule)
    for value in schedule.graph.inputs:
        buffers.define(value, -1)
    overlays = tuple(_define(layer, buffers, may_overlay) for layer in schedule.layers)
    roots = buffers.spans()
    with_scratch = [layer for layer in schedule.layers if layer.call.scratch_bytes]
    spans = [
        *roots.values(),
        *(Span(la.index, la.index, la.call.scratch_bytes) for la in with_scratch),
    ]
    placed = place(spans)
    at = dict(zip(roots, placed, strict=False))
    scratch: list[int | None] = [None] * len(schedule.layers)
    for layer, offset in zip(with_scratch, placed[len(roots) :], strict=True):
        scratch[layer.index] = offset
    used = [offset + span.bytes for offset, span in zip(placed, spans, strict=True)]
    return MemoryPlan(
        arena_bytes=max([1, *used]),
        live_bytes=lower_bound(spans),
        offsets={value: at[root] for value, root in buffers.root.items()},
        scratch=tuple(scratch),
        overlays=overlays,
    )


def _define(layer: Layer, buffers: _Buffers, may_overlay: _Policy) -> Value | None:
    """Give the outputs of a layer their buffers; returns the input that the first one overlays."""
    source = layer.inputs[0] if layer.call.alias else _overlay(layer, buffers, may_overlay)
    for number, value in enumerate(layer.outputs):
        if number == 0 and source is not None:
            buffers.share(value, source, layer.index)
        else:
            buffers.define(value, layer.index)
    return source


def _overlay(layer: Layer, buffers: _Buffers, may_overlay: _Policy) -> Value | None:
    """The input that the first output may overwrite, None when there is none."""
    for index in layer.call.in_place:
        value = layer.inputs[index]
        root = buffers.root[value]
        # Another operand in the same buffer is overwritten too, so it has to allow it as well.
        sharing = [k for k, v in enumerate(layer.inputs) if buffers.root[v] is root]
        allowed = all(k in layer.call.in_place for k in sharing)
        if allowed and buffers.dies_at(value, layer.index) and may_overlay(value, layer.outputs[0]):
            return value
    return None


__all__ = ["ALIGNMENT", "MemoryPlan", "plan"]
