"""Gives operators the arithmetic of TensorFlow Lite's reference kernels (oracle ``tflite``).

CONV_2D and DEPTHWISE_CONV_2D round twice, FULLY_CONNECTED once, in float64; pools, means and
SOFTMAX have rules of their own. Elementwise operators need nothing here: their tables and pairs
come from the interpreter itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyq.errors import Diagnostic, TinyqError
from tinyq.ir import DType, Graph, Node
from tinyq.ops.average_pool2d import AveragePool2dAttrs
from tinyq.ops.fixed_point import FixedPointSoftmax, fixed_point_linear
from tinyq.ops.softmax import DEPTH_LIMIT
from tinyq.quant import OrtLinear, RealLinear, Rounding

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
    attrs = node.attrs
    if unsigned:
        attrs = replace(attrs, scale=_products_in_float32(node))
    scaled = Node(node.op, node.name, node.inputs, node.outputs, attrs)
    oracle = fixed_point_linear(scaled, Rounding.TWICE, DEEPEST_SHIFT)
    if isinstance(oracle, str):
        return oracle
    return replace(attrs, oracle=replace(oracle, literal=False))


def _products_in_float32(node: Node) -> npt.NDArray[np.float64]:
    """x_scale * w_scale / y_scale as the kernels of uint8 have it: the product is a float32."""
    factors = np.asarray(node.attrs.scale, np.float64)
    x, y = node.input(0).type.quant, node.output.type.quant
    if x is None or y is None:
        return factors
    weight_scales = (factors * y.scale / x.scale).astype(np.float32)
    return (np.float32(x.scale) * weight_scales).astype(np.float64) / y.scale


def _dense(node: Node, unsigned: bool) -> Any:
    oracle = node.attrs.oracle
    if not isinstance(oracle, OrtLinear):
        return "its bias is not an integer of the accumulator's scale"
    real = RealLinear(
        np.asarray(node.attrs.scale, np.float64), oracle.bias, oracle.offset, oracle.zero_point,
        oracle.qmin, oracle.qmax,
    )  # fmt: skip
    return replace(node.attrs, oracle=real)


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
