"""Products of two tensors: the product of the centred integers, requantized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.add import constant_operands, same_size_inputs
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal
from tinyq.ops.binary import (
    CODES,
    FIX_LIMIT,
    INLINE_FIXES,
    Fixes,
    Pairs,
    apply_fixes,
    broadcast_shape,
    computed_first,
    fix_constants,
    inline_fixes,
    loops_of,
    pair_fixes,
    read_pair,
)
from tinyq.ops.fixed_point import FixedPointAttrs
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import MulParams
from tinyq.quant import Requant, Staircase, synthesize
from tinyq.quant.requantize import raw_levels
from tinyq.target import Core


@dataclass(frozen=True, eq=False)
class MulAttrs:
    """acc = (a - a_zero_point) * (b - b_zero_point), requantized; then the listed pairs mended."""

    a_zero_point: int
    b_zero_point: int
    requant: Requant
    fixes: Fixes = ()

    def swapped(self) -> MulAttrs:
        """The same product with the operands exchanged."""
        fixes = tuple((b, a, delta) for a, b, delta in self.fixes)
        return MulAttrs(self.b_zero_point, self.a_zero_point, self.requant, fixes)

    def levels(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> Pairs:
        """Outputs before fixes and clamp, of broadcast int64 operands."""
        acc = (a - self.a_zero_point) * (b - self.b_zero_point)
        return raw_levels(self.requant, acc[..., None])[..., 0]

    def __str__(self) -> str:
        return f"zero_points=({self.a_zero_point}, {self.b_zero_point}) fixes={len(self.fixes)}"


class Mul(Operator):
    """The operator ``mul``."""

    name: ClassVar[str] = "mul"
    summary: ClassVar[str] = "Product of two tensors, with broadcasting; Relu fused"
    onnx: ClassVar[tuple[str, ...]] = ("Mul", "QLinearMul")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The broadcast shape, int8."""
        return (TensorType(broadcast_shape(node), DType.INT8, node.output.type.quant),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Multiply, requantize, clamp."""
        if isinstance(node.attrs, FixedPointAttrs):
            return (node.attrs.compute(inputs),)
        attrs = _attrs(node)
        a, b = (x.astype(np.int64) for x in inputs)
        levels = apply_fixes(attrs.levels(a, b), a, b, attrs.fixes)
        return (np.clip(levels, attrs.requant.qmin, attrs.requant.qmax).astype(np.int8),)


def _attrs(node: Node) -> MulAttrs:
    if not isinstance(node.attrs, MulAttrs):
        raise InvalidGraphError(f"'{node.name}' has no MulAttrs")
    return node.attrs


def lower_mul(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Mul of two activations, or of one and a quantized constant tensor."""
    pair = read_pair(emitter, island, node)
    if pair is None:
        return None
    a, b, wanted = pair.a, pair.b, pair.wanted
    scale = a.quant.scale * b.quant.scale / island.quant.scale
    attrs = synthesize_mul(wanted, scale, a.quant.zero_point, b.quant.zero_point)
    if attrs is None:
        emitter.refuse(
            "TQ202", node, "what follows it in float is not a clamp",
            "Quantize the tensor between the two operators.",
        )  # fmt: skip
        return None
    if computed_first(a.value, b.value):
        values = (a.value, b.value)
    else:
        values = (b.value, a.value)
        attrs = attrs.swapped()
    return emitter.emit("mul", island.name, values, island.output_type, attrs)


def synthesize_mul(wanted: Pairs, scale: float, a_zero: int, b_zero: int) -> MulAttrs | None:
    """Parameters that give ``wanted`` on every pair, or None when not even fixes can."""
    qmin, qmax = int(wanted.min()), int(wanted.max())
    acc = (CODES[:, None] - a_zero) * (CODES[None, :] - b_zero)
    # The oracle rounds the factors before their product, so outputs at one product may differ:
    # the staircase takes the largest output of all products up to each, and fixes do the rest.
    order = np.argsort(acc, axis=None, kind="stable")
    steps = np.maximum.accumulate(wanted.ravel()[order])
    products = acc.ravel()[order]
    lo, hi = np.array([int(products[0])]), np.array([int(products[-1])])
    if qmin == qmax:
        thresholds = np.zeros((1, 1), np.int64) + lo[0]
        stair = Staircase(lo, hi, qmin - 1, qmax, thresholds)
    else:
        first = np.searchsorted(steps, np.arange(qmin + 1, qmax + 1), side="left")
        stair = Staircase(lo, hi, qmin, qmax, products[first][None, :])
    requant = synthesize(stair, np.array([scale]))
    attrs = MulAttrs(a_zero, b_zero, replace(requant, fixes=()))
    levels = attrs.levels(CODES[:, None], CODES[None, :])
    fixes = pair_fixes(wanted, levels, requant.qmin, requant.qmax)
    return replace(attrs, fixes=fixes) if len(fixes) <= FIX_LIMIT else None


class MulS8(Kernel):
    """Portable C: a 16-bit product and a requantization an element."""

    name: ClassVar[str] = "mul_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a = _attrs(node)
        loops = loops_of(node)
        r = a.requant
        params = MulParams(
            loops, a.a_zero_point, a.b_zero_point, int(r.multiplier[0]), int(r.addend[0]),
            r.pre_shift, int(np.asarray(r.post_shift).reshape(-1)[0]), r.qmin, r.qmax,
            inline_fixes(a.fixes), node.input(1).is_constant, r.ties,
            len(a.fixes) > INLINE_FIXES,
        )  # fmt: skip
        return KernelCall(
            self.name, "ops/mul_s8.c.j2", params,
            (*constant_operands(node), *fix_constants(a.fixes)),
            instructions=14 * node.output.type.elements, in_place=same_size_inputs(node),
            reason="portable",
        )  # fmt: skip


Mul.kernels = (MulS8(),)
