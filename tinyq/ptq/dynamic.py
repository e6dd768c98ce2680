"""Dynamic quantization: integer weights, and scales of activations that are found at run time.

onnxruntime.quantization writes the layers; what it leaves float at the edges gets constant scales
from typical samples, since the compiled network takes and gives integers alone.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from tinyq.errors import error
from tinyq.ptq.data import CalibrationData, from_arrays
from tinyq.ptq.graph import at_opset, graph_of, model_inputs, read_model
from tinyq.ptq.observe import Progress, run_all
from tinyq.ptq.params import FIXED_OUTPUT, ActivationParams, activation_params
from tinyq.ptq.prepare import prepare
from tinyq.ptq.quality import OutputQuality, compare_outputs

_OPSET = 13
_BOUNDED = tuple(FIXED_OUTPUT)
_QUANTIZED = frozenset({"Conv", "MatMul", "Gemm"})


def quantize_dynamic(
    model: str | Path | onnx.ModelProto,
    calibration: CalibrationData | None,
    *,
    per_channel: bool = True,
    progress: Progress | None = None,
) -> tuple[onnx.ModelProto, OutputQuality]:
    """A model of DynamicQuantizeLinear, MatMulInteger and ConvInteger, and its output's error.

    Inputs become int8 by a QuantizeLinear/DequantizeLinear pair that holds the samples' range; so
    do the input and the result of a Softmax, Sigmoid or Tanh at the end. Weights are int8, with
    one scale a channel in dense layers if ``per_channel`` (convolutions have one a layer).

    Raises:
        TinyqError: TQ1xx for the model file, TQ601 where nothing can be quantized, TQ602 to TQ608.
    """
    if calibration is None:
        raise error("TQ605", "the range of the input needs samples", "Give them with --calib.")
    graph = graph_of(at_opset(read_model(model), _OPSET))
    prepare(graph)
    data = from_arrays(
        model_inputs(graph), calibration.inputs, calibration.labels, source=calibration.source
    )
    prepared = graph.to_model()
    if not any(node.op_type in _QUANTIZED for node in prepared.graph.node):
        raise error("TQ601", "the model has no convolution and no dense layer")
    edges = _last_reals(prepared)
    # The range of a tensor is that of one sample, so that samples run one by one.
    found = run_all(graph.to_model(list(edges)), data, 1) if edges else {}
    result = _with_onnxruntime(prepared, per_channel)
    for name, array in data.inputs.items():
        _insert(result, name, _params(array))
    for name, operator in edges.items():
        _insert(result, name, _params(found[name]))
        _append(result, operator.output[0], FIXED_OUTPUT[operator.op_type]["int8"])
    if progress is not None:
        progress("comparing with float", 0, 1)
    wanted, got = (next(iter(run_all(m, data, 1).values())) for m in (prepared, result))
    return result, compare_outputs(wanted, got, data.labels)


def _with_onnxruntime(model: onnx.ModelProto, per_channel: bool) -> onnx.ModelProto:
    # It advises other tools' preparation of the model, which prepare() has done.
    logging.getLogger().addFilter(_without_advice)
    try:
        return _quantized(model, per_channel)
    finally:
        logging.getLogger().removeFilter(_without_advice)


def _without_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _quantized(model: onnx.ModelProto, per_channel: bool) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with tempfile.TemporaryDirectory(prefix="tinyq-dynamic-") as name:
        source, target = Path(name) / "float.onnx", Path(name) / "dynamic.onnx"
        onnx.save(model, source)
        quantize(source, target, per_channel=per_channel, weight_type=QuantType.QInt8)
        return onnx.load(target)


def _last_reals(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The bounded operators at the outputs, by the tensor that they read."""
    outputs = {output.name for output in model.graph.output}
    return {
        node.input[0]: node
        for node in model.graph.node
        if node.op_type in _BOUNDED and node.output[0] in outputs
    }


def _params(array: npt.NDArray[np.generic]) -> ActivationParams:
    values = np.asarray(array, np.float32)
    return activation_params(float(values.min()), float(values.max()), "int8", False)


def _nodes(
    model: onnx.ModelProto, source: str, result: str, base: str, params: ActivationParams
) -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear from ``source`` to ``result``."""
    names = [f"{base}__scale", f"{base}__zero_point"]
    arrays = np.asarray(params.scale, np.float32), np.asarray(params.zero_point, np.int8)
    for array, name in zip(arrays, names, strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    middle = f"{base}__q"
    return [
        helper.make_node("QuantizeLinear", [source, *names], [middle], middle),
        helper.make_node("DequantizeLinear", [middle, *names], [result], f"{base}__dq"),
    ]


def _insert(model: onnx.ModelProto, name: str, params: ActivationParams) -> None:
    """The tensor's readers read it through a pair."""
    nodes = list(model.graph.node)
    at = next(k for k, node in enumerate(nodes) if name in node.input)
    for node in nodes:
        node.input[:] = [f"{name}__dq" if x == name else x for x in node.input]
    pair = _nodes(model, name, f"{name}__dq", name, params)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *pair, *nodes[at:]])


def _append(model: onnx.ModelProto, name: str, params: ActivationParams) -> None:
    """The output of that name comes through a pair."""
    for node in model.graph.node:
        node.output[:] = [f"{name}__real" if x == name else x for x in node.output]
    model.graph.node.extend(_nodes(model, f"{name}__real", name, name, params))
