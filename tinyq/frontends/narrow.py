"""Integers of 4 and 2 bits of ONNX as int8 and uint8: the same model, which every runtime computes.

onnxruntime multiplies weights of fewer than 8 bits in float32; stored as int8 they reach its
integer kernels, the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinyq.errors import Diagnostic, TinyqError


@dataclass(frozen=True)
class _Narrow:
    """The type that holds a narrower one, and the narrower one's limits."""

    wide: int
    low: int
    high: int


_NARROW = {
    TensorProto.INT4: _Narrow(TensorProto.INT8, -8, 7),
    TensorProto.UINT4: _Narrow(TensorProto.UINT8, 0, 15),
    TensorProto.INT2: _Narrow(TensorProto.INT8, -2, 1),
    TensorProto.UINT2: _Narrow(TensorProto.UINT8, 0, 3),
}


def widen_integers(model: onnx.ModelProto) -> None:
    """Store constants in 8 bits, and follow QuantizeLinear to a narrow type by a Clip, in place.

    Raises TQ204 for inputs of a narrow type.
    """
    if not any(_tensors(model)):
        return
    _refuse_inputs(model)
    types = {t.name: t.data_type for t in model.graph.initializer}
    types |= {
        node.output[0]: a.t.data_type
        for node in model.graph.node if node.op_type == "Constant"
        for a in node.attribute if a.HasField("t")
    }  # fmt: skip
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += _widened(model, node, types)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for tensor in _tensors(model):
        _widen_tensor(tensor)
    del model.graph.value_info[:]  # inference finds the types again
    for output in model.graph.output:
        narrow = _NARROW.get(output.type.tensor_type.elem_type)
        if narrow is not None:
            output.type.tensor_type.elem_type = narrow.wide


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Constants of a narrow type."""
    for tensor in model.graph.initializer:
        if tensor.data_type in _NARROW:
            yield tensor
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type in _NARROW:
                yield attribute.t
            elif attribute.name == "output_dtype" and attribute.i in _NARROW:
                yield TensorProto()


def _refuse_inputs(model: onnx.ModelProto) -> None:
    constants = {t.name for t in model.graph.initializer}
    problems = [
        Diagnostic(
            "TQ204", f"the input '{i.name}' has elements of 4 or 2 bits",
            "Make the input int8 or uint8.", i.name, "input",
        )
        for i in model.graph.input
        if i.type.tensor_type.elem_type in _NARROW and i.name not in constants
    ]  # fmt: skip
    if problems:
        raise TinyqError(problems)


def _widen_tensor(tensor: TensorProto) -> None:
    narrow = _NARROW.get(tensor.data_type)
    if narrow is None:
        return
    dtype = helper.tensor_dtype_to_np_dtype(narrow.wide)
    array = numpy_helper.to_array(tensor).astype(dtype)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _widened(
    model: onnx.ModelProto, node: onnx.NodeProto, types: dict[str, int]
) -> list[onnx.NodeProto]:
    """The node, and a Clip behind it where it quantizes to a narrow type."""
    if node.op_type != "QuantizeLinear":
        return [node]
    asked = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    zero = node.input[2] if len(node.input) > 2 else ""
    narrow = _NARROW.get(types.get(zero, asked))
    if narrow is None:
        return [node]
    dtype = helper.tensor_dtype_to_np_dtype(narrow.wide)
    kept = [a for a in node.attribute if a.name != "output_dtype"]
    name = node.output[0]

    def constant(role: str, value: int) -> str:
        label = f"{name}__{role}"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), label))
        return label

    quantize = onnx.NodeProto()
    quantize.CopyFrom(node)
    del quantize.attribute[:], quantize.input[:], quantize.output[:]
    quantize.attribute.extend(kept)
    quantize.input.extend([*node.input[:2], zero or constant("zero", 0)])
    quantize.output.append(f"{name}__wide")
    bounds = [constant("low", narrow.low), constant("high", narrow.high)]
    clip = helper.make_node("Clip", [f"{name}__wide", *bounds], [name], name=f"{name}__Clip")
    return [quantize, clip]
