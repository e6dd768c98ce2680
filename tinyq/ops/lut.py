"""Any function of one int8 tensor, as a table of 256 entries (or one a channel)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import (
    AnyArray,
    DType,
    InvalidGraphError,
    Node,
    QuantParams,
    TensorType,
    Value,
)
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal, RowWindow
from tinyq.ops.curve import lower_wide_unary
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import LutParams
from tinyq.target import Core

UNARY = (
    "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Elu",
    "Gelu", "Erf", "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Softplus", "Softsign",
    "Selu", "Celu", "Mish", "ThresholdedRelu", "Floor", "Ceil", "Round", "Sign", "Pow",
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Cast",
    "Sin", "Cos", "Atan", "BatchNormalization", "Swish",
)  # fmt: skip
"""ONNX operators that are elementwise: with one activation operand, they become a table."""


@dataclass(frozen=True)
class LutAttrs:
    """Attributes of ``lut``: the table is input 1, int8 [channels, 256].

    Entry k of a row is the output for the input whose bits, as uint8, are k. ``axis`` is the axis
    of the channels; one row serves the whole tensor.
    """

    axis: int = -1


class Lut(Operator):
    """The operator ``lut``."""

    name: ClassVar[str] = "lut"
    summary: ClassVar[str] = (
        "Any elementwise function of one 8-bit tensor: a table of 256 entries, exact"
    )
    onnx: ClassVar[tuple[str, ...]] = (
        *UNARY, "QLinearSigmoid", "QLinearLeakyRelu", "QuantizeLinear", "DequantizeLinear",
    )  # fmt: skip

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The input's shape, the table's type."""
        x, table = node.input(0).type, node.input(1).type
        channels = table.shape[0]
        if (
            x.dtype.bytes != 1
            or table.shape[1:] != (256,)
            or channels not in (1, x.shape[_axis(node)] if x.shape else 1)
        ):
            raise InvalidGraphError(f"lut '{node.name}': table {table} for input {x}")
        return (TensorType(x.shape, table.dtype, node.output.type.quant),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Look every element up."""
        x, table = inputs[0], inputs[1]
        index = x.view(np.uint8).astype(np.intp)
        if len(table) == 1:
            return (table[0][index],)
        shape = [1] * x.ndim
        shape[_axis(node)] = -1
        rows = np.arange(len(table)).reshape(shape)
        return (table[rows, index],)

    def row_window(self, node: Node) -> RowWindow | None:
        """Each from its own, unless the tables vary along the rows."""
        x, table = node.input(0).type.shape, node.input(1).type.shape
        by_rows = len(x) == 4 and (table[0] == 1 or _axis(node) % 4 != 1)
        return RowWindow() if by_rows else None


def _axis(node: Node) -> int:
    if not isinstance(node.attrs, LutAttrs):
        raise InvalidGraphError(f"'{node.name}' has no LutAttrs")
    return node.attrs.axis


def all_codes() -> npt.NDArray[np.int8]:
    """The 256 int8 values in the order of a table: 0, 1, ..., 127, -128, ..., -1."""
    return np.arange(256).astype(np.uint8).view(np.int8)


def lower_unary(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """An island that reads one activation elementwise: its table is computed by the oracle."""
    (float_value, source), *_ = island.sources.items()
    if source.stored is DType.INT16:
        return lower_wide_unary(emitter, island, node)
    rank = len(island.output_shape)
    varying = _varying_axes(island, rank)
    if len(varying) > 1 or source.value.type.shape != island.output_shape:
        emitter.refuse(
            "TQ203", node, f"'{float_value.name}' meets a constant that varies along several axes",
            "Quantize the constant too (QuantizeLinear and DequantizeLinear).",
        )  # fmt: skip
        return None
    axis = varying[0] if varying else rank - 1
    sizes = _evaluated(island, varying)
    # The first axis, where it is free, holds the codes: BatchNormalization counts axes from it.
    sizes = (256, *(sizes[1:] if rank and 0 not in varying else sizes))
    codes = np.broadcast_to(all_codes().reshape(256, *[1] * (len(sizes) - 1)), sizes)
    outputs = np.asarray(island_outputs(emitter, island, codes)).reshape(256, -1)
    table = np.ascontiguousarray(outputs.T)
    if (table == table[0]).all():
        table = table[:1]
    name = island.name
    constant = emitter.constant(f"{name}:table", table)
    attrs = LutAttrs(axis if len(table) > 1 else max(rank - 1, 0))
    return emitter.emit("lut", name, (source.value, constant), island.output_type, attrs)


def lower_table(
    emitter: Emitter, node: Node, index: Value, stored: DType, quant: QuantParams | None
) -> Value | None:
    """Gather of a constant vector by 8-bit integers that were computed: a table of the model's.

    index: the codes as int8, ``stored`` their type in the model (uint8 codes are 128 higher).
    quant: that of the result, if known. None after a refusal.
    """
    table = node.input(0).array
    if table.ndim != 1 or table.dtype not in (np.uint8, np.int8) or table.size < 256:
        emitter.refuse(
            "TQ203", node, f"it looks up a table {table.dtype}{list(table.shape)}",
            "Tables of 256 entries of int8 or uint8 are supported.",
        )  # fmt: skip
        return None
    codes = all_codes().astype(np.int64)
    # A negative index of Gather counts from the end.
    entries = table[codes + 128 if stored is DType.UINT8 else codes]
    if table.dtype == np.uint8:
        entries = entries.astype(np.int16) - 128
    constant = emitter.constant(f"{node.name}:table", entries.astype(np.int8)[None])
    attrs = LutAttrs(max(len(index.type.shape) - 1, 0))
    out = TensorType(index.type.shape, DType.INT8, quant)
    return emitter.emit("lut", node.name, (index, constant), out, attrs)


def island_outputs(emitter: Emitter, island: Island, codes: AnyArray) -> AnyArray:
    """What the oracle gives for one source."""
    return emitter.evaluate(island, [codes], True)


def _varying_axes(island: Island, rank: int) -> list[int]:
    axes = set()
    for node in island.nodes:
        for value in node.present_inputs:
            if island.is_constant(value):
                shape = value.type.shape
                if node.op == "BatchNormalization" and len(shape) == 1:
                    axes |= {1} if shape[0] > 1 else set()
                    continue
                axes |= {rank - len(shape) + k for k, size in enumerate(shape) if size > 1}
    return sorted(axes)


def _evaluated(island: Island, varying: list[int]) -> tuple[int, ...]:
    return tuple(size if axis in varying else 1 for axis, size in enumerate(island.output_shape))


class LutS8(Kernel):
    """Portable C: one load a byte."""

    name: ClassVar[str] = "lut_s8"
    widths: ClassVar[frozenset[int]] = frozenset({8, 16})

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        table, x = node.input(1).array, node.input(0).type
        inner = math.prod(x.shape[_axis(node) % len(x.shape) + 1 :]) if len(table) > 1 else 1
        params = LutParams(
            x.elements, len(table), f"{x.dtype.value}_t", f"{node.output.type.dtype.value}_t",
            inner,
        )  # fmt: skip
        return KernelCall(
            self.name,
            "ops/lut_s8.c.j2",
            params,
            (PackedConstant("table", table, f"{table.dtype}_t"),),
            instructions=5 * x.elements,
            in_place=(0,) if x.bytes == node.output.type.bytes else (),
            reason="portable",
        )


Lut.kernels = (LutS8(),)
