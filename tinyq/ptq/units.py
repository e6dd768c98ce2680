"""Groups of float nodes that become one quantized operator, and the tensors between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx

from tinyq.errors import Diagnostic, TinyqError
from tinyq.ptq.graph import Graph, attributes

Kind = Literal["linear", "op", "share", "concat", "index", "plain"]

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")
TABLE = ("Relu", "Clip", "Sigmoid", "Tanh", "Softmax", "LeakyRelu", "PRelu", "HardSwish",
         "HardSigmoid", "Elu", "Selu", "Celu", "Gelu", "Softplus", "Softsign", "Mish", "Abs",
         "Neg", "Erf", "Exp", "Sqrt", "Reciprocal", "ThresholdedRelu")  # fmt: skip
POOLS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
# The output holds values of the input, so both have one scale and the integers are copied.
SHARE = ("MaxPool", "GlobalMaxPool", "ReduceMax", "Reshape", "Flatten", "Transpose", "Squeeze",
         "Unsqueeze", "Slice", "Split", "Pad", "Resize", "DepthToSpace", "SpaceToDepth", "Tile",
         "Expand", "Gather")  # fmt: skip
INDEX = ("ArgMax", "ArgMin", "Shape", "Size")
ACTIVATIONS = ("Relu", "Clip")


@dataclass
class Unit:
    """Nodes between which nothing is quantized: the operator and the Relu or Clip behind it.

    Attributes:
        name: that of its first node.
        kind: ``linear`` has weights, ``op`` chooses its output's scale, ``share`` copies
            integers, ``concat`` copies them if the scales agree, ``index`` gives integers,
            ``plain`` handles no float tensor.
        nodes: in order; the last one writes ``outputs``.
        inputs: float tensors that are computed (not constant), in the first node's order.
        constants: float constant operands that are quantized as activations (of Add, Mul, ...).
        outputs: float tensors that later units or the caller read.
        weight: initialiser with the weights, of a linear unit.
        weight_axis: the output channels' axis in it.
        bias: initialiser with the bias, if any.
    """

    name: str
    kind: Kind
    nodes: list[onnx.NodeProto]
    inputs: list[str]
    outputs: list[str]
    constants: list[str] = field(default_factory=list)
    weight: str = ""
    weight_axis: int = 0
    bias: str = ""

    @property
    def operator(self) -> str:
        """ONNX operator of the first node."""
        return str(self.nodes[0].op_type)

    @property
    def preactivation(self) -> str:
        """Output of the linear part, before the Relu or Clip, with the bias added."""
        last = [n for n in self.nodes if n.op_type not in ACTIVATIONS or n is self.nodes[0]][-1]
        return str(last.output[0])


def find_units(graph: Graph) -> list[Unit]:
    """Split a prepared graph into units, in topological order.

    Raises:
        TinyqError: TQ601, with every operator that cannot be quantized.
    """
    consumers, outputs = graph.consumers(), set(graph.output_names)
    units: list[Unit] = []
    writer: dict[str, Unit] = {}
    refused: list[Diagnostic] = []
    for node in graph.nodes:
        head = writer.get(node.input[0]) if node.input else None
        if head is not None and _joins(graph, node, head, consumers, outputs):
            _join(graph, head, node)
            unit = head
        else:
            why = _refusal(graph, node)
            if why:
                refused.append(Diagnostic("TQ601", why, node=node.name, operator=node.op_type))
            unit = _unit(graph, node)
            units.append(unit)
        writer.update(dict.fromkeys(unit.outputs, unit))
    if refused:
        raise TinyqError(refused)
    return units


def _kind(graph: Graph, node: onnx.NodeProto) -> Kind:
    floats = any(graph.is_float(name) for name in node.output if name)
    if node.op_type in INDEX:
        return "index" if node.op_type.startswith("Arg") else "plain"
    if not floats:
        return "plain"
    if node.op_type == "Concat":
        return "concat"
    if node.op_type in LINEAR and node.input[1] in graph.initializers:
        return "linear"
    return "share" if node.op_type in SHARE else "op"


def _unit(graph: Graph, node: onnx.NodeProto) -> Unit:
    kind = _kind(graph, node)
    names = [n for n in node.input if n and graph.is_float(n)]
    unit = Unit(
        node.name, kind, [node],
        inputs=[n for n in names if n not in graph.initializers],
        outputs=[n for n in node.output if n and graph.is_float(n)],
    )  # fmt: skip
    if kind == "linear":
        unit.weight = node.input[1]
        unit.weight_axis = 1 if node.op_type in ("MatMul", "ConvTranspose") else 0
        unit.bias = node.input[2] if len(node.input) > 2 else ""
    elif node.op_type in (*BINARY, "Concat", "MatMul", "PRelu"):
        unit.constants = [n for n in names if n in graph.initializers]
    return unit


def _joins(
    graph: Graph,
    node: onnx.NodeProto,
    head: Unit,
    consumers: dict[str, list[onnx.NodeProto]],
    outputs: set[str],
) -> bool:
    """Whether ``node`` continues ``head`` without a quantized tensor between the two."""
    tensor = node.input[0]
    if len(consumers[tensor]) > 1 or tensor in outputs:
        return False
    if node.op_type in ACTIVATIONS:
        computes = head.operator in (*LINEAR, *BINARY)
        return computes and _constant_bounds(graph, node)
    return _is_matmul_bias(graph, node, head)


def _constant_bounds(graph: Graph, node: onnx.NodeProto) -> bool:
    return all(name in graph.initializers for name in node.input[1:] if name)


def _is_matmul_bias(graph: Graph, node: onnx.NodeProto, head: Unit) -> bool:
    if node.op_type != "Add" or head.operator != "MatMul" or head.kind != "linear" or head.bias:
        return False
    bias = graph.initializers.get(node.input[1])
    channels = graph.initializers[head.weight].shape[-1]
    return bias is not None and len(head.nodes) == 1 and bias.shape == (channels,)


def _join(graph: Graph, head: Unit, node: onnx.NodeProto) -> None:
    head.nodes.append(node)
    head.outputs = list(node.output[:1])
    if node.op_type == "Add":
        head.bias = node.input[1]


def _refusal(graph: Graph, node: onnx.NodeProto) -> str:
    """Why a node cannot be quantized, or ''."""
    if _kind(graph, node) == "plain":
        return ""
    if node.op_type not in (*LINEAR, *BINARY, *TABLE, *POOLS, *SHARE, *INDEX, "Concat"):
        return "no quantized form is known"
    if node.op_type == "Pad":
        return _pad_refusal(graph, node)
    return next((why for ops, bad, why in _FORMS if node.op_type in ops and bad(graph, node)), "")


def _computed(index: int) -> Callable[[Graph, onnx.NodeProto], bool]:
    """Whether the operand at ``index`` is given and not constant."""

    def test(graph: Graph, node: onnx.NodeProto) -> bool:
        name = node.input[index] if len(node.input) > index else ""
        return bool(name) and name not in graph.initializers

    return test


def _constant_not_matrix(graph: Graph, node: onnx.NodeProto) -> bool:
    weight = graph.initializers.get(node.input[1])
    return weight is not None and weight.ndim != 2


def _grouped(graph: Graph, node: onnx.NodeProto) -> bool:
    return bool(attributes(node).get("group", 1) != 1)


def _not_nearest(graph: Graph, node: onnx.NodeProto) -> bool:
    return attributes(node).get("mode", b"nearest") not in (b"nearest", "nearest")


_FORMS: tuple[tuple[tuple[str, ...], Callable[[Graph, onnx.NodeProto], bool], str], ...] = (
    (("Conv", "ConvTranspose", "Gemm"), _computed(1), "its weights are computed, not constant"),
    (("Conv", "ConvTranspose", "Gemm"), _computed(2), "its bias is computed, not constant"),
    (("ConvTranspose",), _grouped, "groups share the scales of their weights"),
    (("MatMul",), _constant_not_matrix, "its constant operand is not a matrix"),
    (("MatMul",), lambda g, n: n.input[0] in g.initializers, "its first operand is constant"),
    (("Clip",), lambda g, n: not _constant_bounds(g, n), "its bounds are computed, not constant"),
    (("PRelu",), _computed(1), "its slopes are computed, not constant"),
    (("Resize",), _not_nearest, "only the mode nearest copies values"),
    (("Gather",), lambda g, n: n.input[0] in g.initializers, "it looks up rows of a float table"),
    (("MaxPool",), lambda g, n: len(n.output) > 1, "its indices are used"),
)


def _pad_refusal(graph: Graph, node: onnx.NodeProto) -> str:
    if len(node.input) < 3 or not node.input[2]:
        return ""
    value = graph.initializers.get(node.input[2])
    if value is None:
        return "its padding value is computed, not constant"
    return "" if np.isfinite(value).all() else "its padding value is not finite"


def float_tensors(graph: Graph, units: list[Unit]) -> list[str]:
    """Every tensor that is quantized as an activation, graph inputs first, in order."""
    names = [v.name for v in graph.inputs if graph.is_float(v.name)]
    for unit in units:
        if unit.kind != "plain":
            names.extend(unit.outputs)
    return list(dict.fromkeys(names))


def share_classes(
    graph: Graph, units: list[Unit], fixed: frozenset[str], unify_concat: bool = True
) -> list[tuple[list[str], list[str]]]:
    """Tensors that must have one scale: a list of (members, sources).

    Sources are the members whose values are computed; the others hold copies of them. Tensors in
    ``fixed`` have known parameters and are not unified with the inputs of a Concat.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            name = parent[name]
        return name

    copies: set[str] = set()
    for name in float_tensors(graph, units):
        root(name)
    for unit in units:
        if unit.kind == "share" or (unit.kind == "concat" and unify_concat):
            copies.update(unit.outputs)
            keep = unit.inputs if unit.kind == "share" else [
                n for n in unit.inputs if n not in fixed
            ]  # fmt: skip
            first = unit.outputs[0]
            for other in (*unit.outputs[1:], *keep):
                parent[root(other)] = root(first)
    classes: dict[str, list[str]] = {}
    for name in parent:
        classes.setdefault(root(name), []).append(name)
    return [
        (members, [m for m in members if m not in copies] or members)
        for members in classes.values()
    ]
