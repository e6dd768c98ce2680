"""Gives operators the arithmetic of TensorFlow Lite's reference kernels (oracle ``tflite``).

CONV_2D and DEPTHWISE_CONV_2D round twice, FULLY_CONNECTED once; pools, means and SOFTMAX have rules
of their own. Elementwise operators need nothing here: their tables and pairs come from the
interpreter itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tinyq.errors import Diagnostic, TinyqError
from tinyq.ir import DType, Graph, Node
from tinyq.ops.average_pool2d import AveragePool2dAttrs
from tinyq.ops.fixed_point import FixedPointSoftmax, fixed_point_linear
from tinyq.ops.softmax import DEPTH_LIMIT
from tinyq.quant import Rounding

DEEPEST_SHIFT = 31
"""RoundingDivideByPOT takes exponents up to this."""


def adopt_tflite(graph: Graph) -> Graph:
    """The graph with TensorFlow Lite's arithmetic, for one that is not synthesised yet.

    Raises TQ203 with every operator whose result the reference kernels leave undefined.
    """
    unsigned = any(value.type.dtype is DType.UINT8 for value in graph.inputs)
    nodes, problems = [], []
    for node in graph.nodes:
        rule = _RULES.get(node.op)
        attrs = rule(node, unsigned) if rule is not None else node.attrs
        if isinstance(attrs, str):
            problems.append(Diagnostic("TQ203", attrs, _REMEDY, node.name, node.op))
            attrs = node.attrs
        changed = attrs is not node.attrs
        nodes.append(
            Node(node.op, node.name, node.inputs, node.outputs, attrs) if changed else node
        )
    if problems:
        raise TinyqError(problems)
    return graph.replace(nodes)


_REMEDY = "TensorFlow Lite's own result is undefined here; compile with --oracle ort."


def _conv(node: Node, unsigned: bool) -> Any:
    oracle = fixed_point_linear(node, Rounding.TWICE, DEEPEST_SHIFT)
    if isinstance(oracle, str):
        return oracle
    return replace(node.attrs, oracle=replace(oracle, literal=False))


def _dense(node: Node, unsigned: bool) -> Any:
    oracle = fixed_point_linear(node, Rounding.ONCE, DEEPEST_SHIFT)
    return oracle if isinstance(oracle, str) else replace(node.attrs, oracle=oracle)


def _mean(node: Node, unsigned: bool) -> Any:
    attrs = node.attrs
    if not isinstance(attrs, AveragePool2dAttrs):
        return attrs
    if attrs.rule == "axes":
        return replace(attrs, rule="twice")
    return replace(attrs, rule="unsigned" if unsigned else "away")


def _softmax(node: Node, unsigned: bool) -> Any:
    x, y = node.input(0).type.quant, node.output.type.quant
    if x is None or y is None or (y.scale, y.zero_point) != (1 / 256, -128):
        return "its output's scale is not 1/256, or its zero point not the smallest integer"
    if node.output.type.shape[-1] > DEPTH_LIMIT:
        return f"rows of more than {DEPTH_LIMIT} elements"
    made = FixedPointSoftmax.of(x.scale)
    return made.problem() or made


_RULES: Mapping[str, Callable[[Node, bool], Any]] = MappingProxyType(
    {"conv2d": _conv, "dense": _dense, "average_pool2d": _mean, "softmax": _softmax}
)
