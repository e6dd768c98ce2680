"""Proof of a memory plan by executing it on tags instead of numbers.

Every byte of the arena holds the tag of the byte that was last written there. A layer may run only
if all bytes of all its inputs still carry their tags. That shares nothing with the planner's
lifetimes, so that a mistake there is found here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinyq.ir import Value
from tinyq.select import Layer, Schedule

if TYPE_CHECKING:
    from tinyq.plan.memory import MemoryPlan

_SCRATCH = -1
_ALIGNMENT = 16
_VIEW_ALIGNMENT = 4


class OverlapError(AssertionError):
    """A memory plan destroys a tensor before its last use."""


class _Arena:
    def __init__(self, schedule: Schedule, plan: MemoryPlan) -> None:
        self.plan = plan
        self.bytes = np.full(plan.arena_bytes, -2, np.int64)
        self.tags: dict[Value, npt.NDArray[np.int64]] = {}
        self.written = 0
        self.parts = _parts(schedule)

    def range_of(self, value: Value) -> tuple[int, int]:
        low = self.plan.offsets[value]
        step = _VIEW_ALIGNMENT if value in self.parts else _ALIGNMENT
        return self._checked(low, low + value.type.bytes, value.name, step)

    def _checked(self, low: int, high: int, what: str, step: int) -> tuple[int, int]:
        if low % step or low < 0 or high > len(self.bytes):
            raise OverlapError(f"'{what}' lies at {low} to {high} in {len(self.bytes)} bytes")
        return low, high

    def write(self, value: Value) -> None:
        low, high = self.range_of(value)
        self.tags[value] = np.arange(self.written, self.written + high - low)
        self.written += high - low
        self.bytes[low:high] = self.tags[value]

    def alias(self, layer: Layer) -> None:
        sharing, result = layer.call.sharing, layer.outputs[0]
        assert sharing is not None
        if sharing.whole == "input":
            start, size = sharing.offsets[0], result.type.bytes
            self._must_lie(result, layer.inputs[0], start)
            self.tags[result] = self.tags[layer.inputs[0]][start : start + size]
        else:
            for value, start in zip(layer.inputs, sharing.offsets, strict=True):
                self._must_lie(value, result, start)
            self.tags[result] = np.concatenate([self.tags[value] for value in layer.inputs])
        if len(self.tags[result]) != result.type.bytes:
            raise OverlapError(f"'{result.name}' is not all of what it shares memory with")

    def _must_lie(self, part: Value, whole: Value, start: int) -> None:
        low, high = self.range_of(part)
        begin, end = self.range_of(whole)
        if low != begin + start or high > end:
            raise OverlapError(f"'{part.name}' must lie {start} bytes into '{whole.name}'")

    def read(self, value: Value, reader: str) -> None:
        low, high = self.range_of(value)
        if np.any(self.bytes[low:high] != self.tags[value]):
            raise OverlapError(f"{reader} reads '{value.name}', which has been overwritten")

    def scribble(self, layer: Layer) -> None:
        offset = self.plan.scratch[layer.index]
        if layer.call.scratch_bytes:
            if offset is None:
                raise OverlapError(f"'{layer.node.name}' has no scratch memory")
            high = offset + layer.call.scratch_bytes
            what = f"scratch of {layer.node.name}"
            low, high = self._checked(offset, high, what, _ALIGNMENT)
            self.bytes[low:high] = _SCRATCH


def _parts(schedule: Schedule) -> set[Value]:
    """The tensors that lie within others."""
    found: set[Value] = set()
    for layer in schedule.layers:
        if layer.call.alias and layer.call.sharing is not None:
            inside = layer.call.sharing.whole == "input"
            found.update(layer.outputs if inside else layer.inputs)
    return found


def verify_plan(schedule: Schedule, plan: MemoryPlan) -> None:
    """Raise OverlapError unless every layer finds its inputs and the outputs survive to the end."""
    arena = _Arena(schedule, plan)
    for value in schedule.graph.inputs:
        arena.write(value)
    for value in schedule.graph.inputs:
        arena.read(value, "the start")
    for layer in schedule.layers:
        _run(layer, arena)
    for value in schedule.graph.outputs:
        if not value.is_constant:
            arena.read(value, "the end")


def _run(layer: Layer, arena: _Arena) -> None:
    name = f"'{layer.node.name}'"
    if layer.call.alias:
        arena.alias(layer)
        return
    for value in layer.inputs:
        arena.read(value, name)
    arena.scribble(layer)
    kept = [v for k, v in enumerate(layer.inputs) if not _may_share(layer, k, arena)]
    for value in layer.outputs:
        arena.write(value)
    # During the layer everything is live at once: operands, results and scratch.
    for value in kept:
        arena.read(value, name)
    for value in layer.outputs:
        arena.read(value, name)
    _check_scratch(layer, arena)


def _may_share(layer: Layer, index: int, arena: _Arena) -> bool:
    """Whether the first output may overwrite this input where it lies: in place, or behind it."""
    low, high = arena.range_of(layer.inputs[index])
    start, end = arena.range_of(layer.outputs[0])
    if index in layer.call.in_place and low == start and end <= high:
        return True
    distance, phase = layer.call.overlap, layer.call.phase
    if index == 0 and phase and (start - low) % phase == 0:
        return True
    return index == 0 and distance is not None and start + distance <= low


def _check_scratch(layer: Layer, arena: _Arena) -> None:
    offset = arena.plan.scratch[layer.index]
    if offset is None or not layer.call.scratch_bytes:
        return
    if np.any(arena.bytes[offset : offset + layer.call.scratch_bytes] != _SCRATCH):
        raise OverlapError(f"scratch of '{layer.node.name}' overlaps one of its outputs")
    for value in layer.inputs:
        low, high = arena.range_of(value)
        if low < offset + layer.call.scratch_bytes and offset < high:
            raise OverlapError(f"scratch of '{layer.node.name}' overlaps its input '{value.name}'")
