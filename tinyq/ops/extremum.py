"""Elementwise maximum and minimum of two tensors of one quantization."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import (
    Kernel,
    KernelCall,
    Operator,
    Refusal,
    RowWindow,
    Wide,
    c_type,
    rows_one_by_one,
)
from tinyq.ops.binary import (
    CODES,
    broadcast_shape,
    computed_first,
    constant_operands,
    loops_of,
    read_operands,
    read_pair,
    same_size_inputs,
)
from tinyq.ops.linear import clamped_limits
from tinyq.ops.lowering import Emitter, Island, Source
from tinyq.ops.lut import LutAttrs, all_codes, lower_unary
from tinyq.ops.params import ExtremumParams
from tinyq.target import Core


@dataclass(frozen=True)
class ExtremumAttrs:
    """``kind`` is ``max`` or ``min``."""

    kind: str


class Extremum(Operator):
    """The operator ``extremum``."""

    name: ClassVar[str] = "extremum"
    summary: ClassVar[str] = "Maximum or minimum of two tensors, with broadcasting"
    onnx: ClassVar[tuple[str, ...]] = ("Max", "Min")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The broadcast shape, of the type that the node says."""
        return (node.output.type.with_shape(broadcast_shape(node)),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Compare."""
        function = np.maximum if _kind(node) == "max" else np.minimum
        return (function(inputs[0], inputs[1]),)

    def row_window(self, node: Node) -> RowWindow | None:
        """Each from its own."""
        return rows_one_by_one(node)


def _kind(node: Node) -> str:
    if not isinstance(node.attrs, ExtremumAttrs):
        raise InvalidGraphError(f"'{node.name}' has no ExtremumAttrs")
    return node.attrs.kind


def lower_extremum(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Max or Min of two operands: requantize each to the output's grid, then compare.

    Rounding is monotone, so the maximum of the requantized is the requantized maximum.
    """
    if len(node.inputs) != 2:
        emitter.refuse("TQ203", node, f"{len(node.inputs)} operands", "Two are supported.")
        return None
    if island.is_wide:
        return _lower_wide(emitter, island, node)
    pair = read_pair(emitter, island, node)
    if pair is None:
        return None
    wanted = pair.wanted
    # Against the other operand's far end, a maximum is its own operand alone.
    far = 0 if node.op == "Max" else 255
    tables = (wanted[:, far], wanted[far, :])
    function = np.maximum if node.op == "Max" else np.minimum
    if not np.array_equal(function(tables[0][:, None], tables[1][None, :]), wanted):
        emitter.refuse("TQ203", node, "the operands' scales are too far apart")
        return None
    operands_ = []
    for k, (source, table) in enumerate(zip((pair.a, pair.b), tables, strict=True)):
        value = source.value
        if not np.array_equal(table, CODES):
            row = np.zeros((1, 256), np.int8)
            row[0, all_codes().view(np.uint8)] = table[all_codes().astype(np.int64) + 128]
            constant = emitter.constant(f"{island.name}:table{k}", row)
            type_ = TensorType(value.type.shape, DType.INT8, island.quant)
            value = emitter.emit(
                "lut", f"{island.name}:requantize{k}", (value, constant), type_, LutAttrs()
            )
        operands_.append(value)
    attrs = ExtremumAttrs(node.op.lower())
    if not computed_first(operands_[0], operands_[1]):
        operands_.reverse()
    return emitter.emit("extremum", island.name, operands_, island.output_type, attrs)


def _lower_wide(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """The same over int16, a following clamp taken by both operands."""
    read = read_operands(emitter, island, node)
    limits = clamped_limits(emitter, island, node)
    if read is None or limits is None:
        return None
    values = []
    for source in (read.a, read.b):
        same = source.quant == island.quant and source.value.type.dtype is island.output_type.dtype
        if same and limits == source.value.type.dtype.limits:
            values.append(source.value)
            continue
        if source.value.is_constant:
            emitter.refuse(
                "TQ203", node, "a constant operand of another scale than the int16 result's",
                "Quantize the constant with the result's scale and type.",
            )  # fmt: skip
            return None
        made = lower_unary(emitter, _requantization(island, source, limits), node)
        if made is None:
            return None
        values.append(made)
    if not computed_first(values[0], values[1]):
        values.reverse()
    attrs = ExtremumAttrs(node.op.lower())
    return emitter.emit("extremum", island.name, values, island.output_type, attrs)


def _requantization(island: Island, source: Source, limits: tuple[int, int]) -> Island:
    """The island that only brings ``source`` to the grid of ``island``'s result."""
    q, shape = island.quantize, source.value.type.shape
    real = Value(f"{source.value.name}:real", TensorType(shape, DType.FLOAT32))
    result = Value(f"{real.name}:quantized", q.output.type.with_shape(shape))
    quantize = Node(q.op, f"{island.name}:requantize", (real, *q.inputs[1:]), (result,), q.attrs)
    return replace(
        island, quantize=quantize, nodes=(), constants={}, qmin=limits[0], qmax=limits[1],
        sources={real: source},
    )  # fmt: skip


class ExtremumS8(Kernel):
    """Portable C: a compare an element."""

    name: ClassVar[str] = "extremum_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        loops = loops_of(node)
        return KernelCall(
            self.name, "ops/extremum_s8.c.j2", 
            ExtremumParams(loops, _kind(node), node.input(1).is_constant, c_type(node.output)),
            constant_operands(node), instructions=8 * node.output.type.elements,
            in_place=same_size_inputs(node), reason="portable",
        )  # fmt: skip


Extremum.kernels = (ExtremumS8(), Wide(ExtremumS8(), "extremum_s16"))
