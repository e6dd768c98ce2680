"""Groups of float nodes that become one quantized operator, and the tensors between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx

from tinyq.errors import Diagnostic, TinyqError
from tinyq.ptq.graph import Graph, attributes

Kind = Literal["linear", "op", "share", "concat", "index", "plain"]

LINEAR = ("Conv", "Gemm", "MatMul")
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")
TABLE = ("Relu", "Clip", "Sigmoid", "Tanh", "Softmax", "LeakyRelu", "PRelu", "HardSwish",
         "HardSigmoid", "Elu", "Selu", "Celu", "Gelu", "Softplus", "Softsign", "Mish", "Abs",
         "Neg", "Erf", "Exp", "Sqrt", "ThresholdedRelu")  # fmt: skip
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
        unit.weight_axis = 1 if node.op_type == "MatMul" else 0
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
    op, attrs = node.op_type, attributes(node)
    if _kind(graph, node) == "plain":
        return ""
    known = (*LINEAR, *BINARY, *TABLE, *POOLS, *SHARE, *INDEX, "Concat")
    if op not in known:
        return "no quantized form is known"
    if op in ("Conv", "Gemm") and node.input[1] not in graph.initializers:
        return "its weights are computed, not constant"
    if op == "MatMul" and _kind(graph, node) == "linear":
        if graph.initializers[node.input[1]].ndim != 2:
            return "its constant operand is not a matrix"
    if op == "MatMul" and node.input[0] in graph.initializers:
        return "its first operand is constant"
    if op == "Conv" and len(node.input) > 2 and node.input[2] not in graph.initializers | {"": 0}:
        return "its bias is computed, not constant"
    if op == "Clip" and not _constant_bounds(graph, node):
        return "its bounds are computed, not constant"
    if op == "PRelu" and node.input[1] not in graph.initializers:
        return "its slopes are computed, not constant"
    if op == "Resize" and attrs.get("mode", b"nearest") not in (b"nearest", "nearest"):
        return f"mode {attrs['mode']!r}; only nearest copies values"
    if op == "Pad" and attrs.get("mode", b"constant") in (b"constant", "constant"):
        return _pad_refusal(graph, node)
    if op == "Gather" and node.input[0] in graph.initializers:
        return "it looks rows up in a float table"
    if op == "MaxPool" and len(node.output) > 1 and node.output[1]:
        return "its indices are used"
    return ""


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
