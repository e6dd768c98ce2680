"""Products of uint8 by int8 whose sums onnxruntime keeps whole on every machine.

On x86 without VNNI, onnxruntime adds pairs of uint8 x int8 products in 16 bits, which saturate:
255 * 127 * 2 is 32,767 there. uint8 x uint8 has other kernels, which do not. Weights and zero
points moved by 128 give the same products: (w + 128) - (z + 128) = w - z.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinyq.frontends.ort import session
from tinyq.ir import AnyArray


class _Weights(NamedTuple):
    """Where an operator has its activation, its weights and their scale and zero point."""

    activation: int
    weights: int
    zero_point: int
    scale: int | None = None


_INTEGER = {
    "QLinearConv": _Weights(0, 3, 5, 4),
    "QLinearMatMul": _Weights(0, 3, 5, 4),
    "QGemm": _Weights(0, 3, 5, 4),
    "MatMulInteger": _Weights(0, 1, 3),
    "ConvInteger": _Weights(0, 1, 3),
}
_BYTES = (TensorProto.UINT8, TensorProto.INT8)
_DEQUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@cache
def saturates() -> bool:
    """Whether this machine's onnxruntime saturates sums of uint8 x int8 products: it is tried."""
    count = 16
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph(
        [node], "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, count])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, count])],
        [numpy_helper.from_array(np.full((count, count), 127, np.int8), "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    feeds = {"a": np.full((1, count), 255, np.uint8)}
    (result,) = session(model.SerializeToString()).run(None, feeds)
    return bool(np.any(result != 255 * 127 * count))


def with_whole_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, or where onnxruntime saturates here a copy with uint8 weights beside uint8.

    Every layer keeps its integers; only constant weights are rewritten.
    """
    if not saturates():
        return model
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    _Rewriter(edited.graph).run()
    return edited


class _Rewriter:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {t.name: t for t in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.types = self._types()

    def _types(self) -> dict[str, int]:
        """Type of the integers that each value has, or had before it was dequantized.

        What neither quantizes nor dequantizes passes on that of its first input of 8 bits.
        """
        types = {v.name: v.type.tensor_type.elem_type for v in self.graph.input}
        types |= {name: tensor.data_type for name, tensor in self.constants.items()}
        for node in self.graph.node:
            if node.op_type == "Constant":
                continue
            of_inputs = (types.get(name, 0) for name in node.input)
            found = next((t for t in of_inputs if t in _BYTES), 0)
            if node.op_type == "DynamicQuantizeLinear":
                found = TensorProto.UINT8
            elif node.op_type == "QuantizeLinear":
                found = _type_of_levels(node, types)
            for name in node.output:
                types[name] = found
        return types

    def run(self) -> None:
        for node in list(self.graph.node):
            place = _INTEGER.get(node.op_type)
            if place is not None and self._is_uint8(node.input[place.activation]):
                self._move(node, place)
            elif node.op_type in _DEQUANTIZED and len(node.input) > 1:
                self._move_dequantized(node)

    def _is_uint8(self, name: str) -> bool:
        return bool(self.types.get(name) == TensorProto.UINT8)

    def _move_dequantized(self, node: onnx.NodeProto) -> None:
        activation, weights = (self.producers.get(name) for name in node.input[:2])
        if activation is None or weights is None or not self._is_uint8(node.input[0]):
            return
        if {activation.op_type, weights.op_type} != {"DequantizeLinear"}:
            return
        own = onnx.NodeProto()
        own.CopyFrom(weights)
        if not self._move(own, _Weights(0, 0, 2, 1)):
            return
        own.name = f"{weights.name or weights.output[0]}:whole_sums:{node.output[0]}"
        own.output[0] = f"{weights.output[0]}:whole_sums:{node.output[0]}"
        position = list(self.graph.node).index(node)
        self.graph.node.insert(position, own)
        node.input[1] = own.output[0]

    def _move(self, node: onnx.NodeProto, place: _Weights) -> bool:
        """The operator's int8 weights as uint8; False where they are something else."""
        tensor = self.constants.get(node.input[place.weights])
        if tensor is None or tensor.data_type != TensorProto.INT8:
            return False
        zero_name = node.input[place.zero_point] if len(node.input) > place.zero_point else ""
        if zero_name and zero_name not in self.constants:
            return False
        shape: tuple[int, ...] = ()
        if place.scale is not None and node.input[place.scale] in self.constants:
            shape = tuple(self.constants[node.input[place.scale]].dims)
        zero = numpy_helper.to_array(self.constants[zero_name]) if zero_name else np.zeros(shape)
        node.input.extend([""] * (place.zero_point + 1 - len(node.input)))
        node.input[place.weights] = self._constant(tensor.name, numpy_helper.to_array(tensor))
        node.input[place.zero_point] = self._constant(f"{node.output[0]}:zero", zero)
        return True

    def _constant(self, name: str, integers: AnyArray) -> str:
        moved = f"{name}:uint8"
        if moved not in self.types:
            array = (np.asarray(integers, np.int16) + 128).astype(np.uint8)
            self.graph.initializer.append(numpy_helper.from_array(array, moved))
            self.types[moved] = TensorProto.UINT8
        return moved


def _type_of_levels(node: onnx.NodeProto, types: dict[str, int]) -> int:
    if len(node.input) > 2 and node.input[2]:
        return types.get(node.input[2], 0)
    asked = [a.i for a in node.attribute if a.name == "output_dtype"]
    return int(asked[0] if asked and asked[0] else TensorProto.UINT8)
