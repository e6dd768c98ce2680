"""Constant padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyq.errors import error
from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, Wide, c_type
from tinyq.ops.lowering import Emitter
from tinyq.ops.params import PadParams
from tinyq.ops.windows import copy_distance
from tinyq.target import Core


@dataclass(frozen=True)
class PadAttrs:
    """Elements of ``value`` added before and after every axis."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: int


class Pad(Operator):
    """The operator ``pad``."""

    name: ClassVar[str] = "pad"
    summary: ClassVar[str] = "Constant padding of any axis"
    onnx: ClassVar[tuple[str, ...]] = ("Pad",)

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """Every axis grows by its padding."""
        a, x = attrs_of(node), node.input(0).type
        sizes = zip(x.shape, a.before, a.after, strict=True)
        return (x.with_shape(tuple(s + b + e for s, b, e in sizes)),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Pad."""
        a = attrs_of(node)
        widths = tuple(zip(a.before, a.after, strict=True))
        return (np.pad(inputs[0], widths, constant_values=a.value),)


def attrs_of(node: Node) -> PadAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, PadAttrs):
        raise InvalidGraphError(f"'{node.name}' has no PadAttrs")
    return node.attrs


def lower_pad(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Pad of ONNX in constant mode; the fill is already an integer on the input's grid."""
    x, shape = inputs[0], node.output.type.shape
    rank = len(shape)
    mode = node.attrs.get("mode", "constant")
    pads = [int(p) for p in node.input(1).array.reshape(-1)]
    axes_value = node.optional_input(3)
    axes = range(rank) if axes_value is None else [int(a) for a in axes_value.array.reshape(-1)]
    before, after = [0] * rank, [0] * rank
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[len(pads) // 2 + k]
    if mode != "constant" or min(*before, *after) < 0:
        raise error(
            "TQ203", f"mode '{mode}' with pads {pads}", "Constant padding that is not negative is "
            "supported.", node=node.name, operator=node.op,
        )  # fmt: skip
    fill = node.optional_input(2)
    value = 0 if fill is None else int(fill.array.reshape(-1)[0])
    if fill is not None and fill.array.dtype == np.uint8:
        value -= 128
    attrs = PadAttrs(tuple(before), tuple(after), value)
    return (emitter.emit("pad", node.name, (x,), x.type.with_shape(shape), attrs),)


class PadS8(Kernel):
    """Portable C for any padding."""

    name: ClassVar[str] = "pad_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a = attrs_of(node)
        shape = node.input(0).type.shape
        params = PadParams(shape, a.before, a.after, a.value, c_type(node.output))
        return KernelCall(
            self.name, "ops/pad_s8.c.j2", params,
            instructions=2 * node.output.type.elements, reason="portable", overlap=_distance(node),
        )  # fmt: skip


def _distance(node: Node) -> int:
    """See KernelCall.overlap; rows are moved whole, each behind the padding before it."""
    a, shape = attrs_of(node), node.input(0).type.shape
    y = np.arange(node.output.type.elements).reshape(node.output.type.shape)
    inner = tuple(slice(b, b + n) for b, n in zip(a.before, shape, strict=True))
    writes = y[inner].reshape(-1)
    return copy_distance(np.arange(writes.size), writes) * node.output.type.dtype.bytes


Pad.kernels = (PadS8(), Wide(PadS8(), "pad_s16"))
