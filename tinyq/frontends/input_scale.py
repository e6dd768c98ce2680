"""Gives float inputs of a model a constant scale: a QuantizeLinear/DequantizeLinear pair."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tinyq.errors import error


def with_input_scales(
    model: onnx.ModelProto, scales: Mapping[str, tuple[float, int]]
) -> onnx.ModelProto:
    """A copy in which the named float inputs are int8: real = scale * (integer - zero point).

    The name '' stands for the only input. Raises TQ107 for an unknown input, TQ303 for one that is
    not float, is quantized already, or whose zero point is none of int8.
    """
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    constants = {tensor.name for tensor in edited.graph.initializer}
    inputs = {i.name: i for i in edited.graph.input if i.name not in constants}
    pairs = []
    for given, (scale, zero_point) in scales.items():
        name = next(iter(inputs)) if given == "" and len(inputs) == 1 else given
        if name not in inputs:
            raise error("TQ107", f"'{name}'; the inputs are {', '.join(inputs)}")
        readers = [node for node in edited.graph.node if name in node.input]
        _check(inputs[name], readers, scale, zero_point)
        pairs += _pair(edited.graph, name, scale, zero_point)
        for node in readers:
            node.input[:] = [f"{name}__dq" if x == name else x for x in node.input]
    nodes = list(edited.graph.node)
    del edited.graph.node[:]
    edited.graph.node.extend([*pairs, *nodes])
    return edited


def _check(
    info: onnx.ValueInfoProto, readers: list[onnx.NodeProto], scale: float, zero_point: int
) -> None:
    found = ""
    if info.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        found = f"the input '{info.name}' holds integers"
    elif any(node.op_type == "QuantizeLinear" for node in readers):
        found = f"the input '{info.name}' has a scale in the model"
    elif not (np.isfinite(np.float32(scale)) and np.float32(scale) > 0):
        found = f"{scale:g} is no scale"
    elif not -128 <= zero_point <= 127:
        found = f"{zero_point} is no zero point of int8"
    if found:
        raise error("TQ303", f"--input-scale: {found}", "Write it as SCALE,ZERO_POINT (of int8).")


def _pair(graph: onnx.GraphProto, name: str, scale: float, zero_point: int) -> list[onnx.NodeProto]:
    parameters = [f"{name}__scale", f"{name}__zero_point"]
    arrays = np.asarray(scale, np.float32), np.asarray(zero_point, np.int8)
    for array, label in zip(arrays, parameters, strict=True):
        graph.initializer.append(numpy_helper.from_array(array, label))
    middle, real = f"{name}__q", f"{name}__dq"
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [middle], middle),
        helper.make_node("DequantizeLinear", [middle, *parameters], [real], real),
    ]
