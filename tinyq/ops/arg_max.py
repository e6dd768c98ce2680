"""Index of the largest element along an axis; of equal ones the first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyq.errors import error
from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, Wide, c_type
from tinyq.ops.lowering import Emitter
from tinyq.ops.params import ArgMaxParams
from tinyq.target import Core


@dataclass(frozen=True)
class ArgMaxAttrs:
    """The axis that is searched (not negative) and the type of the indices."""

    axis: int
    dtype: DType = DType.INT64


class ArgMax(Operator):
    """The operator ``arg_max``: dequantizing keeps the order, so integers are compared."""

    name: ClassVar[str] = "arg_max"
    summary: ClassVar[str] = "Index of the largest element along an axis, as int32 or int64"
    onnx: ClassVar[tuple[str, ...]] = ("ArgMax",)

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The input's shape without the axis, which the declared shape may keep as 1."""
        a, x, y = attrs_of(node), node.input(0).type.shape, node.output.type.shape
        if math.prod(y) * x[a.axis] != math.prod(x):
            raise InvalidGraphError(f"arg_max '{node.name}' of {x} along {a.axis} is not {y}")
        return (TensorType(y, a.dtype),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """The first of the largest."""
        a, shape = attrs_of(node), node.output.type.shape
        return (np.argmax(inputs[0], axis=a.axis).astype(a.dtype.numpy).reshape(shape),)


def attrs_of(node: Node) -> ArgMaxAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, ArgMaxAttrs):
        raise InvalidGraphError(f"'{node.name}' has no ArgMaxAttrs")
    return node.attrs


def lower_arg_max(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """ArgMax of ONNX over integers."""
    if node.attrs.get("select_last_index", 0):
        raise error("TQ203", "select_last_index=1", "The first of equal elements is supported.",
                    node=node.name, operator=node.op)  # fmt: skip
    axis = int(node.attrs.get("axis", 0)) % len(inputs[0].type.shape)
    out = TensorType(node.output.type.shape, DType.INT64)
    return (emitter.emit("arg_max", node.name, inputs, out, ArgMaxAttrs(axis)),)


def lower_index_cast(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Cast of ArgMax's indices: ArgMax gives that type by itself."""
    source = next((n for n in emitter.nodes if n.output is inputs[0]), None)
    dtype = node.output.type.dtype
    if source is None or source.op != "arg_max" or dtype not in (DType.INT32, DType.INT64):
        raise error("TQ203", f"a cast to {dtype.value}", "Only indices of ArgMax are cast, to "
                    "int32 or int64.", node=node.name, operator=node.op)  # fmt: skip
    attrs = ArgMaxAttrs(attrs_of(source).axis, dtype)
    out = TensorType(node.output.type.shape, dtype)
    return (emitter.emit("arg_max", node.name, source.present_inputs, out, attrs),)


class ArgMaxS8(Kernel):
    """Portable C: a compare an element."""

    name: ClassVar[str] = "arg_max_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, shape = attrs_of(node), node.input(0).type.shape
        params = ArgMaxParams(
            math.prod(shape[: a.axis]), shape[a.axis], math.prod(shape[a.axis + 1 :]),
            f"{a.dtype.value}_t", c_type(node.input(0)),
        )  # fmt: skip
        return KernelCall(
            self.name, "ops/arg_max_s8.c.j2", params,
            instructions=6 * node.input(0).type.elements, reason="portable",
        )  # fmt: skip


ArgMax.kernels = (ArgMaxS8(), Wide(ArgMaxS8(), "arg_max_s16"))
