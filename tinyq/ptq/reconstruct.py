"""Layer by layer: learned rounding and bias correction on what the quantized layers before give.

The float and the quantized network run side by side, a unit at a time, and each unit is tuned so
that its output from the quantized input is closest to the float output from the float input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from tinyq.errors import Diagnostic
from tinyq.ptq.adaround import learn_rounding
from tinyq.ptq.config import PtqConfig
from tinyq.ptq.data import CalibrationData
from tinyq.ptq.emit import emit
from tinyq.ptq.graph import FLOAT, Graph
from tinyq.ptq.moments import gather_moments
from tinyq.ptq.observe import Progress, batch_size, session
from tinyq.ptq.params import ActivationParams, Floats
from tinyq.ptq.plan import Plan, WeightPlan, channels_first, with_bias
from tinyq.ptq.units import ACTIVATIONS, Unit

Batch = dict[str, npt.NDArray[Any]]
_LARGEST_K = 4096  # inputs of one output; their moments take 8 * K^2 bytes, twice


def unit_graph(graph: Graph, unit: Unit) -> Graph:
    """A graph of one unit, whose inputs are the tensors that other units compute."""
    inner = {name for node in unit.nodes for name in node.output}
    read = [name for node in unit.nodes for name in node.input if name]
    constants = {n: graph.initializers[n] for n in read if n in graph.initializers}
    outside = dict.fromkeys(n for n in read if n not in constants and n not in inner)
    written = [n for n in unit.nodes[-1].output if n]
    return Graph(
        list(unit.nodes), constants,
        [helper.make_tensor_value_info(n, graph.types.get(n, FLOAT), None) for n in outside],
        [helper.make_tensor_value_info(n, graph.types.get(n, FLOAT), None) for n in written],
        graph.opset, graph.ir_version, "unit", types=dict(graph.types),
    )  # fmt: skip


class _Paths:
    """Values of the float and the quantized network, a list of batches each, while needed."""

    def __init__(self, graph: Graph, units: list[Unit], data: CalibrationData, size: int) -> None:
        self.float: list[Batch] = [dict(feed) for feed in data.batches(size)]
        self.quantized: list[Batch] = [dict(feed) for feed in self.float]
        self.last_use: dict[str, str] = {}
        for unit in units:
            for node in unit.nodes:
                self.last_use.update(dict.fromkeys(node.input, unit.name))

    def release(self, unit: Unit) -> None:
        """Forget what no later unit reads."""
        for batch in (*self.float, *self.quantized):
            for name in [n for n in batch if self.last_use.get(n) == unit.name]:
                del batch[name]


def reconstruct(
    graph: Graph,
    units: list[Unit],
    plan: Plan,
    data: CalibrationData,
    config: PtqConfig,
    notices: list[Diagnostic],
    progress: Progress | None = None,
) -> Plan:
    """Learn the rounding and correct the biases, as ``config`` asks."""
    size = batch_size(graph.to_model(), config.batch_size)
    paths = _Paths(graph, units, data, size)
    for i, unit in enumerate(units):
        if unit.kind == "linear" and unit.name not in plan.precision.float_units:
            tuned = _tune(graph, unit, plan, paths, config, notices)
            plan = plan.with_weights(unit.name, tuned)
        sub = unit_graph(graph, unit)
        _advance(sub.to_model(), paths.float)
        is_plain = unit.kind == "plain"
        _advance(sub.to_model() if is_plain else emit(sub, [unit], plan), paths.quantized)
        paths.release(unit)
        if progress is not None:
            progress("reconstruct", i + 1, len(units))
    return plan


def _advance(model: onnx.ModelProto, batches: list[Batch]) -> None:
    runner = session(model, exact=True)
    wanted = [value.name for value in runner.get_inputs()]
    names = [value.name for value in runner.get_outputs()]
    for batch in batches:
        outputs = runner.run(names, {name: batch[name] for name in wanted})
        batch.update(zip(names, outputs, strict=True))


def _tune(
    graph: Graph,
    unit: Unit,
    plan: Plan,
    paths: _Paths,
    config: PtqConfig,
    notices: list[Diagnostic],
) -> WeightPlan:
    source = unit.inputs[0]
    params = plan.activations[source]
    inputs = [_through(params, batch[source]) for batch in paths.quantized]
    weights = plan.weights[unit.name]
    if config.rounding == "adaround":
        weights = _learn(graph, unit, weights, inputs, paths, config, notices)
    if not config.bias_correction:
        return weights
    if unit.operator == "MatMul" and not unit.bias:
        text = "it has no bias to correct"
        notices.append(Diagnostic("TQ625", text, node=unit.name, operator=unit.operator))
        return weights
    bias = _corrected_bias(graph, unit, weights, inputs, [b[source] for b in paths.float])
    return with_bias(weights, bias, params.scale)


def _through(params: ActivationParams, x: Floats) -> Floats:
    integers = params.quantize(x) - params.zero_point
    return (integers * np.float32(params.scale)).astype(np.float32)


def _learn(
    graph: Graph,
    unit: Unit,
    weights: WeightPlan,
    inputs: list[Floats],
    paths: _Paths,
    config: PtqConfig,
    notices: list[Diagnostic],
) -> WeightPlan:
    weight = channels_first(graph.initializers[unit.weight], unit.weight_axis)
    flat = weight.reshape(len(weight), -1)
    text = ""
    if unit.operator == "ConvTranspose":
        text = "learned rounding does not take transposed convolutions; rounded to nearest"
    elif flat.shape[1] > _LARGEST_K:
        text = f"{flat.shape[1]} inputs are too many for learned rounding; rounded to nearest"
    if text:
        notices.append(Diagnostic("TQ625", text, node=unit.name, operator=unit.operator))
        return weights
    floats = [batch[unit.inputs[0]] for batch in paths.float]
    pairs = list(zip(inputs, floats, strict=True))
    moments = gather_moments(unit.nodes[0], weight.shape, pairs, config.seed)
    if config.bias_correction:
        moments = moments.centered()
    result = learn_rounding(flat, weights.scales, weights.bits, moments)
    integers = channels_first(result.integers.reshape(weight.shape), unit.weight_axis)
    return replace(weights, integers=np.ascontiguousarray(integers))


def _corrected_bias(
    graph: Graph, unit: Unit, weights: WeightPlan, inputs: list[Floats], floats: list[Floats]
) -> Floats:
    """The bias less the mean error that quantization brings to each channel's sum."""
    bias = graph.initializers.get(unit.bias)
    channels = len(weights.scales)
    zero = np.zeros(channels, np.float32)
    wanted = _mean_sum(graph, unit, graph.initializers[unit.weight], floats)
    found = _mean_sum(graph, unit, weights.dequantized, inputs)
    return ((zero if bias is None else bias) + (wanted - found)).astype(np.float32)


def _mean_sum(
    graph: Graph, unit: Unit, weight: Floats, inputs: list[Floats]
) -> npt.NDArray[np.float64]:
    """Mean of the linear operator's output for each channel, without the bias."""
    node = onnx.NodeProto()
    node.CopyFrom(unit.nodes[0])
    del node.input[2:]
    sub = unit_graph(graph, replace(unit, nodes=[node], bias=""))
    sub.initializers[unit.weight] = weight
    runner = session(sub.to_model(), exact=True)
    axis = 1 if unit.operator in ("Conv", "ConvTranspose") else -1
    total, count = np.zeros(weight.shape[unit.weight_axis]), 0
    for x in inputs:
        (y,) = runner.run(None, {unit.inputs[0]: x})
        y = np.moveaxis(y, axis, 0).reshape(len(total), -1)
        total += y.sum(axis=1, dtype=np.float64)
        count += y.shape[1]
    return total / count


def linear_nodes(unit: Unit) -> list[onnx.NodeProto]:
    """The nodes of a linear unit before its Relu or Clip."""
    return [node for node in unit.nodes if node.op_type not in ACTIVATIONS]
