"""Layer by layer: learned rounding and bias correction on what the quantized layers before give.

The float and the quantized network run side by side, a unit at a time, and each unit is tuned so
that its output from the quantized input is closest to the float output from the float input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
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
from tinyq.ptq.moments import Moments, gather_moments
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

    def advance(self, graph: Graph, unit: Unit, plan: Plan) -> None:
        """Compute a unit on both paths, and forget what no later unit reads."""
        sub = unit_graph(graph, unit)
        _advance(sub.to_model(), self.float)
        is_plain = unit.kind == "plain"
        _advance(sub.to_model() if is_plain else emit(sub, [unit], plan), self.quantized)
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
            params = plan.activations[unit.inputs[0]]
            tuner = _Tuner(graph, unit, params, paths, config, notices)
            plan = plan.with_weights(unit.name, tuner.tune(plan.weights[unit.name]))
        paths.advance(graph, unit, plan)
        if progress is not None:
            progress("reconstruct", i + 1, len(units))
    return plan


def tune_alternatives(
    graph: Graph,
    units: list[Unit],
    plan: Plan,
    alternatives: Mapping[str, Mapping[str, WeightPlan]],
    data: CalibrationData,
    config: PtqConfig,
    progress: Progress | None = None,
) -> dict[str, dict[str, WeightPlan]]:
    """Other weights of single units, by unit and any key, each tuned behind the units of ``plan``.

    As :func:`reconstruct` would tune them with all other units as they are in ``plan``.
    """
    size = batch_size(graph.to_model(), config.batch_size)
    paths = _Paths(graph, units, data, size)
    found: dict[str, dict[str, WeightPlan]] = {}
    for i, unit in enumerate(units):
        if others := alternatives.get(unit.name):
            params = plan.activations[unit.inputs[0]]
            tuner = _Tuner(graph, unit, params, paths, config, [])
            found[unit.name] = {key: tuner.tune(other) for key, other in others.items()}
        paths.advance(graph, unit, plan)
        if progress is not None:
            progress("reconstruct", i + 1, len(units))
    return found


def _advance(model: onnx.ModelProto, batches: list[Batch]) -> None:
    runner = session(model, exact=True)
    wanted = [value.name for value in runner.get_inputs()]
    names = [value.name for value in runner.get_outputs()]
    for batch in batches:
        outputs = runner.run(names, {name: batch[name] for name in wanted})
        batch.update(zip(names, outputs, strict=True))


@dataclass(eq=False)
class _Tuner:
    """What one unit reads and should give; tunes any weights of it."""

    graph: Graph
    unit: Unit
    params: ActivationParams
    paths: _Paths
    config: PtqConfig
    notices: list[Diagnostic]

    def tune(self, weights: WeightPlan) -> WeightPlan:
        """The rounding learned and the bias corrected, as the configuration asks."""
        unit = self.unit
        if self.config.rounding == "adaround":
            weights = self._learn(weights)
        if not self.config.bias_correction:
            return weights
        if unit.operator == "MatMul" and not unit.bias:
            self._note("it has no bias to correct")
            return weights
        return with_bias(weights, self._corrected_bias(weights), self.params.scale)

    def _note(self, text: str) -> None:
        unit = self.unit
        self.notices.append(Diagnostic("TQ625", text, node=unit.name, operator=unit.operator))

    @cached_property
    def _inputs(self) -> list[Floats]:
        source = self.unit.inputs[0]
        return [_through(self.params, batch[source]) for batch in self.paths.quantized]

    @property
    def _floats(self) -> list[Floats]:
        return [batch[self.unit.inputs[0]] for batch in self.paths.float]

    @cached_property
    def _moments(self) -> Moments:
        weight = channels_first(self.graph.initializers[self.unit.weight], self.unit.weight_axis)
        pairs = list(zip(self._inputs, self._floats, strict=True))
        moments = gather_moments(self.unit.nodes[0], weight.shape, pairs, self.config.seed)
        return moments.centered() if self.config.bias_correction else moments

    @cached_property
    def _wanted(self) -> npt.NDArray[np.float64]:
        weight = self.graph.initializers[self.unit.weight]
        return _mean_sum(self.graph, self.unit, weight, self._floats)

    def _learn(self, weights: WeightPlan) -> WeightPlan:
        unit = self.unit
        weight = channels_first(self.graph.initializers[unit.weight], unit.weight_axis)
        flat = weight.reshape(len(weight), -1)
        text = ""
        if unit.operator == "ConvTranspose":
            text = "learned rounding does not take transposed convolutions; rounded to nearest"
        elif flat.shape[1] > _LARGEST_K:
            text = f"{flat.shape[1]} inputs are too many for learned rounding; rounded to nearest"
        if text:
            self._note(text)
            return weights
        result = learn_rounding(flat, weights.scales, weights.levels, self._moments)
        integers = channels_first(result.integers.reshape(weight.shape), unit.weight_axis)
        return replace(weights, integers=np.ascontiguousarray(integers))

    def _corrected_bias(self, weights: WeightPlan) -> Floats:
        """The bias less the mean error that quantization brings to each channel's sum."""
        bias = self.graph.initializers.get(self.unit.bias)
        zero = np.zeros(len(weights.scales), np.float32)
        found = _mean_sum(self.graph, self.unit, weights.dequantized, self._inputs)
        wrong = self._wanted - found
        return ((zero if bias is None else bias) + wrong).astype(np.float32)


def _through(params: ActivationParams, x: Floats) -> Floats:
    integers = params.quantize(x) - params.zero_point
    return (integers * np.float32(params.scale)).astype(np.float32)


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
