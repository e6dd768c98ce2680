"""Sums and differences of two tensors.

y = clamp((a * multiplier_a + b * multiplier_b + addend) >> shift) with parameters for which that
equals the oracle on all 65,536 pairs; the few pairs that no parameters match are corrected one by
one. Scales whose ratios are short dyadic fractions make ties, which the oracle rounds to even:
a form of its own computes those exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal
from tinyq.ops.binary import (
    CODES,
    FIX_LIMIT,
    Fixes,
    Pairs,
    all_pairs,
    apply_fixes,
    broadcast_shape,
    loops_of,
    computed_first,
    operands,
    pair_fixes,
)
from tinyq.ops.lowering import Emitter, Island, Source
from tinyq.ops.params import AddParams
from tinyq.target import Core

_INT32 = 2**31 - 1


@dataclass(frozen=True)
class AddAttrs:
    """Parameters of ``add``; every intermediate fits int32 for all int8 operands.

    half_even: the shift rounds half to even and ``zero_point`` is added after it, else it floors
    and ``zero_point`` is 0.
    """

    multiplier_a: int
    multiplier_b: int
    addend: int
    shift: int
    qmin: int
    qmax: int
    half_even: bool = False
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
        if self.half_even:
            odd = (total >> self.shift) & 1
            total = total + (1 << (self.shift - 1)) - 1 + odd if self.shift else total
        return (total >> self.shift) + self.zero_point


class Add(Operator):
    """The operator ``add`` (a difference has a negative multiplier)."""

    name: ClassVar[str] = "add"
    summary: ClassVar[str] = "Sum or difference of two tensors, with broadcasting; Relu fused"
    onnx: ClassVar[tuple[str, ...]] = ("Add", "Sub", "QLinearAdd")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The broadcast shape, int8."""
        return (TensorType(broadcast_shape(node), DType.INT8, node.output.type.quant),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Weigh, add, shift, clamp."""
        attrs = _attrs(node)
        a, b = (x.astype(np.int64) for x in inputs)
        levels = apply_fixes(attrs.levels(a, b), a, b, attrs.fixes)
        return (np.clip(levels, attrs.qmin, attrs.qmax).astype(np.int8),)


def _attrs(node: Node) -> AddAttrs:
    if not isinstance(node.attrs, AddAttrs):
        raise InvalidGraphError(f"'{node.name}' has no AddAttrs")
    return node.attrs


def lower_add(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Add or Sub of two activations, or of one and a quantized constant tensor."""
    found = operands(emitter, island, node)
    if found is None:
        return None
    (_, a), (_, b) = found
    wanted = all_pairs(emitter, island)
    attrs = synthesize_add(wanted, island, a, b, -1 if node.op == "Sub" else 1)
    if attrs is None:
        emitter.refuse(
            "TQ202", node, "what follows it in float is not a clamp",
            "Quantize the tensor between the two operators.",
        )  # fmt: skip
        return None
    if computed_first(a.value, b.value):
        pair = (a.value, b.value)
    else:
        pair = (b.value, a.value)
        attrs = attrs.swapped()
    return emitter.emit("add", island.name, pair, island.output_type, attrs)


def synthesize_add(
    wanted: Pairs, island: Island, a: Source, b: Source, sign: int
) -> AddAttrs | None:
    """Parameters that give ``wanted`` on every pair, or None when not even fixes can."""
    qmin, qmax = int(wanted.min()), int(wanted.max())
    ratios = (a.quant.scale / island.quant.scale, sign * b.quant.scale / island.quant.scale)
    candidates = [
        _half_even(ratios, a, b, island, qmin, qmax),
        *_flooring(wanted, ratios, qmin, qmax),
    ]
    best: AddAttrs | None = None
    for attrs in candidates:
        if attrs is None:
            continue
        levels = attrs.levels(CODES[:, None], CODES[None, :])
        fixes = pair_fixes(wanted, levels, qmin, qmax)
        if best is None or len(fixes) < len(best.fixes):
            best = replace(attrs, fixes=fixes)
        if not fixes:
            break
    return best if best is not None and len(best.fixes) <= FIX_LIMIT else None


def _half_even(
    ratios: tuple[float, float], a: Source, b: Source, island: Island, qmin: int, qmax: int
) -> AddAttrs | None:
    """The exact form when both ratios are short dyadic fractions, else None."""
    for shift in range(1, 20):
        scaled = [np.float64(np.float32(r)) * 2**shift for r in ratios]
        if all(s == np.rint(s) for s in scaled) and max(abs(s) for s in scaled) < 2**20:
            m_a, m_b = (int(s) for s in scaled)
            addend = -m_a * a.quant.zero_point - m_b * b.quant.zero_point
            return AddAttrs(
                m_a, m_b, addend, shift, qmin, qmax, True, island.quant.zero_point
            )
    return None


def _flooring(
    wanted: Pairs, ratios: tuple[float, float], qmin: int, qmax: int
) -> list[AddAttrs]:
    """Candidates around the nearest multipliers, each with the addend in its feasible middle."""
    largest = max(abs(r) for r in ratios)
    shift = 22
    while shift > 0 and 256 * largest * 2**shift * 2 > _INT32 / 2:
        shift -= 1
    made = []
    for delta_a, delta_b in _NEIGHBOURS:
        m_a = round(ratios[0] * 2**shift) + delta_a
        m_b = round(ratios[1] * 2**shift) + delta_b
        total = CODES[:, None] * m_a + CODES[None, :] * m_b
        inside_low, inside_high = wanted > qmin, wanted < qmax
        low = np.max((wanted << shift) - total, where=inside_low, initial=-(2**40))
        high = np.min(((wanted + 1) << shift) - 1 - total, where=inside_high, initial=2**40)
        if low <= -(2**40) or high >= 2**40:
            low, high = max(int(low), -(2**30)), min(int(high), 2**30)
        addend = int((int(low) + int(high)) // 2)
        spread = int(np.abs(total).max()) + abs(addend)
        if spread <= _INT32:
            made.append(AddAttrs(m_a, m_b, addend, shift, qmin, qmax))
        if low <= high:
            break
    return made


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
            loops, a.multiplier_a, a.multiplier_b, a.addend, a.shift, a.qmin, a.qmax, a.fixes,
            a.half_even, a.zero_point, node.input(1).is_constant,
        )  # fmt: skip
        return KernelCall(
            self.name, "ops/add_s8.c.j2", params, constant_operands(node),
            instructions=12 * node.output.type.elements, in_place=same_size_inputs(node),
            reason="portable",
        )  # fmt: skip


def constant_operands(node: Node) -> tuple[PackedConstant, ...]:
    """Operands that are constant, which the C function takes after its output."""
    return tuple(
        PackedConstant("operand", value.array, "int8_t")
        for value in node.present_inputs
        if value.is_constant
    )


def same_size_inputs(node: Node) -> tuple[int, ...]:
    """Computed inputs (by index among them) as large as the output, which it may overlay."""
    computed = [v for v in node.present_inputs if not v.is_constant]
    return tuple(
        k for k, v in enumerate(computed) if v.type.elements == node.output.type.elements
    )


Add.kernels = (AddS8(),)
