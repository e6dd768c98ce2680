"""Sums and products with an int16 operand or result: 2^32 pairs, so real numbers rounded once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, Node, QuantParams, Value
from tinyq.ops.base import Kernel, KernelCall, Refusal, c_type
from tinyq.ops.binary import (
    Operands,
    constant_operands,
    emit_pair,
    loops_of,
    read_operands,
    same_size_inputs,
)
from tinyq.ops.linear import clamped_limits
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import WidePairParams
from tinyq.quant import FLOAT32_UNIT, WideRequant, wide_requant
from tinyq.target import Core

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_ROUNDINGS = 6
"""Of float32 in one element: both operands, the operation, the division, and two to spare."""


@dataclass(frozen=True)
class WidePair(ABC):
    """y = clamp(totals(a, b) >> shift), in int64.

    ``signs``: -1 where an operand is subtracted.
    """

    a: QuantParams
    b: QuantParams
    y: QuantParams
    signs: tuple[int, int]
    multipliers: tuple[int, ...]
    addend: int
    shift: int
    qmin: int
    qmax: int
    kind: ClassVar[str]

    @abstractmethod
    def totals(self, a: Int64, b: Int64) -> Int64:
        """Sums before the shift."""

    @abstractmethod
    def real(self, a: Float64, b: Float64) -> tuple[Float64, Float64]:
        """The result of real operands, and the magnitudes that float32 rounds on the way."""

    def swapped(self) -> Self:
        """The same operation with the operands exchanged."""
        return replace(
            self, a=self.b, b=self.a, signs=self.signs[::-1], multipliers=self.multipliers[::-1]
        )

    def compute(self, node: Node, inputs: tuple[AnyArray, ...]) -> AnyArray:
        """Outputs for two operands (broadcasting)."""
        a, b = (x.astype(np.int64) for x in inputs)
        levels = np.clip(self.totals(a, b) >> self.shift, self.qmin, self.qmax)
        return np.asarray(levels, node.output.type.dtype.numpy)

    def real_levels(self, inputs: tuple[AnyArray, ...]) -> tuple[Float64, Float64]:
        """See :meth:`tinyq.ops.base.Operator.real_levels`."""
        a, b = (
            (x.astype(np.float64) - q.zero_point) * (sign * q.scale)
            for x, q, sign in zip(inputs, (self.a, self.b), self.signs, strict=True)
        )
        result, magnitudes = self.real(a, b)
        magnitudes = magnitudes / self.y.scale + abs(self.y.zero_point)
        error = 1.01 * _ROUNDINGS * FLOAT32_UNIT * magnitudes
        return result / self.y.scale + self.y.zero_point, error

    def __str__(self) -> str:
        return f"shift={self.shift} range=[{self.qmin}, {self.qmax}]"


class WideAdd(WidePair):
    """totals = a * multipliers[0] + b * multipliers[1] + addend."""

    kind: ClassVar[str] = "add"

    def totals(self, a: Int64, b: Int64) -> Int64:
        """Sums before the shift."""
        return a * self.multipliers[0] + b * self.multipliers[1] + self.addend

    def real(self, a: Float64, b: Float64) -> tuple[Float64, Float64]:
        """A sum."""
        return a + b, np.abs(a) + np.abs(b)


class WideMul(WidePair):
    """totals = (a - a.zero_point) * (b - b.zero_point) * multipliers[0] + addend."""

    kind: ClassVar[str] = "mul"

    def totals(self, a: Int64, b: Int64) -> Int64:
        """Sums before the shift."""
        product = (a - self.a.zero_point) * (b - self.b.zero_point)
        return product * self.multipliers[0] + self.addend

    def real(self, a: Float64, b: Float64) -> tuple[Float64, Float64]:
        """A product."""
        return a * b, np.abs(a * b)


def lower_wide_add(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Add or Sub of two operands of which one, or the result, is int16."""
    read = read_operands(emitter, island, node)
    limits = clamped_limits(emitter, island, node)
    if read is None or limits is None:
        return None
    a, b, y = read.a, read.b, island.quant
    signs = (1, -1 if node.op == "Sub" else 1)
    ratios = [s.quant.scale / y.scale * sign for s, sign in zip((a, b), signs, strict=True)]
    offsets = [-s.quant.zero_point * Fraction(r) for s, r in zip((a, b), ratios, strict=True)]
    # The operands are the channels of one requantization: one shift, and addends that add up.
    low, high = (
        np.array([s.value.type.dtype.limits[end] for s in (a, b)], np.int64) for end in (0, 1)
    )
    made = _requant(
        emitter, node, np.array(ratios), [offsets[0] + y.zero_point, offsets[1] - Fraction(1, 2)],
        low, high, limits, 2,
    )  # fmt: skip
    if made is None:
        return None
    attrs = WideAdd(
        a.quant, b.quant, y, signs, tuple(map(int, made.multiplier)), int(made.addend.sum()),
        made.shift, *limits,
    )  # fmt: skip
    return emit_pair(emitter, island, node, "add", (a.value, b.value), attrs)


def lower_wide_mul(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Mul of two operands of which one, or the result, is int16."""
    read = read_operands(emitter, island, node)
    limits = clamped_limits(emitter, island, node)
    if read is None or limits is None:
        return None
    largest = _largest_product(read)
    ratio = np.float64(read.a.quant.scale) * read.b.quant.scale / island.quant.scale
    made = _requant(
        emitter, node, np.array([ratio]), [Fraction(island.quant.zero_point)],
        np.array([-largest]), np.array([largest]), limits,
    )  # fmt: skip
    if made is None:
        return None
    attrs = WideMul(
        read.a.quant, read.b.quant, island.quant, (1, 1), (int(made.multiplier[0]),),
        int(made.addend[0]), made.shift, *limits,
    )  # fmt: skip
    return emit_pair(emitter, island, node, "mul", (read.a.value, read.b.value), attrs)


def _largest_product(read: Operands) -> int:
    sizes = (
        max(abs(end - s.quant.zero_point) for end in s.value.type.dtype.limits)
        for s in (read.a, read.b)
    )
    return int(np.prod(list(sizes), dtype=np.int64))


def _requant(
    emitter: Emitter, node: Node, scale: Float64, constant: list[Fraction], low: Int64,
    high: Int64, limits: tuple[int, int], terms: int = 1,
) -> WideRequant | None:  # fmt: skip
    try:
        return wide_requant(scale, constant, low, high, *limits, terms)
    except ValueError as reason:
        emitter.refuse("TQ205", node, str(reason))
        return None


class WidePairS16(Kernel):
    """Portable C: 64-bit sums, a shift and a clamp an element."""

    widths: ClassVar[frozenset[int]] = frozenset({16})

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a: WidePair = node.attrs
        params = WidePairParams(
            loops_of(node), a.kind, (c_type(node.input(0)), c_type(node.input(1)),
            c_type(node.output)), a.multipliers, (a.a.zero_point, a.b.zero_point), a.addend,
            a.shift, a.qmin, a.qmax, node.input(1).is_constant,
        )  # fmt: skip
        cost = 14 if core.long_multiply else 90
        first, y = node.input(0).type, node.output.type
        # Outputs that are smaller than the first operand's elements follow behind its reads.
        behind = first.elements == y.elements and first.bytes > y.bytes
        return KernelCall(
            self.name, "ops/wide_pair_s16.c.j2", params, constant_operands(node),
            instructions=cost * y.elements, in_place=same_size_inputs(node),
            overlap=0 if behind else None, reason="portable",
        )  # fmt: skip
