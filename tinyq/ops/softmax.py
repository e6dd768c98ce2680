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

from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal, c_type
from tinyq.ops.fixed_point import FixedPointAttrs, FixedPointSoftmax
from tinyq.ops.layout import transpose
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import SoftmaxFixedParams, SoftmaxParams, SoftmaxWideParams
from tinyq.quant import FLOAT32_UNIT
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


@dataclass(frozen=True, eq=False)
class WideSoftmaxAttrs:
    """Softmax with int16 at either side: e = (high[d >> 8] * low[d & 255]) >> 30, d = max - x.

    high, low: uint32 [256], exponentials of -256 * k * x_scale and -k * x_scale times 2^30.
    y = clamp((floor(e * levels / sum) + 2^11 + zero_point * 2^12) >> 12), levels = 2^12 / y_scale.
    """

    proved: ClassVar[bool] = False

    high: npt.NDArray[np.uint32]
    low: npt.NDArray[np.uint32]
    levels: int
    x_scale: float
    zero_point: int
    qmin: int
    qmax: int

    def compute(self, node: Node, x: AnyArray) -> AnyArray:
        """Outputs of the node's type."""
        d = x.astype(np.int64).max(axis=-1, keepdims=True) - x
        e = (self.high.astype(np.int64)[d >> 8] * self.low.astype(np.int64)[d & 255]) >> 30
        quotient = e * self.levels // e.sum(axis=-1, keepdims=True)
        levels = (quotient + 2**11 + (self.zero_point << 12)) >> 12
        clamped = np.clip(levels, self.qmin, self.qmax)
        return np.asarray(clamped, node.output.type.dtype.numpy)

    def real_levels(self, x: AnyArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """See :meth:`tinyq.ops.base.Operator.real_levels`; the error is ours and float32's."""
        real = x.astype(np.float64) * self.x_scale
        e = np.exp(real - real.max(axis=-1, keepdims=True))
        probability = e / e.sum(axis=-1, keepdims=True)
        most, depth = self.levels / 2**12, x.shape[-1]
        # Float32: each exponent, a few units of exp, the sum, the quotient. Ours: the tables.
        units = 4 * np.abs(real).max(axis=-1, keepdims=True) + depth + 16
        float32 = 1.01 * units * FLOAT32_UNIT * (probability * most + abs(self.zero_point))
        ours = (depth + 4) * 2.0**-29 * most + 2.0**-11
        return probability * most + self.zero_point, float32 + ours

    def __str__(self) -> str:
        return f"wide levels={self.levels}"


class Softmax(Operator):
    """The operator ``softmax`` over the last axis."""

    name: ClassVar[str] = "softmax"
    summary: ClassVar[str] = "Softmax over any axis: a table of exponentials and a long division"
    onnx: ClassVar[tuple[str, ...]] = ("Softmax", "QLinearSoftmax")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The input's shape, the type that the node says."""
        return (node.output.type.with_shape(node.input(0).type.shape),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Exponentials, sum, rounded quotients."""
        if isinstance(node.attrs, FixedPointAttrs):
            return (node.attrs.compute(inputs),)
        if isinstance(node.attrs, WideSoftmaxAttrs):
            return (node.attrs.compute(node, inputs[0]),)
        a = attrs_of(node)
        x = inputs[0].astype(np.int64)
        e = a.table[x.max(axis=-1, keepdims=True) - x].astype(np.int64)
        total = e.sum(axis=-1, keepdims=True)
        quotient, rest = np.divmod(e * a.levels, total)
        quotient += 2 * rest >= total
        return (np.clip(quotient + a.zero_point, a.qmin, a.qmax).astype(np.int8),)

    def real_levels(
        self, node: Node, inputs: tuple[AnyArray, ...]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """Of rows with int16 at either side."""
        wide = isinstance(node.attrs, WideSoftmaxAttrs)
        return node.attrs.real_levels(inputs[0]) if wide else None


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
    attrs: SoftmaxAttrs | WideSoftmaxAttrs
    if island.is_wide:
        attrs = make_wide_attrs(source.quant.scale, island)
        if attrs.levels >= 2**33:
            emitter.refuse("TQ205", node, f"an output scale of {island.quant.scale:g}")
            return None
    else:
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


def make_wide_attrs(x_scale: float, island: Island) -> WideSoftmaxAttrs:
    """Tables for differences of up to 65,535."""
    steps = -np.arange(256, dtype=np.float64) * x_scale
    high, low = (np.rint(np.exp(s) * 2.0**30).astype(np.uint32) for s in (256 * steps, steps))
    levels = round(2**12 / island.quant.scale)
    return WideSoftmaxAttrs(
        high, low, levels, x_scale, island.quant.zero_point, island.qmin, island.qmax
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


class SoftmaxS16(Kernel):
    """Portable C: a 64-bit division an element."""

    name: ClassVar[str] = "softmax_s16"
    widths: ClassVar[frozenset[int]] = frozenset({16})

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a: WideSoftmaxAttrs = node.attrs
        x, y = node.input(0).type, node.output.type
        depth = y.shape[-1] if y.shape else 1
        params = SoftmaxWideParams(
            y.elements // depth, depth, a.levels, a.zero_point, a.qmin, a.qmax,
            c_type(node.input(0)), c_type(node.output),
        )  # fmt: skip
        return KernelCall(
            self.name, "ops/softmax_s16.c.j2", params,
            (PackedConstant("high", a.high, "uint32_t"), PackedConstant("low", a.low, "uint32_t")),
            instructions=(200 if core.long_multiply else 700) * y.elements,
            in_place=(0,) if x.bytes == y.bytes else (), reason="portable",
        )  # fmt: skip


Softmax.kernels = (SoftmaxS8(), SoftmaxS8Fixed(), SoftmaxS16())
