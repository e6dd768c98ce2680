"""Draws quantized TensorFlow Lite models of a few operators, by the schema's own objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyq.frontends.tflite import schema
from tinyq.frontends.tflite_oracle import pack

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]
NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)
SAME, VALID = range(2)


class Tfl:
    """A model under construction; tensors are passed around by index."""

    def __init__(self, dtype: str = "int8") -> None:
        s = self.schema = schema()
        self.dtype = dtype
        self.shift = 128 if dtype == "uint8" else 0
        self.model: Any = s.ModelT()
        self.model.version, self.model.buffers = 3, [s.BufferT()]
        self.model.operatorCodes = []
        self.graph: Any = s.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self, shape: Shape, scale: float | Array = 0.05, zero: int = 0, dtype: str = "",
        axis: int = 0,
    ) -> int:  # fmt: skip
        """A computed tensor; ``zero`` is that of int8, whatever the model's type."""
        t = self.schema.TensorT()
        t.name, t.shape = f"t{len(self.graph.tensors)}".encode(), list(shape)
        kind = dtype or self.dtype
        t.type = getattr(self.schema.TensorType, kind.upper())
        if not kind.startswith("float"):
            q = t.quantization = self.schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(scale, np.float32)).tolist()
            shift = 128 if kind == "uint8" else 0
            q.zeroPoint = [zero + shift] * len(q.scale)
            q.quantizedDimension = axis
        self.graph.tensors.append(t)
        return len(self.graph.tensors) - 1

    def const(
        self, array: Array | Sequence[int], scale: float | Array = 1.0, zero: int = 0, axis: int = 0
    ) -> int:
        """A constant tensor; sequences become int32."""
        data = array if isinstance(array, np.ndarray) else np.asarray(array, np.int32)
        index = self.tensor(data.shape, scale, zero, str(data.dtype), axis)
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        self.graph.tensors[index].buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)
        return index

    def x(self, shape: Shape, scale: float = 0.05, zero: int = 3, dtype: str = "") -> int:
        """An input of the model."""
        index = self.tensor(shape, scale, zero, dtype)
        self.graph.inputs.append(index)
        return index

    def op(
        self, op: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "",
        **values: object,
    ) -> int:  # fmt: skip
        """An operator with the fields of its options table; returns its first output."""
        s = self.schema
        code = s.OperatorCodeT()
        code.builtinCode, code.version = getattr(s.BuiltinOperator, op), 1
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        self.model.operatorCodes.append(code)
        o = s.OperatorT()
        o.opcodeIndex = len(self.model.operatorCodes) - 1
        o.inputs, o.outputs = list(inputs), list(outputs)
        if options:
            o.builtinOptionsType = getattr(s.BuiltinOptions, options)
            o.builtinOptions = getattr(s, f"{options}T")()
            for name, value in values.items():
                setattr(o.builtinOptions, name, value)
        self.graph.operators.append(o)
        return outputs[0]

    def end(self, *outputs: int) -> bytes:
        """The file, with these outputs."""
        self.graph.outputs = list(outputs)
        return pack(self.model)
