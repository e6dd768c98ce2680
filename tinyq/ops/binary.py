"""What elementwise operators of two tensors share: their oracle over all 65,536 pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tinyq.ir import DType, InvalidGraphError, Node, QuantParams, Value
from tinyq.ops.base import PackedConstant, c_type
from tinyq.ops.lowering import Emitter, Island, QuantizedConstant, Source
from tinyq.ops.params import Broadcast, broadcast

Fixes = tuple[tuple[int, int, int], ...]
"""Pairs that a formula gets wrong: (a, b, delta), delta added before the clamp."""

Pairs = npt.NDArray[np.int64]
"""Outputs int64 [256, 256] for a = -128..127 (rows) and b = -128..127 (columns)."""

FIX_LIMIT = 8192
"""Most pairs that an operator may correct: beyond it, its formula is not the oracle's at all."""

INLINE_FIXES = 8
"""Up to this many corrections are compared in the code; more are a table by rows."""

CODES = np.arange(-128, 128, dtype=np.int64)


def loops_of(node: Node) -> Broadcast:
    """Loops of the kernel over the node's two operands."""
    return broadcast(node.output.type.shape, node.input(0).type.shape, node.input(1).type.shape)


def broadcast_shape(node: Node) -> tuple[int, ...]:
    """The numpy broadcast of two operands; InvalidGraphError when they do not."""
    try:
        return np.broadcast_shapes(node.input(0).type.shape, node.input(1).type.shape)
    except ValueError:
        raise InvalidGraphError(f"{node.op} '{node.name}': shapes do not broadcast") from None


@dataclass(frozen=True, eq=False)
class PairIsland:
    """An island of two operands in the order of its operator, and what it gives for every pair."""

    island: Island
    a: Source
    b: Source
    wanted: Pairs


@dataclass(frozen=True, eq=False)
class Operands:
    """An island whose two operands, in the order of its operator, are its sources."""

    island: Island
    a: Source
    b: Source


def read_operands(emitter: Emitter, island: Island, node: Node) -> Operands | None:
    """The two operands as integers; quantized constants become constant tensors.

    None after refusing a node that computes from another float operator's result.
    """
    found: dict[Value, Source] = {}
    for value in (node.input(0), node.input(1)):
        source = island.sources.get(value)
        constant = island.constants.get(value)
        if source is None and constant is not None and _is_operand(constant):
            unsigned = constant.dtype.value == "uint8"
            shift = 128 if unsigned else 0
            dtype = np.dtype("int8") if unsigned else constant.dtype.numpy
            integers = (constant.integers - shift).astype(dtype)
            quant = QuantParams.per_tensor(constant.quant.scale, constant.quant.zero_point - shift)
            data = emitter.constant(f"{node.name}:constant", integers, quant)
            source = Source(data, quant, constant.dtype)
        if source is None:
            emitter.refuse(
                "TQ202", node, f"its operand '{value.name}' is not quantized",
                "Quantize every operand: QuantizeLinear and DequantizeLinear before the operator.",
            )  # fmt: skip
            return None
        found[value] = source
    if not _is_of_the_pair_alone(emitter, island, found):
        return None
    # The oracle computes with the constant as another input: in the same kernel, for every value.
    constants = {v: c for v, c in island.constants.items() if v not in found}
    varied = replace(island, sources=found, constants=constants)
    return Operands(varied, found[node.input(0)], found[node.input(1)])


def _is_operand(constant: QuantizedConstant) -> bool:
    return constant.quant.is_per_tensor and constant.dtype in (
        DType.INT8,
        DType.UINT8,
        DType.INT16,
    )


def read_pair(emitter: Emitter, island: Island, node: Node) -> PairIsland | None:
    """The operands of an island of int8, and what it gives for every pair; None after refusing."""
    read = read_operands(emitter, island, node)
    if read is None:
        return None
    return PairIsland(read.island, read.a, read.b, all_pairs(emitter, read.island))


