"""Exact merging of neighbours in the integer graph; each pass says what it saved."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tinyq.ir import Graph, Node, TensorType, Value, check, substitute
from tinyq.ir.graph import without_dead_nodes
from tinyq.ops import REGISTRY
from tinyq.ops.conv2d import Conv2dAttrs
from tinyq.ops.lut import LutAttrs
from tinyq.ops.max_pool2d import MaxPool2dAttrs
from tinyq.ops.pad import attrs_of as pad_of

Notes = tuple[str, ...]


def merge_neighbours(graph: Graph) -> tuple[Graph, Notes]:
    """Every pass of this file, in an order in which none makes work for one before it."""
    notes: list[str] = []
    for step in (fold_constants, merge_equal_nodes, merge_pads, merge_tables):
        graph, said = step(graph)
        notes += said
    return graph, tuple(notes)


def fold_constants(graph: Graph) -> tuple[Graph, Notes]:
    """Compute at compile time what depends on constants alone."""
    known: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        operands = tuple(None if v is None else known.get(v, v) for v in node.inputs)
        moved = Node(node.op, node.name, operands, node.outputs, node.attrs)
        values = moved.present_inputs
        if values and all(v.is_constant for v in values):
            operator = REGISTRY[node.op]
            ready = dataclasses.replace(moved, attrs=operator.synthesize(moved))
            results = operator.reference(ready, tuple(v.array for v in values))
            for value, result in zip(node.outputs, results, strict=True):
                data = np.ascontiguousarray(result)
                data.setflags(write=False)
                known[value] = Value(value.name, value.type, data)
        else:
            nodes.append(node)
    if not known:
        return graph, ()
    folded = substitute(graph.replace(nodes), known)
    saved = len(graph.nodes) - len(nodes)
    return check(without_dead_nodes(folded)), (f"constant folding: {_count(saved, 'operator')}",)


def merge_equal_nodes(graph: Graph) -> tuple[Graph, Notes]:
    """Compute once what is computed twice from the same tensors (common subexpressions)."""
    first: dict[Any, Node] = {}
    same: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        operands = tuple(None if v is None else same.get(v, v) for v in node.inputs)
        key = (node.op, tuple(map(_key, operands)), _key(node.attrs), _types(node))
        before = first.get(key)
        if before is None or any(v in graph.outputs for v in node.outputs):
            first.setdefault(key, node)
            nodes.append(node)
        else:
            same.update(zip(node.outputs, before.outputs, strict=True))
    if not same:
        return graph, ()
    merged = substitute(graph.replace(nodes), same)
    saved = len(graph.nodes) - len(nodes)
    return check(merged), (f"common subexpressions: {_count(saved, 'operator')} removed",)


def _types(node: Node) -> tuple[TensorType, ...]:
    return tuple(value.type for value in node.outputs)


def _key(item: Any) -> Any:
    """Something hashable that is equal for equal values, constants and attributes."""
    if isinstance(item, Value):
        return _key(item.array) if item.is_constant else id(item)
    if isinstance(item, np.ndarray):
        return (str(item.dtype), item.shape, item.tobytes())
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = dataclasses.fields(item)
        return (type(item).__name__, tuple(_key(getattr(item, f.name)) for f in fields))
    if isinstance(item, tuple):
        return tuple(map(_key, item))
    return item


def merge_pads(graph: Graph) -> tuple[Graph, Notes]:
    """Let convolutions and maxima pad for themselves where that reads the same values."""
    removed: dict[Value, Node] = {}
    for node in graph.nodes:
        if node.op == "pad" and node.output not in graph.outputs:
            readers = graph.uses(node.output)
            if readers and all(_takes(reader, node) for reader in readers):
                removed[node.output] = node
    if not removed:
        return graph, ()
    nodes = []
    for node in graph.nodes:
        pad = removed.get(node.inputs[0]) if node.inputs and node.inputs[0] else None
        if node.output not in removed:
            nodes.append(node if pad is None else _padded(node, pad))
    saved = sum(value.type.bytes for value in removed)
    note = f"padding merged into {_count(len(removed), 'layer')}: {saved:,} bytes not copied"
    return check(graph.replace(nodes)), (note,)


def _takes(reader: Node, node: Node) -> bool:
    """Whether the reader pads its first input with the same value over height and width."""
    a = pad_of(node)
    if len(a.before) != 4 or any(a.before[k] or a.after[k] for k in (0, 3)):
        return False
    if min((*a.before, *a.after)) < 0 or reader.input(0) is not node.output:
        return False
    low = node.input(0).type.dtype.limits[0]
    if low == 0 or node.output in reader.inputs[1:]:
        return False
    if isinstance(reader.attrs, Conv2dAttrs):
        return reader.attrs.x_zero_point == a.value
    if not isinstance(reader.attrs, MaxPool2dAttrs) or a.value != low:
        return False
    # A window with no element of the image is refused by kernels.
    w = reader.attrs.window
    spatial = (a.before[1], a.before[2], a.after[1], a.after[2])
    return all(spatial[k] + w.pads[k] < w.kernel_hw[k % 2] for k in range(4))


def _padded(reader: Node, pad: Node) -> Node:
    a = pad_of(pad)
    more = (a.before[1], a.before[2], a.after[1], a.after[2])
    attrs = reader.attrs
    if isinstance(attrs, Conv2dAttrs):
        attrs = dataclasses.replace(attrs, pads=_sum(attrs.pads, more))
    else:
        window = dataclasses.replace(attrs.window, pads=_sum(attrs.window.pads, more))
        attrs = dataclasses.replace(attrs, window=window)
    return Node(reader.op, reader.name, (pad.input(0), *reader.inputs[1:]), reader.outputs, attrs)


def _sum(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])


def merge_tables(graph: Graph) -> tuple[Graph, Notes]:
    """Replace a table of a table by one table, and drop tables that change nothing."""
    replaced: dict[Value, Value] = {}
    made: dict[Value, Node] = {}
    nodes: list[Node] = []
    merged = 0
    for table in graph.nodes:
        node = table
        if node.op != "lut":
            nodes.append(node)
            continue
        x = replaced.get(node.input(0), node.input(0))
        inner = made.get(x)
        if inner is not None and len(graph.uses(inner.output)) == 1:
            joined = _joined(inner, node)
            if joined is not None and inner.output not in graph.outputs:
                nodes.remove(inner)
                node, merged = joined, merged + 1
        if _changes_nothing(node) and node.output not in graph.outputs:
            replaced[node.output] = node.input(0)
            merged += 1
            continue
        made[node.output] = node
        nodes.append(node)
    if not merged:
        return graph, ()
    result = substitute(graph.replace(nodes), replaced)
    return check(result), (f"tables: {_count(merged, 'lookup')} merged or dropped",)


def _joined(inner: Node, outer: Node) -> Node | None:
    """One table for outer(inner(x)), None where their channels lie along different axes."""
    a, b = inner.input(1).array, outer.input(1).array
    if a.dtype != np.int8 or (len(a) > 1 and len(b) > 1 and inner.attrs != outer.attrs):
        return None
    rows = max(len(a), len(b))
    codes = np.broadcast_to(a, (rows, 256)).view(np.uint8).astype(np.intp)
    table = np.take_along_axis(np.broadcast_to(b, (rows, 256)), codes, axis=1)
    attrs: LutAttrs = inner.attrs if len(a) > 1 else outer.attrs
    data = np.ascontiguousarray(table)
    data.setflags(write=False)
    constant = Value(outer.input(1).name, TensorType(data.shape, outer.input(1).type.dtype), data)
    return Node("lut", outer.name, (inner.input(0), constant), outer.outputs, attrs)


def _changes_nothing(node: Node) -> bool:
    x, y, table = node.input(0), node.output, node.input(1).array
    codes = np.arange(256).astype(np.uint8).view(np.int8)
    same = x.type == y.type and table.dtype == np.int8
    return same and bool((table == codes).all())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
