"""Slices; Split is one slice an output."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.errors import error
from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, Sharing, Wide, c_type
from tinyq.ops.lowering import Emitter
from tinyq.ops.params import SliceParams
from tinyq.ops.windows import copy_distance
from tinyq.target import Core


@dataclass(frozen=True)
class SliceAttrs:
    """First index and step (not zero, may be negative) of every axis; sizes are the output's."""

    starts: tuple[int, ...]
    steps: tuple[int, ...]


class Slice(Operator):
    """The operator ``slice``."""

    name: ClassVar[str] = "slice"
    summary: ClassVar[str] = "Slice with any start and step, Split, Gather of one index"
    onnx: ClassVar[tuple[str, ...]] = ("Slice", "Split", "Gather")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The declared shape; every index it takes must lie inside the input."""
        a, x, y = attrs_of(node), node.input(0).type, node.output.type
        for size, start, step, count in zip(x.shape, a.starts, a.steps, y.shape, strict=True):
            last = start + step * (count - 1)
            if step == 0 or not (0 <= start < size and 0 <= last < size):
                raise InvalidGraphError(f"slice '{node.name}' of {x} leaves it: {a}")
        return (x.with_shape(y.shape),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Take the indices."""
        a, shape = attrs_of(node), node.output.type.shape
        index = [
            start + step * np.arange(count)
            for start, step, count in zip(a.starts, a.steps, shape, strict=True)
        ]
        return (np.ascontiguousarray(inputs[0][np.ix_(*index)]),)


def attrs_of(node: Node) -> SliceAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, SliceAttrs):
        raise InvalidGraphError(f"'{node.name}' has no SliceAttrs")
    return node.attrs


def _integers(value: Value | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(int(v) for v in value.array.reshape(-1))


def lower_slice(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Slice of ONNX, its bounds constants."""
    x, shape = inputs[0], node.output.type.shape
    rank = len(shape)
    begin = _integers(node.optional_input(1)) or ()
    axes = _integers(node.optional_input(3)) or tuple(range(len(begin)))
    steps_in = _integers(node.optional_input(4)) or (1,) * len(begin)
    starts, steps = [0] * rank, [1] * rank
    for start, axis, step in zip(begin, axes, steps_in, strict=True):
        size = x.type.shape[axis]
        low, high = (0, size) if step > 0 else (0, size - 1)
        starts[axis] = min(max(start + size if start < 0 else start, low), high)
        steps[axis] = step
    return (slice_of(emitter, node.name, x, shape, starts, steps),)


def lower_split(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Split of ONNX: consecutive slices."""
    x = inputs[0]
    rank = len(x.type.shape)
    axis = int(node.attrs.get("axis", 0)) % rank
    results, start = [], 0
    for k, value in enumerate(node.outputs):
        starts = [0] * rank
        starts[axis] = start
        start += value.type.shape[axis]
        results.append(
            slice_of(emitter, f"{node.name}:{k}", x, value.type.shape, starts, [1] * rank)
        )
    return tuple(results)


def lower_gather(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Gather of one constant index, or of evenly spaced ones."""
    x, indices = inputs[0], node.input(1)
    axis = int(node.attrs.get("axis", 0)) % len(x.type.shape)
    size = x.type.shape[axis]
    picks = [int(i) % size for i in indices.array.reshape(-1)]
    step = picks[1] - picks[0] if len(picks) > 1 else 1
    if step == 0 or any(b - a != step for a, b in pairwise(picks)):
        raise error(
            "TQ203", f"it gathers the indices {picks[:8]}", "Only evenly spaced indices are "
            "supported.", node=node.name, operator=node.op,
        )  # fmt: skip
    rank = len(x.type.shape)
    starts, steps = [0] * rank, [1] * rank
    starts[axis], steps[axis] = picks[0], step
    shape = (*x.type.shape[:axis], len(picks), *x.type.shape[axis + 1 :])
    taken = slice_of(emitter, node.name, x, shape, starts, steps)
    if shape == node.output.type.shape:
        return (taken,)
    final = taken.type.with_shape(node.output.type.shape)
    return (emitter.emit("reshape", f"{node.name}:shape", (taken,), final),)


def slice_of(
    emitter: Emitter, name: str, x: Value, shape: tuple[int, ...], starts: list[int],
    steps: list[int],
) -> Value:  # fmt: skip
    """``shape`` elements of ``x`` from ``starts`` on, in ``steps``."""
    attrs = SliceAttrs(tuple(starts), tuple(steps))
    return emitter.emit("slice", name, (x,), x.type.with_shape(shape), attrs)


class SliceS8(Kernel):
    """Portable C for any slice."""

    name: ClassVar[str] = "slice_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, y = attrs_of(node), node.output.type
        x = node.input(0)
        params = SliceParams(x.type.shape, a.starts, a.steps, y.shape, c_type(x))
        taken, size = _taken(node), y.dtype.bytes
        one_run = bool(np.all(np.diff(taken) == 1))
        return KernelCall(
            self.name, "ops/slice_s8.c.j2", params, instructions=3 * y.elements, reason="portable",
            overlap=size * copy_distance(taken, np.arange(taken.size)),
            sharing=Sharing("input", (size * int(taken[0]),)) if one_run else None,
        )  # fmt: skip


def _taken(node: Node) -> npt.NDArray[np.int64]:
    """Which elements of the input the output's are, in order."""
    a, x, sizes = attrs_of(node), node.input(0).type, node.output.type.shape
    index = [s + d * np.arange(n) for s, d, n in zip(a.starts, a.steps, sizes, strict=True)]
    return np.arange(x.elements).reshape(x.shape)[np.ix_(*index)].reshape(-1)


Slice.kernels = (SliceS8(), Wide(SliceS8(), "slice_s16"))
