"""Gives operators CMSIS-NN's arithmetic where its functions compute them (oracle ``cmsis-nn``).

What CMSIS-NN has no function for (differences, broadcasts, means that change the scale) keeps the
arithmetic of the default oracle, and so does a layer for which the library's would be undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tinyq.ir import DType, Graph, Node, QuantParams
from tinyq.ops.add import AddAttrs
from tinyq.ops.average_pool2d import AveragePool2dAttrs
from tinyq.ops.cmsis_nn.add import sum_rounded_once
from tinyq.ops.cmsis_nn.average_pool2d import mean_of
from tinyq.ops.cmsis_nn.mul import product_rounded_once
from tinyq.ops.fixed_point import (
    FixedPointAdd,
    FixedPointMul,
    FixedPointSoftmax,
    fixed_point_linear,
)
from tinyq.ops.mul import MulAttrs
from tinyq.quant import Rounding


def adopt_fixed_point(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """The graph with CMSIS-NN's arithmetic, and a note on every operator that keeps another.

    For graphs whose linear operators are not synthesised yet.
    """
    nodes, kept = [], []
    for node in graph.nodes:
        attrs = _RULES[node.op](node) if node.op in _RULES else node.attrs
        if isinstance(attrs, str):
            kept.append(f"'{node.name}' keeps onnxruntime's rounding: {attrs}")
            attrs = node.attrs
        changed = attrs is not node.attrs
        nodes.append(
            Node(node.op, node.name, node.inputs, node.outputs, attrs) if changed else node
        )
    return graph.replace(nodes), tuple(kept)


def with_library_arithmetic(graph: Graph, names: Container[str]) -> Graph:
    """A synthesised graph whose nodes of these names compute as a library rounding once does.

    It is what C that calls the library computes where that can differ from the oracle.
    """
    nodes = []
    for node in graph.nodes:
        rule = _ONCE.get(node.op) if node.name in names else None
        attrs = rule(node) if rule is not None else node.attrs
        changed = attrs is not node.attrs and not isinstance(attrs, str)
        nodes.append(
            Node(node.op, node.name, node.inputs, node.outputs, attrs) if changed else node
        )
    return graph.replace(nodes)


def _linear_once(node: Node) -> Any:
    made = fixed_point_linear(node, Rounding.ONCE)
    return made if isinstance(made, str) else replace(node.attrs, requant=made)


def _pair_once(node: Node) -> Any:
    found = (
        sum_rounded_once(node, node.attrs)
        if isinstance(node.attrs, AddAttrs)
        else product_rounded_once(node, node.attrs)
        if isinstance(node.attrs, MulAttrs)
        else node.attrs
    )
    return found[0] if isinstance(found, tuple) else found


def _mean_once(node: Node) -> Any:
    return mean_of(node) if isinstance(node.attrs, AveragePool2dAttrs) else node.attrs


_ONCE: Mapping[str, Callable[[Node], Any]] = MappingProxyType(
    {
        "conv2d": _linear_once,
        "dense": _linear_once,
        "add": _pair_once,
        "mul": _pair_once,
        "average_pool2d": _mean_once,
    }
)


def _linear(node: Node) -> Any:
    attrs, weights = node.attrs, node.input(1)
    if weights.type.dtype is not DType.INT8:
        return "its weights need 16 bits"
    oracle = fixed_point_linear(node, Rounding.TWICE)
    if isinstance(oracle, str):
        return oracle
    # A Relu hides where the second rounding bends the line: another form may equal it.
    return replace(attrs, oracle=replace(oracle, literal=oracle.qmin < oracle.zero_point))


def _quants(node: Node) -> list[QuantParams] | None:
    values = [*node.present_inputs, *node.outputs]
    found = [value.type.quant for value in values]
    return [q for q in found if q is not None and q.is_per_tensor] if all(found) else None


def _pair(node: Node) -> tuple[list[QuantParams], str]:
    quants = _quants(node)
    if quants is None or len(quants) != 3:
        return [], "an operand has no quantization"
    if node.input(0).type.shape != node.input(1).type.shape:
        return quants, "CMSIS-NN has no broadcasting"
    return quants, ""


def _add(node: Node) -> Any:
    attrs = node.attrs
    quants, problem = _pair(node)
    if not isinstance(attrs, AddAttrs) or problem:
        return problem or attrs
    if attrs.multiplier_a < 0 or attrs.multiplier_b < 0:
        return "CMSIS-NN has no subtraction"
    made = FixedPointAdd.of(_scales(quants), _zeros(quants), (attrs.qmin, attrs.qmax))
    return made.problem() or made


def _mul(node: Node) -> Any:
    attrs = node.attrs
    quants, problem = _pair(node)
    if not isinstance(attrs, MulAttrs) or problem:
        return problem or attrs
    limits = (attrs.requant.qmin, attrs.requant.qmax)
    made = FixedPointMul.of(_scales(quants), _zeros(quants), limits)
    return made.problem() or made


def _scales(quants: list[QuantParams]) -> tuple[float, float, float]:
    return quants[0].scale, quants[1].scale, quants[2].scale


def _zeros(quants: list[QuantParams]) -> tuple[int, int, int]:
    return quants[0].zero_point, quants[1].zero_point, quants[2].zero_point


def _mean(node: Node) -> Any:
    attrs = node.attrs
    if not isinstance(attrs, AveragePool2dAttrs):
        return attrs
    found = mean_of(node)
    return found if isinstance(found, str) else replace(attrs, rule="away")


def _softmax(node: Node) -> Any:
    quants = _quants(node)
    if quants is None or len(quants) != 2:
        return "an operand has no quantization"
    if quants[1].scale != 1 / 256 or quants[1].zero_point != -128:
        return "CMSIS-NN's softmax has an output of scale 1/256 and zero point -128"
    made = FixedPointSoftmax.of(quants[0].scale)
    return made.problem() or made


_RULES: Mapping[str, Callable[[Node], Any]] = MappingProxyType(
    {
        "conv2d": _linear,
        "dense": _linear,
        "add": _add,
        "mul": _mul,
        "average_pool2d": _mean,
        "softmax": _softmax,
    }
)
