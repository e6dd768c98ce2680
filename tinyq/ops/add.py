"""Sums and differences of two tensors.

y = clamp((a * multiplier_a + b * multiplier_b + addend) >> shift) with parameters for which that
equals the oracle on all 65,536 pairs; the few pairs that no parameters match are corrected one by
one. Scales in simple ratios (1 to 2, 3 to 5) put thousands of pairs on exact halves, or so close
that float32 makes them halves, and the oracle rounds those to even: then odd levels begin, and even
levels end, a window later.
"""

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
from tinyq.ops.fixed_point import FixedPointAdd, FixedPointAttrs
from tinyq.ops.lowering import Emitter, Island, Source
from tinyq.ops.params import AddParams, PairTwiceParams
from tinyq.ops.wide_pair import WideAdd, WidePairS16, lower_wide_add
from tinyq.target import Core

_INT32 = 2**31 - 1


@dataclass(frozen=True)
class AddAttrs:
    """Parameters of ``add``; every intermediate fits int32 for all int8 operands.

    With a ``tie_window``, a sum whose level is odd is lowered by it before the shift, which gives
    what lies within half a window of a half to even levels; ``zero_point`` is added after the shift
    (without a window it is part of ``addend``).
    """

    multiplier_a: int
    multiplier_b: int
    addend: int
    shift: int
    qmin: int
    qmax: int
    tie_window: int = 0
    zero_point: int = 0
    fixes: Fixes = ()

    def swapped(self) -> AddAttrs:
        """The same sum with the operands exchanged."""
        fixes = tuple((b, a, delta) for a, b, delta in self.fixes)
        return replace(
            self, multiplier_a=self.multiplier_b, multiplier_b=self.multiplier_a, fixes=fixes
        )

    def levels(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> Pairs:
        """Outputs before fixes and clamp, of broadcast int64 operands."""
        total = a * self.multiplier_a + b * self.multiplier_b + self.addend
        total = total - ((total >> self.shift) & 1) * self.tie_window
        return (total >> self.shift) + self.zero_point


class Add(Operator):
    """The operator ``add`` (a difference has a negative multiplier)."""

    name: ClassVar[str] = "add"
    summary: ClassVar[str] = "Sum or difference of two tensors, with broadcasting; Relu fused"
    onnx: ClassVar[tuple[str, ...]] = ("Add", "Sub", "QLinearAdd")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The broadcast shape, of the type that the node says."""
        return (node.output.type.with_shape(broadcast_shape(node)),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Weigh, add, shift, clamp."""
        if isinstance(node.attrs, FixedPointAttrs):
            return (node.attrs.compute(inputs),)
        if isinstance(node.attrs, WideAdd):
            return (node.attrs.compute(node, inputs),)
        attrs = _attrs(node)
        a, b = (x.astype(np.int64) for x in inputs)
        levels = apply_fixes(attrs.levels(a, b), a, b, attrs.fixes)
        return (np.clip(levels, attrs.qmin, attrs.qmax).astype(np.int8),)

    def row_window(self, node: Node) -> RowWindow | None:
        """Each from its own."""
        return rows_one_by_one(node)

    def real_levels(
        self, node: Node, inputs: tuple[AnyArray, ...]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """Of sums with an int16 tensor."""
        return node.attrs.real_levels(inputs) if isinstance(node.attrs, WideAdd) else None


def _attrs(node: Node) -> AddAttrs:
    if not isinstance(node.attrs, AddAttrs):
        raise InvalidGraphError(f"'{node.name}' has no AddAttrs")
    return node.attrs


def lower_add(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Add or Sub of two activations, or of one and a quantized constant tensor."""
    if island.is_wide:
        return lower_wide_add(emitter, island, node)
    pair = read_pair(emitter, island, node)
    if pair is None:
        return None
    a, b, wanted = pair.a, pair.b, pair.wanted
    attrs = synthesize_add(wanted, island, a, b, -1 if node.op == "Sub" else 1)
    return emit_pair(emitter, island, node, "add", (a.value, b.value), attrs)


def synthesize_add(
    wanted: Pairs, island: Island, a: Source, b: Source, sign: int
) -> AddAttrs | None:
    """Parameters that give ``wanted`` on every pair, or None when not even fixes can."""
    ratios = (a.quant.scale / island.quant.scale, sign * b.quant.scale / island.quant.scale)
    best: AddAttrs | None = None
    for attrs, feasible in _candidates(wanted, ratios, island.quant.zero_point):
        levels = attrs.levels(CODES[:, None], CODES[None, :])
        if np.abs(np.clip(levels, attrs.qmin, attrs.qmax) - wanted).max() > 1:
            return None  # Rounding errs by one at most: this is no sum.
        fixes = pair_fixes(wanted, levels, attrs.qmin, attrs.qmax)
        if best is None or len(fixes) < len(best.fixes):
            best = replace(attrs, fixes=fixes)
        if not fixes:
            return attrs
        if feasible:
            raise AssertionError("a feasible addend does not give the wanted levels")
    return best if best is not None and len(best.fixes) <= FIX_LIMIT else None


def _candidates(
    wanted: Pairs, ratios: tuple[float, float], zero_point: int
) -> Iterator[tuple[AddAttrs, bool]]:
    """Parameters to try, likeliest first, and whether their addend is proved to be right."""
    largest = max(abs(r) for r in ratios)
    shift = 22
    while shift > 0 and 256 * largest * 2**shift * 2 > _INT32 / 2:
        shift -= 1
    m_a, m_b = (round(r * 2**shift) for r in ratios)
    windows = [2**k for k in range(1, shift)]
    # The integer kernel rounds halves to even after it added the zero point, float before it.
    parities = (0, zero_point) if zero_point & 1 else (0,)
    tries = [
        *((m_a + i, m_b + j, 0, 0) for i, j in _NEIGHBOURS[:9]),
        *((m_a, m_b, window, after) for window in windows for after in parities),
        *((m_a + i, m_b + j, 0, 0) for i, j in _NEIGHBOURS[9:]),
    ]
    for m_a_tried, m_b_tried, window, after in tries:
        made = _with_addend(wanted, m_a_tried, m_b_tried, shift, window, after)
        if made is not None:
            yield made


def _with_addend(
    wanted: Pairs, m_a: int, m_b: int, shift: int, window: int, after: int
) -> tuple[AddAttrs, bool] | None:
    """The addend in the middle of those that serve every pair; None when the sum leaves int32.

    A level is an output less ``after``; an odd one is ``window`` late, an even one lasts longer.
    """
    qmin, qmax = int(wanted.min()), int(wanted.max())
    level = wanted - after
    late = (level & 1) * window
    total = CODES[:, None] * m_a + CODES[None, :] * m_b
    start = (level << shift) + late - total
    end = ((level + 1) << shift) + window - late - 1 - total
    low = int(np.max(start, where=wanted > qmin, initial=-(2**30)))
    high = int(np.min(end, where=wanted < qmax, initial=2**30))
    addend = (low + high) // 2
    if int(np.abs(total).max()) + abs(addend) + window > _INT32:
        return None
    return AddAttrs(m_a, m_b, addend, shift, qmin, qmax, window, after), low <= high


_NEIGHBOURS = sorted(
    ((i, j) for i in range(-3, 4) for j in range(-3, 4)), key=lambda d: (abs(d[0]) + abs(d[1]), d)
)


class AddS8(Kernel):
    """Portable C: two multiplies, a shift and a clamp an element."""

    name: ClassVar[str] = "add_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a = _attrs(node)
        loops = loops_of(node)
        params = AddParams(
            loops, a.multiplier_a, a.multiplier_b, a.addend, a.shift, a.qmin, a.qmax,
            inline_fixes(a.fixes), a.tie_window, a.zero_point, node.input(1).is_constant,
            len(a.fixes) > INLINE_FIXES,
        )  # fmt: skip
        return KernelCall(
            self.name, "ops/add_s8.c.j2", params,
            (*constant_operands(node), *fix_constants(a.fixes)),
            instructions=12 * node.output.type.elements, in_place=same_size_inputs(node),
            reason="portable",
        )  # fmt: skip


class AddTwiceS8(Kernel):
    """Portable C for the arithmetic of CMSIS-NN, which rounds each rescaling twice."""

    name: ClassVar[str] = "add_twice_s8"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """For operators whose oracle is CMSIS-NN."""
        a = node.attrs
        if not isinstance(a, FixedPointAdd):
            return "for sums that round twice"
        # One operand has 256 rescaled values only, but a table of them costs 1 KiB.
        return KernelCall(
            self.name, "ops/add_twice_s8.c.j2",
            PairTwiceParams(
                node.output.type.elements, a.a_zero_point, a.b_zero_point, a.zero_point,
                (a.a.multiplier, a.b.multiplier, a.y.multiplier),
                (a.a.shift, a.b.shift, a.y.shift), a.qmin, a.qmax, node.input(1).is_constant,
            ),
            constant_operands(node), instructions=45 * node.output.type.elements,
            in_place=same_size_inputs(node), reason="portable",
        )  # fmt: skip


Add.kernels = (AddS8(), AddTwiceS8(), WidePairS16("add_s16"))
