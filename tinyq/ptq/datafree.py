"""Ranges and bias corrections from BatchNorm statistics, where there are no samples.

A BatchNorm leaves its channels with mean beta and standard deviation gamma on the training data,
so its output lies within beta ± 6 gamma, and its mean behind a Relu is that of a rectified normal
variable, gamma phi(-beta/gamma) + beta (1 - Phi(-beta/gamma)) (Nagel et al., 2019).
"""

from __future__ import annotations

from math import erf, exp, pi, sqrt

import numpy as np
import numpy.typing as npt

from tinyq.errors import Diagnostic
from tinyq.ptq.calibrate import Range
from tinyq.ptq.graph import Graph, attributes
from tinyq.ptq.plan import Plan, channels_first, with_bias
from tinyq.ptq.units import Unit

_SIGMAS = 6.0


def batchnorm_ranges(graph: Graph, units: list[Unit]) -> dict[str, Range]:
    """Ranges of the tensors that come out of a BatchNorm and at most a Relu or a Clip."""
    found = {}
    for unit in units:
        stats = graph.batchnorm.get(unit.preactivation) if unit.kind == "linear" else None
        if stats is None:
            continue
        beta, gamma = stats
        low = float(np.min(beta - _SIGMAS * gamma))
        high = float(np.max(beta + _SIGMAS * gamma))
        for node in unit.nodes[1:]:
            bottom, top = _bounds(graph, node.op_type, list(node.input))
            low, high = min(max(low, bottom), top), min(max(high, bottom), top)
        found[unit.outputs[0]] = (low, high)
    return found


def _bounds(graph: Graph, op: str, inputs: list[str]) -> Range:
    if op == "Relu":
        return 0.0, float("inf")
    if op != "Clip":
        return float("-inf"), float("inf")
    bounds = [float("-inf"), float("inf")]
    for i, name in enumerate(inputs[1:3]):
        if name:
            bounds[i] = float(graph.initializers[name])
    return bounds[0], bounds[1]


def rectified_mean(
    beta: npt.NDArray[np.float32], gamma: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """E[max(0, x)] of x ~ N(beta, gamma^2), elementwise."""
    means = []
    for b, g in zip(beta.tolist(), gamma.tolist(), strict=True):
        if g <= 0:
            means.append(max(b, 0.0))
            continue
        z = -b / g
        density = exp(-z * z / 2) / sqrt(2 * pi)
        means.append(g * density + b * (1 - (1 + erf(z / sqrt(2))) / 2))
    return np.array(means)


def correct_biases(graph: Graph, units: list[Unit], plan: Plan, notices: list[Diagnostic]) -> Plan:
    """Subtract the mean error of rounded weights, for layers whose input's mean is known."""
    by_output = {output: unit for unit in units for output in unit.outputs}
    corrected = 0
    for unit in units:
        mean = _input_mean(graph, by_output.get(unit.inputs[0])) if unit.kind == "linear" else None
        if mean is None or unit.operator in ("MatMul", "ConvTranspose"):
            continue
        weights = plan.weights[unit.name]
        error = weights.dequantized - graph.initializers[unit.weight]
        shift = _sum_over_inputs(unit, channels_first(error, unit.weight_axis), mean)
        bias = graph.initializers.get(unit.bias)
        bias = np.zeros(len(shift), np.float32) if bias is None else bias
        scale = plan.activations[unit.inputs[0]].scale
        tuned = with_bias(weights, (bias - shift).astype(np.float32), scale)
        plan = plan.with_weights(unit.name, tuned)
        corrected += 1
    linear = sum(unit.kind == "linear" for unit in units)
    text = f"biases of {corrected} of {linear} layers are corrected: the others' input is unknown"
    if corrected < linear:
        notices.append(Diagnostic("TQ625", text))
    return plan


def _input_mean(graph: Graph, source: Unit | None) -> npt.NDArray[np.float64] | None:
    """Mean of each channel that ``source`` puts out, or None if no BatchNorm tells it."""
    if source is None or source.kind != "linear":
        return None
    stats = graph.batchnorm.get(source.preactivation)
    ops = [node.op_type for node in source.nodes[1:]]
    if stats is None or any(op not in ("Relu", "Add") for op in ops):
        return None
    return rectified_mean(*stats) if "Relu" in ops else stats[0].astype(np.float64)


def _sum_over_inputs(
    unit: Unit, error: npt.NDArray[np.float32], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    groups = int(attributes(unit.nodes[0]).get("group", 1))
    grouped = error.reshape(groups, error.shape[0] // groups, len(mean) // groups, -1).sum(axis=3)
    total: npt.NDArray[np.float64] = np.einsum("goi,gi->go", grouped, mean.reshape(groups, -1))
    return total.reshape(-1)
