"""Products of two tensors: the product of the centred integers, requantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, RowWindow, rows_one_by_one
from tinyq.ops.binary import (
    CODES,
    FIX_LIMIT,
    INLINE_FIXES,
    Fixes,
    Pairs,
    apply_fixes,
    broadcast_shape,
    constant_operands,
    emit_pair,
    fix_constants,
    inline_fixes,
    loops_of,
    pair_fixes,
    read_pair,
    same_size_inputs,
)
from tinyq.ops.fixed_point import FixedPointAttrs, FixedPointMul
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import MulParams, PairTwiceParams
from tinyq.ops.wide_pair import WideMul, WidePairS16, lower_wide_mul
from tinyq.quant import Requant, Staircase, build_staircase, synthesize
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
        """The broadcast shape, of the type that the node says."""
        return (node.output.type.with_shape(broadcast_shape(node)),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Multiply, requantize, clamp."""
        if isinstance(node.attrs, FixedPointAttrs):
            return (node.attrs.compute(inputs),)
        if isinstance(node.attrs, WideMul):
            return (node.attrs.compute(node, inputs),)
        attrs = _attrs(node)
        a, b = (x.astype(np.int64) for x in inputs)
        levels = apply_fixes(attrs.levels(a, b), a, b, attrs.fixes)
        return (np.clip(levels, attrs.requant.qmin, attrs.requant.qmax).astype(np.int8),)

    def row_window(self, node: Node) -> RowWindow | None:
        """Each from its own."""
        return rows_one_by_one(node)

    def real_levels(
        self, node: Node, inputs: tuple[AnyArray, ...]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """Of products with an int16 tensor."""
        return node.attrs.real_levels(inputs) if isinstance(node.attrs, WideMul) else None


def _attrs(node: Node) -> MulAttrs:
    if not isinstance(node.attrs, MulAttrs):
        raise InvalidGraphError(f"'{node.name}' has no MulAttrs")
    return node.attrs


def lower_mul(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Mul of two activations, or of one and a quantized constant tensor."""
    if island.is_wide:
        return lower_wide_mul(emitter, island, node)
    pair = read_pair(emitter, island, node)
    if pair is None:
        return None
    a, b, wanted = pair.a, pair.b, pair.wanted
    scale = a.quant.scale * b.quant.scale / island.quant.scale
    zeros = (a.quant.zero_point, b.quant.zero_point, island.quant.zero_point)
    attrs = synthesize_mul(wanted, scale, zeros)
    return emit_pair(emitter, island, node, "mul", (a.value, b.value), attrs)


def synthesize_mul(wanted: Pairs, scale: float, zeros: tuple[int, int, int]) -> MulAttrs | None:
    """Parameters that give ``wanted`` on every pair, or None when not even fixes can.

    zeros: zero points of the operands and of the output.
    """
    qmax = int(wanted.max())
    acc = (CODES[:, None] - zeros[0]) * (CODES[None, :] - zeros[1])
    lo, hi = np.array([int(acc.min())]), np.array([int(acc.max())])
    best: MulAttrs | None = None
    for thresholds in _thresholds(wanted, acc, scale, zeros[2]):
        if thresholds.shape[1]:
            stair = Staircase(lo, hi, qmax - thresholds.shape[1], qmax, thresholds)
        else:
            stair = build_staircase(np.zeros_like, lo, hi, qmax, qmax)
        requant = synthesize(stair, np.array([scale]))
        attrs = MulAttrs(zeros[0], zeros[1], replace(requant, fixes=()))
        levels = attrs.levels(CODES[:, None], CODES[None, :])
        fixes = pair_fixes(wanted, levels, requant.qmin, requant.qmax)
        if best is None or len(fixes) < len(best.fixes):
            best = replace(attrs, fixes=fixes)
        if not fixes:
            break
    return best if best is not None and len(best.fixes) <= FIX_LIMIT else None


def _thresholds(
    wanted: Pairs, acc: Pairs, scale: float, zero_point: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Products int64 [1, levels] at which levels begin, for each rule of rounding halves.

    None where there is one output alone.

    Few integers are products of two, so a threshold is free between two of them: it is taken next
    to the ideal one. The oracle rounds the factors before their product, so outputs at one product
    may differ: there the majority decides, and fixes do the rest.
    """
    qmin, qmax = int(wanted.min()), int(wanted.max())
    if qmin == qmax:
        yield np.empty((1, 0), np.int64)
        return
    levels = np.arange(qmin + 1, qmax + 1)
    products, inverse = np.unique(acc, return_inverse=True)
    inverse = inverse.ravel()
    highest = np.full(len(products), np.iinfo(np.int64).min)
    lowest = np.full(len(products), np.iinfo(np.int64).max)
    np.maximum.at(highest, inverse, wanted.ravel())
    np.minimum.at(lowest, inverse, wanted.ravel())
    some = np.searchsorted(np.maximum.accumulate(highest), levels)
    every = np.searchsorted(np.minimum.accumulate(lowest[::-1])[::-1], levels)
    for k in np.flatnonzero(some < every):
        mixed = (inverse >= some[k]) & (inverse < every[k])
        if 2 * np.sum(wanted.ravel()[mixed] >= levels[k]) < np.sum(mixed):
            some[k] = every[k]
    some = np.maximum.accumulate(some)
    ends = np.append(products, products[-1] + 1)
    starts = np.concatenate([products[:1], products + 1])
    half = (levels - 0.5 - zero_point) / scale
    exact = half == np.rint(half)
    # A half goes up, or to the even output, or to the odd one.
    for late in (0, levels & 1, ~levels & 1) if exact.any() else (0,):
        ideal = np.ceil(half) + late * exact
        yield np.clip(ideal, starts[some], ends[some]).astype(np.int64)[None, :]


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


class MulTwiceS8(Kernel):
    """Portable C for the arithmetic of CMSIS-NN, which rounds the product twice."""

    name: ClassVar[str] = "mul_twice_s8"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """For operators whose oracle is CMSIS-NN."""
        a = node.attrs
        if not isinstance(a, FixedPointMul):
            return "for products that round twice"
        return KernelCall(
            self.name, "ops/mul_twice_s8.c.j2",
            PairTwiceParams(
                node.output.type.elements, a.a_zero_point, a.b_zero_point, a.zero_point,
                (a.y.multiplier,), (a.y.shift,), a.qmin, a.qmax, node.input(1).is_constant,
            ),
            constant_operands(node), instructions=22 * node.output.type.elements,
            in_place=same_size_inputs(node), reason="portable",
        )  # fmt: skip


Mul.kernels = (MulS8(), MulTwiceS8(), WidePairS16("mul_s16"))
