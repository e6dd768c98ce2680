"""Draws quantized ONNX models: a few calls make a graph of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[np.generic]
Shape = tuple[int | str, ...]
Real = float | np.floating[Any] | Array

LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


class Qdq:
    """A graph under construction; values are passed around by name.

    ``dtype`` is the type of activations, ``opset`` that of the model.
    """

    def __init__(self, dtype: str = "int8", opset: int = 17) -> None:
        self.dtype = dtype
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def __repr__(self) -> str:
        return " ".join(helper.printable_node(node) for node in self.nodes)

    def fresh(self, role: str) -> str:
        self._count += 1
        return f"{role}{self._count}"

    def const(self, array: Array | float | Sequence[int], dtype: str = "") -> str:
        """An initializer; Python numbers become float32, sequences int64."""
        if not isinstance(array, np.ndarray | np.generic):
            kind = dtype or ("float32" if isinstance(array, float) else "int64")
            array = np.asarray(array, kind)
        name = self.fresh("c")
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node of one output."""
        return self.ops(op, 1, *inputs, domain=domain, **attributes)[0]

    def ops(
        self, op: str, count: int, *inputs: str, domain: str = "", **attributes: Any
    ) -> list[str]:
        """A node of ``count`` outputs, named after its operator."""
        results = [self.fresh(op.lower()) for _ in range(count)]
        node = helper.make_node(op, list(inputs), results, name=results[0], **attributes)
        node.domain = domain
        self.nodes.append(node)
        return results

    def input(self, shape: Shape, dtype: str = "", name: str = "") -> str:
        """A graph input of integers (or ``float32``)."""
        name = name or self.fresh("x")
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def scale(self, scale: Real, zero: int | Array, dtype: str = "") -> tuple[str, str]:
        """Names of a scale and a zero point."""
        zeros = np.asarray(zero, dtype or self.dtype)
        return self.const(np.asarray(scale, np.float32)), self.const(zeros)

    def dq(self, value: str, scale: Real, zero: int | Array = 0, dtype: str = "",
           **attributes: Any) -> str:  # fmt: skip
        """The reals of integers."""
        return self.op("DequantizeLinear", value, *self.scale(scale, zero, dtype), **attributes)

    def q(self, value: str, scale: float, zero: int = 0, dtype: str = "") -> str:
        """The integers of reals."""
        return self.op("QuantizeLinear", value, *self.scale(scale, zero, dtype))

    def x(self, shape: Shape, scale: float = 0.05, zero: int = 0, dtype: str = "") -> str:
        """The reals of a new graph input of integers."""
        return self.dq(self.input(shape, dtype), scale, zero, dtype)

    def qdq(self, value: str, scale: float, zero: int = 0, dtype: str = "") -> str:
        """Reals rounded to a grid."""
        return self.dq(self.q(value, scale, zero, dtype), scale, zero, dtype)

    def weights(self, array: Array, scale: Real, axis: int = 0) -> str:
        """The reals of int8 weights, one scale or one an index of ``axis``."""
        per_channel = np.asarray(scale).ndim > 0
        zero = np.zeros(np.shape(scale), np.int8)
        attributes = {"axis": axis} if per_channel else {}
        return self.dq(self.const(array.astype(np.int8)), scale, zero, "int8", **attributes)

    def bias(self, array: Array, scale: Real) -> str:
        """The reals of an int32 bias."""
        zero = np.zeros(np.shape(scale), np.int32)
        attributes = {"axis": 0} if np.asarray(scale).ndim > 0 else {}
        return self.dq(self.const(array.astype(np.int32)), scale, zero, "int32", **attributes)

    def output(self, value: str) -> None:
        """Make a value a graph output."""
        self.outputs.append(helper.make_empty_tensor_value_info(value))

    def end(self, value: str, scale: float = 0.1, zero: int = 0, dtype: str = "") -> Qdq:
        """Quantize reals into a graph output of integers."""
        self.output(self.q(value, scale, zero, dtype))
        return self

    def model(self) -> onnx.ModelProto:
        """The model; the types of its outputs are inferred where a standard operator makes them."""
        graph = helper.make_graph(self.nodes, "test", self.inputs, self.outputs, self.constants)
        imports = [helper.make_opsetid("", self.opset)]
        if any(node.domain == "com.microsoft" for node in self.nodes):
            imports.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(graph, opset_imports=imports, ir_version=10)
