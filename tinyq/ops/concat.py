"""Concatenation along one axis; every input has the output's quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, Sharing, Wide, c_type
from tinyq.ops.binary import constant_operands
from tinyq.ops.lowering import Emitter
from tinyq.ops.params import ConcatParams
from tinyq.target import Core


@dataclass(frozen=True)
class ConcatAttrs:
    """The axis along which inputs are joined (not negative)."""

    axis: int


class Concat(Operator):
    """The operator ``concat``."""

    name: ClassVar[str] = "concat"
    summary: ClassVar[str] = "Concatenation; inputs of another quantization are requantized first"
    onnx: ClassVar[tuple[str, ...]] = ("Concat", "QLinearConcat")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """Sizes add up along the axis and agree elsewhere."""
        axis, shapes = _axis(node), [v.type.shape for v in node.present_inputs]
        rest = {(s[:axis], s[axis + 1 :]) for s in shapes}
        if len(rest) != 1:
            raise InvalidGraphError(f"concat '{node.name}' of {shapes}")
        size = sum(s[axis] for s in shapes)
        first = node.input(0).type
        return (first.with_shape((*first.shape[:axis], size, *first.shape[axis + 1 :])),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Join."""
        return (np.concatenate(inputs, axis=_axis(node)),)


def _axis(node: Node) -> int:
    if not isinstance(node.attrs, ConcatAttrs):
        raise InvalidGraphError(f"'{node.name}' has no ConcatAttrs")
    return node.attrs.axis


def lower_concat(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Concat of integers of one quantization."""
    shape = node.output.type.shape
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    return (
        emitter.emit(
            "concat", node.name, inputs, inputs[0].type.with_shape(shape), ConcatAttrs(axis)
        ),
    )


class ConcatS8(Kernel):
    """One memcpy an input and outer index."""

    name: ClassVar[str] = "concat_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible; constant inputs are copied from flash."""
        axis, values = _axis(node), node.present_inputs
        outer = math.prod(node.output.type.shape[:axis])
        inner = tuple(math.prod(v.type.shape[axis:]) for v in values)
        constants = tuple(k for k, v in enumerate(values) if v.is_constant)
        cost = node.output.type.elements + 20 * outer * len(inner)
        size = node.output.type.dtype.bytes
        starts = tuple(size * start for start in accumulate(inner[:-1], initial=0))
        return KernelCall(
            self.name, "ops/concat_s8.c.j2",
            ConcatParams(outer, inner, constants, c_type(node.output)),
            constant_operands(node), instructions=cost, reason="portable",
            sharing=None if outer > 1 or constants else Sharing("output", starts),
        )  # fmt: skip


Concat.kernels = (ConcatS8(), Wide(ConcatS8(), "concat_s16"))
