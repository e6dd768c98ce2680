"""Softmax over the last axis, in integers.

Exponentials of the 256 possible differences from the row's maximum are a table of fixed-point
numbers, as wide as their sum over the row fits 31 bits; the quotient is developed by long division,
nine bits, and rounded half up, as onnxruntime's integer kernel does. The result differs from a real
softmax's rounding only where that lies closer to a boundary than the table's precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal
from tinyq.ops.fixed_point import FixedPointAttrs, FixedPointSoftmax
from tinyq.ops.layout import transpose
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import SoftmaxFixedParams, SoftmaxParams
from tinyq.target import Core

DEPTH_LIMIT = 511
"""Longest row of the fixed-point form: exponentials of 19 bits sum to less than 2^28."""


LEVELS_LIMIT = 2**31 - 1
"""Levels beyond which every probability that is not 0 saturates the output anyway."""


@dataclass(frozen=True, eq=False)
class SoftmaxAttrs:
    """table: uint32 [256], exp(-d * x_scale) in fixed point for a difference d = max - x.

    ``levels`` is the output above its zero point of a probability of 1:
    y = clamp(floor(levels * e / sum + 1/2) + zero_point). Rows are too many to prove equality with
    the oracle's float exponentials: ``proved``.
    """

    proved: ClassVar[bool] = False

    table: npt.NDArray[np.uint32]
    levels: int
    zero_point: int
    qmin: int
    qmax: int

    def __str__(self) -> str:
        return f"levels={self.levels}"


class Softmax(Operator):
    """The operator ``softmax`` over the last axis."""

    name: ClassVar[str] = "softmax"
    summary: ClassVar[str] = "Softmax over any axis: a table of exponentials and a long division"
    onnx: ClassVar[tuple[str, ...]] = ("Softmax", "QLinearSoftmax")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The input's shape, int8."""
        return (TensorType(node.input(0).type.shape, DType.INT8, node.output.type.quant),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Exponentials, sum, rounded quotients."""
        if isinstance(node.attrs, FixedPointAttrs):
            return (node.attrs.compute(inputs),)
        a = attrs_of(node)
        x = inputs[0].astype(np.int64)
        e = a.table[x.max(axis=-1, keepdims=True) - x].astype(np.int64)
        total = e.sum(axis=-1, keepdims=True)
        quotient, rest = np.divmod(e * a.levels, total)
        quotient += 2 * rest >= total
        return (np.clip(quotient + a.zero_point, a.qmin, a.qmax).astype(np.int8),)


def attrs_of(node: Node) -> SoftmaxAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, SoftmaxAttrs):
        raise InvalidGraphError(f"'{node.name}' has no SoftmaxAttrs")
    return node.attrs


def lower_softmax(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Softmax of the QDQ graph over any axis."""
    source = island.sources.get(node.input(0))
    if source is None or len(island.nodes) != 1:
        emitter.refuse(
            "TQ202", node, "its input or what follows it is in float",
            "Quantize the tensors before and after Softmax.",
        )  # fmt: skip
        return None
    x, rank = source.value, len(island.output_shape)
    axis = int(node.attrs.get("axis", -1)) % rank
    attrs = make_attrs(x.type.shape[axis], source.quant.scale, island)
    perm = tuple(rank - 1 if k == axis else axis if k == rank - 1 else k for k in range(rank))
    if axis != rank - 1:
        x = transpose(emitter, f"{node.name}:last", x, perm)
    y = emitter.emit(
        "softmax", island.name, (x,), island.output_type.with_shape(x.type.shape), attrs
    )
    return y if axis == rank - 1 else transpose(emitter, f"{node.name}:back", y, perm)


def make_attrs(depth: int, x_scale: float, island: Island) -> SoftmaxAttrs:
    """Table and levels for rows of ``depth`` elements.

    onnxruntime's integer kernel takes the whole part of 1 / y_scale, in float32, for the levels,
    and rounds halves up.
    """
    bits = 30 - math.ceil(math.log2(depth)) if depth > 1 else 30
    exponents = -np.arange(256, dtype=np.float64) * np.float64(np.float32(x_scale))
    table = np.rint(np.exp(exponents) * 2.0**bits).astype(np.uint32)
    levels = int(np.float32(1.0) / np.float32(island.quant.scale))
    return SoftmaxAttrs(
        table, min(levels, LEVELS_LIMIT), island.quant.zero_point, island.qmin, island.qmax
    )


class SoftmaxS8(Kernel):
    """Portable C: no division instruction, no floating point."""

    name: ClassVar[str] = "softmax_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, y = attrs_of(node), node.output.type
        depth = y.shape[-1] if y.shape else 1
        params = SoftmaxParams(
            y.elements // depth, depth, a.levels, a.zero_point, a.qmin, a.qmax
        )  # fmt: skip
        return KernelCall(
            self.name, "ops/softmax_s8.c.j2", params, (PackedConstant("exp", a.table, "uint32_t"),),
            instructions=70 * y.elements, in_place=(0,), reason="portable",
        )  # fmt: skip


class SoftmaxS8Fixed(Kernel):
    """Portable C in gemmlowp's fixed-point arithmetic, which TensorFlow Lite and CMSIS-NN share."""

    name: ClassVar[str] = "softmax_s8_fixed"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses other arithmetics, and rows whose sum of exponentials leaves its range."""
        if not isinstance(node.attrs, FixedPointSoftmax):
            return "the oracle's softmax has another arithmetic"
        y = node.output.type
        depth = y.shape[-1] if y.shape else 1
        if depth > DEPTH_LIMIT:
            return f"rows of {depth} elements, more than {DEPTH_LIMIT}"
        return KernelCall(
            self.name, "ops/softmax_s8_fixed.c.j2", SoftmaxFixedParams(y.elements // depth, depth),
            (PackedConstant("exp", node.attrs.exponentials().astype(np.int32), "int32_t"),),
            instructions=45 * y.elements, in_place=(0,), reason="portable",
        )  # fmt: skip


Softmax.kernels = (SoftmaxS8(), SoftmaxS8Fixed())
