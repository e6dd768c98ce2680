"""Moves Quantize and Dequantize nodes past operators that only move data.

Quantization is elementwise and monotone, so it commutes with whatever only moves elements (Reshape,
Transpose, Slice, ...) or takes maxima (MaxPool). Moving DequantizeLinear down and QuantizeLinear up
past them leaves islands of float operators that really compute, each between integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyq.ir import (
    AnyArray,
    Graph,
    Node,
    OnnxAttrs,
    TensorType,
    Value,
    check,
    substitute,
    without_dead_nodes,
)

MOVEMENT = frozenset(
    {
        "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather",
        "MaxPool", "GlobalMaxPool", "ReduceMax", "Pad", "Resize", "Expand", "Tile", "DepthToSpace",
        "SpaceToDepth",
    }
)  # fmt: skip
"""Operators whose result holds only elements of their first input (or its padding value)."""

_ON_CONSTANTS: dict[str, Callable[[AnyArray, Node], AnyArray]] = {
    "Transpose": lambda data, node: np.transpose(data, node.attrs.get("perm")),
    "Reshape": lambda data, node: data.reshape(node.output.type.shape),
    "Flatten": lambda data, node: data.reshape(node.output.type.shape),
    "Squeeze": lambda data, node: data.reshape(node.output.type.shape),
    "Unsqueeze": lambda data, node: data.reshape(node.output.type.shape),
}


def commute_qdq(graph: Graph) -> Graph:
    """A graph whose float operators, between Dequantize and Quantize nodes, all compute."""
    graph = _merge_integer_clips(graph)
    graph = _push_dequantize_down(graph)
    while True:
        lifted = _lift_quantize(graph)
        if lifted is graph:
            break
        graph = lifted
    graph = _merge_equal_quantize(graph)
    graph = _drop_identical_pairs(graph)
    return check(without_dead_nodes(graph))


def _merge_integer_clips(graph: Graph) -> Graph:
    """QCDQ: a Clip of integers narrows the range of the QuantizeLinear before it."""
    merged: dict[Node, Node] = {}
    dropped: set[Node] = set()
    for node in graph.nodes:
        if node.op != "Clip" or not node.output.type.dtype.is_integer:
            continue
        producer = graph.producers.get(node.input(0))
        if producer is None or producer.op != "QuantizeLinear":
            continue
        if len(graph.uses(producer.output)) != 1 or producer.output in graph.outputs:
            continue
        low, high = node.output.type.dtype.limits
        bounds = [node.optional_input(k) for k in (1, 2)]
        if any(b is not None and not b.is_constant for b in bounds):
            continue
        if bounds[0] is not None:
            low = max(low, int(bounds[0].array))
        if bounds[1] is not None:
            high = min(high, int(bounds[1].array))
        attrs = OnnxAttrs({**producer.attrs.values, "qmin": low, "qmax": high})
        merged[producer] = Node(producer.op, producer.name, producer.inputs, node.outputs, attrs)
        dropped.add(node)
    return graph.replace(merged.get(n, n) for n in graph.nodes if n not in dropped)


def _is_movable(node: Node) -> bool:
    return node.op in MOVEMENT and all(
        value is None or value.is_constant for value in node.inputs[1:]
    )


def _integer_twin(value: Value, like: Value) -> Value:
    return Value(f"{value.name}__int", TensorType(value.type.shape, like.type.dtype))


def _push_dequantize_down(graph: Graph) -> Graph:
    source: dict[Value, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "DequantizeLinear":
            source[node.output] = node
            nodes.append(node)
            continue
        dq = source.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        if dq is None or not _is_movable(node):
            nodes.append(node)
            continue
        moved = _moved_constant(node, dq) if dq.input(0).is_constant else _moved(node, dq)
        if moved is None:
            nodes.append(node)
            continue
        nodes += moved
        source.update({n.output: n for n in moved if n.op == "DequantizeLinear"})
    return graph.replace(nodes)


def _moved(node: Node, dq: Node) -> list[Node] | None:
    if dq.input(1).type.elements != 1:
        return None
    twins = tuple(_integer_twin(value, dq.input(0)) for value in node.outputs)
    rest = _padding_as_integer(node, dq)
    moved = [Node(node.op, node.name, (dq.input(0), *rest), twins, node.attrs)]
    for twin, value in zip(twins, node.outputs, strict=True):
        name = f"{dq.name}__{value.name}"
        moved.append(Node(dq.op, name, (twin, *dq.inputs[1:]), (value,), dq.attrs))
    return moved


def _padding_as_integer(node: Node, quantizer: Node) -> tuple[Value | None, ...]:
    """Inputs after the first; the padding value of Pad is quantized like the data."""
    rest = node.inputs[1:]
    if node.op != "Pad":
        return rest
    fill = node.optional_input(2)
    real = 0.0 if fill is None else float(np.asarray(fill.array).reshape(-1)[0])
    scale = float(np.asarray(quantizer.input(1).array).reshape(-1)[0])
    zero_value = quantizer.optional_input(2)
    dtype = zero_value.type.dtype if zero_value is not None else quantizer.output.type.dtype
    zero = int(np.asarray(zero_value.array).reshape(-1)[0]) if zero_value is not None else 0
    low, high = dtype.limits
    integer = int(np.clip(np.rint(np.float32(real) / np.float32(scale)) + zero, low, high))
    array = np.asarray(integer, dtype.numpy)
    filled = Value(f"{node.name}__fill", TensorType((), dtype), array)
    pads = rest[0] if rest else None
    axes = rest[2] if len(rest) > 2 else None
    return (pads, filled) if axes is None else (pads, filled, axes)


def _moved_constant(node: Node, dq: Node) -> list[Node] | None:
    """A reshaped or transposed constant behind a DequantizeLinear: move the integers instead."""
    apply = _ON_CONSTANTS.get(node.op)
    if apply is None:
        return None
    attrs = dq.attrs
    if dq.input(1).type.elements != 1:
        if node.op != "Transpose":
            return None
        axis = dq.attrs.get("axis", 1) % len(dq.input(0).type.shape)
        rank = len(dq.input(0).type.shape)
        perm = node.attrs.get("perm") or tuple(reversed(range(rank)))
        attrs = OnnxAttrs({**dq.attrs.values, "axis": perm.index(axis)})
    data = np.ascontiguousarray(apply(dq.input(0).array, node))
    twin = Value(f"{node.output.name}__int", TensorType(data.shape, dq.input(0).type.dtype), data)
    return [Node(dq.op, node.name, (twin, *dq.inputs[1:]), node.outputs, attrs)]


def _lift_quantize(graph: Graph) -> Graph:
    """One step: every QuantizeLinear directly after a movement or a Concat goes before it."""
    replaced: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.op != "QuantizeLinear":
            continue
        producer = graph.producers.get(node.input(0))
        if producer is None or producer in replaced or not _may_lift(graph, node, producer):
            continue
        replaced[producer] = []
        replaced[node] = _lifted(node, producer)
    if not replaced:
        return graph
    return graph.replace(n for node in graph.nodes for n in replaced.get(node, [node]))


def _may_lift(graph: Graph, quantize: Node, producer: Node) -> bool:
    if not (producer.op == "Concat" or _is_movable(producer)) or len(producer.outputs) != 1:
        return False
    if producer.output in graph.outputs or quantize.input(1).type.elements != 1:
        return False
    return len(graph.uses(producer.output)) == 1


def _lifted(quantize: Node, producer: Node) -> list[Node]:
    data = producer.inputs if producer.op == "Concat" else producer.inputs[:1]
    nodes: list[Node] = []
    twins: list[Value | None] = []
    for index, value in enumerate(data):
        if value is None:
            raise ValueError(f"'{producer.name}' omits an input that it needs")
        twin = Value(
            f"{quantize.output.name}__before{index}",
            TensorType(value.type.shape, quantize.output.type.dtype),
        )
        name = f"{quantize.name}__{index}"
        nodes.append(
            Node(quantize.op, name, (value, *quantize.inputs[1:]), (twin,), quantize.attrs)
        )
        twins.append(twin)
    rest = () if producer.op == "Concat" else _padding_as_integer(producer, quantize)
    nodes.append(
        Node(producer.op, producer.name, (*twins, *rest), quantize.outputs, producer.attrs)
    )
    return nodes


def _parameters(node: Node) -> tuple[object, ...]:
    """What distinguishes one quantization from another, by value."""
    zero = node.optional_input(2)
    return (
        np.asarray(node.input(1).array).tobytes() if node.input(1).is_constant else node.input(1),
        zero.array.tobytes() if zero is not None and zero.is_constant else b"",
        node.attrs.get("qmin"),
        node.attrs.get("qmax"),
        node.attrs.get("axis", 1) if node.input(1).type.elements != 1 else None,
    )


def _merge_equal_quantize(graph: Graph) -> Graph:
    seen: dict[tuple[object, ...], Value] = {}
    replacements: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op != "QuantizeLinear" or node.output in graph.outputs:
            continue
        key = (node.input(0), node.output.type.dtype, *_parameters(node))
        if key in seen:
            replacements[node.output] = seen[key]
        else:
            seen[key] = node.output
    return without_dead_nodes(substitute(graph, replacements))


def _drop_identical_pairs(graph: Graph) -> Graph:
    """QuantizeLinear of DequantizeLinear with the same parameters is the integer itself."""
    replacements: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op != "QuantizeLinear" or node.attrs.get("qmin") is not None:
            continue
        dq = graph.producers.get(node.input(0))
        if dq is None or dq.op != "DequantizeLinear":
            continue
        if dq.input(0).type.dtype is node.output.type.dtype and _same_grid(dq, node):
            replacements[node.output] = dq.input(0)
    return substitute(graph, replacements)


def _same_grid(dq: Node, quantize: Node) -> bool:
    if dq.input(1).type.elements != 1 or quantize.input(1).type.elements != 1:
        return False
    scales = [float(np.asarray(n.input(1).array).reshape(-1)[0]) for n in (dq, quantize)]
    zeros = [
        int(np.asarray(z.array).reshape(-1)[0]) if z is not None else 0
        for z in (dq.optional_input(2), quantize.optional_input(2))
    ]
    return scales[0] == scales[1] and zeros[0] == zeros[1]
