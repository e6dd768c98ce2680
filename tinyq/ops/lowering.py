"""What an operator's lowering rule sees of the QDQ graph, and how it emits integer nodes.

An *island* is the float operators between DequantizeLinear nodes and one QuantizeLinear. A rule
turns an island into integer nodes. Inside, every activation is int8 or int16: uint8 tensors are
re-based by 128 (the same reals, zero point less 128) the moment they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyq.errors import Diagnostic
from tinyq.ir import AnyArray, DType, Node, QuantParams, TensorType, Value

ACTIVATION_LOW, ACTIVATION_HIGH = -128, 127

WIDE_REMEDY = "Quantize the layer's activations to int8 instead."
"""The remedy where an operator has no form for int16 activations."""


@dataclass(frozen=True, eq=False)
class Source:
    """An activation that an island reads: its integers and what they stand for.

    ``stored`` is its type in the model; for uint8, ``value`` and ``quant`` are re-based.
    """

    value: Value
    quant: QuantParams
    stored: DType


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """A constant that an island reads through DequantizeLinear.

    ``integers`` is int64 with the zero points still in it (int8 and uint8 as stored); ``axis`` of
    ``quant`` indexes it.
    """

    integers: npt.NDArray[np.int64]
    quant: QuantParams
    dtype: DType

    def centred(self) -> npt.NDArray[np.int64]:
        """The integers less their zero points: real = scale * centred."""
        zeros = np.asarray(self.quant.zero_points, np.int64)
        shaped = along_axis(zeros, self.quant.axis, self.integers.ndim)
        return np.asarray(self.integers - shaped, np.int64)

    def real(self) -> npt.NDArray[np.float32]:
        """The float32 values that DequantizeLinear gives."""
        scales = along_axis(self.quant.scale_array(), self.quant.axis, self.integers.ndim)
        return np.asarray(self.centred().astype(np.float32) * scales, np.float32)


def along_axis(values: AnyArray, axis: int | None, rank: int) -> Any:
    """``values`` [n] shaped to broadcast along ``axis`` of an array of ``rank`` dimensions."""
    if values.size == 1 or axis is None:
        return values.reshape(()) if values.size == 1 else values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


Evaluate = Callable[["Island", Sequence[AnyArray], bool], AnyArray]
"""Runs an island by the oracle on integer inputs (one array a source, in the order of
``island.sources``; broadcasting), giving the output integers (int8, re-based, or int16)."""


@dataclass(frozen=True, eq=False)
class Island:
    """Float operators between integers; ``sources`` are in order of first use.

    ``stored`` is the type of the result in the model; for uint8, ``quant``, ``qmin`` and ``qmax``
    are re-based.
    """

    quantize: Node
    nodes: tuple[Node, ...]
    sources: Mapping[Value, Source]
    constants: Mapping[Value, QuantizedConstant]
    quant: QuantParams
    qmin: int
    qmax: int
    stored: DType

    @property
    def is_wide(self) -> bool:
        """Whether a tensor that it reads or writes is int16."""
        return DType.INT16 in (self.stored, *(s.stored for s in self.sources.values()))

    @property
    def name(self) -> str:
        """Name for the integer node: that of the operator that computes."""
        return self.nodes[0].name if self.nodes else self.quantize.name

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the quantized result."""
        return self.quantize.output.type.shape

    @property
    def output_type(self) -> TensorType:
        """Type of the integer result (int8 or int16)."""
        dtype = DType.INT16 if self.stored is DType.INT16 else DType.INT8
        return TensorType(self.output_shape, dtype, self.quant)

    def consumer(self, value: Value) -> Node | None:
        """The one node of the island that reads ``value``, None when that is the quantizer."""
        users = [node for node in self.nodes if value in node.present_inputs]
        return users[0] if users else None

    def constant_real(self, value: Value) -> npt.NDArray[np.float32] | None:
        """The float32 value of a constant of either kind, None for an activation."""
        if value.is_constant:
            return np.asarray(value.array, np.float32)
        found = self.constants.get(value)
        return found.real() if found is not None else None

    def is_constant(self, value: Value) -> bool:
        """Whether ``value`` is known at compile time."""
        return value.is_constant or value in self.constants


@dataclass
class Emitter:
    """Collects the integer nodes and the refusals of a lowering."""

    evaluate: Evaluate
    oracle: str
    nodes: list[Node] = field(default_factory=list)
    refusals: list[Diagnostic] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """``name``, with a number when it is taken."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else self.unique(f"{name}_{count + 1}")

    def emit(
        self,
        op: str,
        name: str,
        inputs: Iterable[Value],
        output: TensorType,
        attrs: Any = None,
        output_name: str = "",
    ) -> Value:
        """Add a node of one output."""
        node_name = self.unique(name)
        value = Value(self.unique(output_name or f"{node_name}:out"), output)
        self.nodes.append(Node(op, node_name, tuple(inputs), (value,), attrs))
        return value

    def constant(self, name: str, array: AnyArray, quant: QuantParams | None = None) -> Value:
        """A constant operand."""
        array = np.ascontiguousarray(array)
        array.setflags(write=False)
        return Value(self.unique(name), TensorType(array.shape, DType.of(array), quant), array)

    def refuse(self, code: str, node: Node, found: str, remedy: str = "") -> None:
        """Record that ``node`` cannot be compiled; the lowering goes on to find the others."""
        self.refusals.append(Diagnostic(code, found, remedy, node.name, node.op))


LowerRule = Callable[[Emitter, Island, Node], Value | None]
"""Lowers the island whose computing operator is the given node; None after a refusal."""