def _is_of_the_pair_alone(emitter: Emitter, island: Island, operands: Iterable[Value]) -> bool:
    """Whether the island's result follows from the two integers alone; else refuse it.

    A constant of several values makes it depend on the position.
    """
    for node in island.nodes:
        for value in node.present_inputs:
            constant = island.is_constant(value) and value not in operands
            if constant and value.type.elements > 1:
                emitter.refuse(
                    "TQ202", node, f"its constant '{value.name}' meets two tensors in float",
                    "Quantize the tensor between the two operators.",
                )  # fmt: skip
                return False
    return True


def computed_first(a: Value, b: Value) -> bool:
    """Whether the operands are in the order that kernels take: a constant comes second."""
    return not a.is_constant or b.is_constant


class PairAttrs(Protocol):
    """Attributes of an operator of two tensors."""

    def swapped(self) -> PairAttrs:
        """The same operator with the operands exchanged."""
        ...


def emit_pair(
    emitter: Emitter,
    island: Island,
    node: Node,
    op: str,
    values: tuple[Value, Value],
    attrs: PairAttrs | None,
) -> Value | None:
    """Emit ``op`` with a constant operand second; without ``attrs``, refuse ``node``."""
    if attrs is None:
        emitter.refuse(
            "TQ202",
            node,
            "what follows it in float is not a clamp",
            "Quantize the tensor between the two operators.",
        )
        return None
    if not computed_first(*values):
        values, attrs = (values[1], values[0]), attrs.swapped()
    return emitter.emit(op, island.name, values, island.output_type, attrs)


def all_pairs(emitter: Emitter, island: Island) -> Pairs:
    """The island's outputs for every pair of its two operands."""
    a = np.repeat(CODES, 256).astype(np.int8)
    b = np.tile(CODES, 256).astype(np.int8)
    return np.asarray(emitter.evaluate(island, [a, b], True), np.int64).reshape(256, 256)


def pair_fixes(wanted: Pairs, levels: Pairs, qmin: int, qmax: int) -> Fixes:
    """The pairs at which clamped ``levels`` differ from ``wanted``, with what mends them."""
    wrong = np.argwhere(np.clip(levels, qmin, qmax) != wanted)
    return tuple((int(CODES[i]), int(CODES[j]), int(wanted[i, j] - levels[i, j])) for i, j in wrong)


def apply_fixes(
    levels: npt.NDArray[np.int64], a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], fixes: Fixes
) -> npt.NDArray[np.int64]:
    """``levels`` (broadcast of a and b) with the deltas of the listed pairs added."""
    if not fixes:
        return levels
    delta = np.zeros((256, 256), np.int64)
    rows, columns, values = np.asarray(fixes, np.int64).T
    delta[rows + 128, columns + 128] = values
    return levels + delta[a + 128, b + 128]


def inline_fixes(fixes: Fixes) -> Fixes:
    """The fixes that the code compares one by one: all of a few, none of many."""
    return fixes if len(fixes) <= INLINE_FIXES else ()


def fix_constants(fixes: Fixes) -> tuple[PackedConstant, ...]:
    """The table of many fixes: ``uint16_t`` [257] first entry of every a from -128, then
    ``int16_t`` entries b * 256 + delta, sorted; nothing for a few fixes.
    """
    if len(fixes) <= INLINE_FIXES:
        return ()
    ordered = np.asarray(sorted(fixes), np.int64)
    rows = np.searchsorted(ordered[:, 0], np.arange(-128, 129)).astype(np.uint16)
    entries = (ordered[:, 1] * 256 + (ordered[:, 2] & 0xFF)).astype(np.int16)
    return PackedConstant("fix_rows", rows, "uint16_t"), PackedConstant(
        "fix_entries", entries, "int16_t"
    )


def constant_operands(node: Node) -> tuple[PackedConstant, ...]:
    """Operands that are constant, which the C function takes after its output."""
    return tuple(
        PackedConstant("operand", value.array, c_type(value))
        for value in node.present_inputs
        if value.is_constant
    )


def same_size_inputs(node: Node) -> tuple[int, ...]:
    """Computed inputs (by index among them) as large as the output, which it may overlay."""
    computed = [v for v in node.present_inputs if not v.is_constant]
    return tuple(k for k, v in enumerate(computed) if v.type.bytes == node.output.type.bytes)
