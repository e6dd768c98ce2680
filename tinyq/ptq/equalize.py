"""Data-free equalisation of weight ranges between neighbouring layers.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019):
where nothing but Relu lies between two layers, channel i of the first may be scaled by s and
input i of the second by 1/s without changing the network. s = sqrt(r1 r2) / r1 makes the ranges
r1 and r2 of both channels equal, so that one scale for the layer serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyq.errors import Diagnostic
from tinyq.ptq.graph import Graph, attributes
from tinyq.ptq.units import Unit

Floats = npt.NDArray[np.float32]
_ROUNDS = 40
_SETTLED = 1e-3
_SIGMAS = 3.0


@dataclass(frozen=True)
class _Pair:
    first: Unit
    second: Unit
    relu: bool


def equalize(graph: Graph, units: list[Unit], notices: list[Diagnostic]) -> int:
    """Equalise all chains of Conv and Gemm layers in place, then absorb large biases.

    Returns the number of pairs of layers that were equalised; a notice says if there are none.
    """
    pairs = _pairs(graph, units)
    if not pairs:
        notices.append(Diagnostic("TQ625", "no two neighbouring layers can be equalised"))
        return 0
    _own_constants(graph, pairs)
    for _ in range(_ROUNDS):
        if max(_equalize_pair(graph, pair) for pair in pairs) < _SETTLED:
            break
    for pair in pairs:
        _absorb_bias(graph, pair, notices)
    return len(pairs)


def _pairs(graph: Graph, units: list[Unit]) -> list[_Pair]:
    consumers: dict[str, list[Unit]] = {}
    for unit in units:
        for name in unit.inputs:
            consumers.setdefault(name, []).append(unit)
    outputs = set(graph.output_names)
    found = []
    for unit in units:
        between = [n.op_type for n in unit.nodes[1:]]
        # Clip bounds would have to follow the scale of each channel: only Relu is homogeneous.
        if unit.operator not in ("Conv", "Gemm") or unit.kind != "linear" or "Clip" in between:
            continue
        readers = consumers.get(unit.outputs[0], [])
        if len(readers) != 1 or unit.outputs[0] in outputs:
            continue
        reader = readers[0]
        if reader.kind == "linear" and reader.operator == unit.operator:
            found.append(_Pair(unit, reader, "Relu" in between))
    return found


def _own_constants(graph: Graph, pairs: list[_Pair]) -> None:
    """Give the layers weights of their own, as scaling shared ones would change other layers."""
    seen: set[str] = set()
    for unit in {id(u): u for pair in pairs for u in (pair.first, pair.second)}.values():
        node = unit.nodes[0]
        for index, name in ((1, unit.weight), (2, unit.bias)):
            if not name:
                continue
            users = sum(n is not node and name in n.input for n in graph.nodes)
            if users or name in seen:
                own = f"{unit.name}_{'weight' if index == 1 else 'bias'}_own"
                graph.initializers[own] = graph.initializers[name].copy()
                node.input[index] = own
                if index == 1:
                    unit.weight = own
                else:
                    unit.bias = own
            seen.add(node.input[index])


def _group(unit: Unit) -> int:
    return int(attributes(unit.nodes[0]).get("group", 1))


def _input_ranges(graph: Graph, unit: Unit, channels: int) -> Floats:
    """Largest |weight| that multiplies each input channel, [channels]."""
    weight = np.abs(graph.initializers[unit.weight])
    groups = _group(unit)
    grouped = weight.reshape(groups, weight.shape[0] // groups, channels // groups, -1)
    largest: Floats = grouped.max(axis=(1, 3)).reshape(channels)
    return largest


def _scale_inputs(graph: Graph, unit: Unit, scale: Floats) -> None:
    weight = graph.initializers[unit.weight]
    groups = _group(unit)
    grouped = weight.reshape(groups, weight.shape[0] // groups, len(scale) // groups, -1)
    scaled = grouped * scale.reshape(groups, 1, -1, 1)
    graph.initializers[unit.weight] = scaled.reshape(weight.shape).astype(np.float32)


def _equalize_pair(graph: Graph, pair: _Pair) -> float:
    """Scale one pair; returns the largest change of a channel, |log s|."""
    weight = graph.initializers[pair.first.weight]
    r1 = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    r2 = _input_ranges(graph, pair.second, len(weight))
    alive = (r1 > 0) & (r2 > 0)
    s = np.ones_like(r1)
    # float64: the product of two tiny ranges would vanish in float32.
    s[alive] = np.sqrt(r1[alive].astype(np.float64) * r2[alive]) / r1[alive]
    shape = (-1, *([1] * (weight.ndim - 1)))
    graph.initializers[pair.first.weight] = (weight * s.reshape(shape)).astype(np.float32)
    if pair.first.bias:
        graph.initializers[pair.first.bias] = graph.initializers[pair.first.bias] * s
    _scale_inputs(graph, pair.second, (1 / s).astype(np.float32))
    stats = graph.batchnorm.get(pair.first.preactivation)
    if stats is not None:
        graph.batchnorm[pair.first.preactivation] = (stats[0] * s, stats[1] * s)
    return float(np.abs(np.log(s)).max())


def _absorb_bias(graph: Graph, pair: _Pair, notices: list[Diagnostic]) -> None:
    """Move what a channel nearly always exceeds, c = max(0, beta - 3 gamma), to the next bias.

    Relu(x) - c = Relu(x - c) wherever x > c. Zero padding of the second layer would not be less
    c, so padded layers are left alone.
    """
    stats = graph.batchnorm.get(pair.first.preactivation)
    if stats is None or not pair.relu or not pair.first.bias:
        return
    beta, gamma = stats
    c = np.maximum(0.0, beta - _SIGMAS * gamma).astype(np.float32)
    if not c.any():
        return
    if _is_padded(pair.second):
        text = f"{int((c > 0).sum())} large biases stay, as the next layer pads with zeros"
        notices.append(
            Diagnostic("TQ625", text, node=pair.first.name, operator=pair.first.operator)
        )
        return
    moved = _through(graph, pair.second, c)
    graph.initializers[pair.first.bias] = graph.initializers[pair.first.bias] - c
    graph.batchnorm[pair.first.preactivation] = (beta - c, gamma)
    if pair.second.bias:
        graph.initializers[pair.second.bias] = graph.initializers[pair.second.bias] + moved
        return
    name = f"{pair.second.name}_bias"
    graph.initializers[name] = moved
    node = pair.second.nodes[0]
    while len(node.input) < 3:
        node.input.append("")
    node.input[2] = pair.second.bias = name


def _through(graph: Graph, unit: Unit, c: Floats) -> Floats:
    """What a constant input c [channels] adds to each output channel of ``unit``."""
    weight = graph.initializers[unit.weight]
    groups = _group(unit)
    grouped = weight.reshape(groups, weight.shape[0] // groups, len(c) // groups, -1).sum(axis=3)
    moved: Floats = np.einsum("goi,gi->go", grouped, c.reshape(groups, -1)).astype(np.float32)
    return moved.reshape(-1)


def _is_padded(unit: Unit) -> bool:
    attrs = attributes(unit.nodes[0])
    auto = attrs.get("auto_pad", b"NOTSET")
    return any(attrs.get("pads", [])) or auto in (b"SAME_UPPER", b"SAME_LOWER")
