"""Which values a tensor can take, where they are few: what packing and kernels that count need.

They follow from the integers alone, whatever the input: the interval of a requantization and its
limits, or the entries of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tinyq.ir import Graph, Node, Value
from tinyq.ops.conv2d import Conv2dAttrs
from tinyq.ops.counts import counted_encoding
from tinyq.ops.dense import DenseAttrs
from tinyq.passes.ranges import Interval, channel_intervals

MOST = 16
"""Values of a tensor that is looked at."""

_MOVING = frozenset({"max_pool2d", "reshape", "transpose", "slice", "resize_nearest"})
"""Operators whose results are among the values of their one operand (padding apart)."""


def few_values(graph: Graph) -> dict[Value, frozenset[int]]:
    """The values of every computed tensor of one node that takes at most 16."""
    intervals = channel_intervals(graph)
    found: dict[Value, frozenset[int]] = {}
    for node in graph.nodes:
        interval = intervals.get(node.output)
        if interval is None or len(node.outputs) != 1:
            continue
        known = _values(node, interval, found)
        if known is not None:
            found[node.output] = known
    return found


def _values(
    node: Node, interval: Interval, found: Mapping[Value, frozenset[int]]
) -> frozenset[int] | None:
    """The values that a node's result can take, None where they may be more than 16."""
    low, high = int(interval.low.min()), int(interval.high.max())
    hull = frozenset(range(low, high + 1)) if high - low < MOST else None
    finer: frozenset[int] | None = None
    if node.op == "lut":
        finer = frozenset(np.unique(node.input(1).array).tolist())
        finer = frozenset(v for v in finer if low <= v <= high)
    elif node.op in _MOVING:
        finer = found.get(node.input(0))
        if finer is not None and not {low, high} <= finer:
            finer = None  # padding shows
    if finer is not None and len(finer) <= MOST and (hull is None or len(finer) < len(hull)):
        return finer
    return hull


def tell_operands(graph: Graph) -> Graph:
    """The graph whose layers with weights of two or three values know the values of their input."""
    counted = {node for node in graph.nodes if counted_encoding(node) is not None}
    if not counted:
        return graph
    values, nodes = few_values(graph), []
    for node in graph.nodes:
        known = values.get(node.input(0)) if node in counted else None
        attrs = node.attrs
        if known is not None and isinstance(attrs, Conv2dAttrs | DenseAttrs):
            attrs = replace(attrs, x_values=tuple(sorted(known)))
            nodes.append(Node(node.op, node.name, node.inputs, node.outputs, attrs))
        else:
            nodes.append(node)
    return graph.replace(nodes)
