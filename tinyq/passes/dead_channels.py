"""Removes channels that are constant or that nobody reads, to a fixed point, exactly.

A constant channel disappears into the offsets of the linear operators that read it; a channel whose
every weight is zero downstream disappears altogether, with all that only it needed. Nothing that is
left computes anything else than before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from tinyq.ir import AnyArray, Graph, Node, Origin, TensorType, Value, check
from tinyq.ops import REGISTRY
from tinyq.ops.slice import attrs_of as slice_of
from tinyq.passes.live_channels import Mask, folds_constants, is_depthwise, live_channels
from tinyq.passes.ranges import Int64, Interval, channel_intervals, channels_of


def remove_dead_channels(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """An equal graph without dead channels, and a note on what that saved (none if nothing).

    For graphs whose requantization is not synthesised yet.
    """
    intervals = channel_intervals(graph)
    kept = live_channels(graph, intervals)
    if all(mask.all() for mask in kept.values()):
        return graph, ()
    result = check(_Slicing(graph, intervals, kept).run())
    removed = sum(int((~kept[v]).sum()) for node in graph.nodes for v in node.outputs)
    total = sum(channels_of(v) for node in graph.nodes for v in node.outputs)
    note = (
        f"dead channels: {removed} of {total} removed; MACs {_macs(graph):,} to {_macs(result):,}, "
        f"weights {_weights(graph):,} to {_weights(result):,} bytes"
    )
    return result, (note,)


def _macs(graph: Graph) -> int:
    return sum(REGISTRY[node.op].macs(node) for node in graph.nodes)


def _weights(graph: Graph) -> int:
    return sum(value.type.bytes for value in graph.constants())


class _Slicing:
    def __init__(
        self, graph: Graph, intervals: Mapping[Value, Interval], kept: Mapping[Value, Mask]
    ) -> None:
        self.graph = graph
        self.intervals = intervals
        self.kept = kept
        self.made: dict[Value, Value] = {}
        self.rules: dict[str, Callable[[Node, Sequence[Value]], Node]] = {
            "conv2d": self._linear,
            "dense": self._linear,
            "lut": self._table,
            "slice": self._slice,
        }

    def run(self) -> Graph:
        for value in self.graph.inputs:
            self.made[value] = value
        nodes = []
        for node in self.graph.nodes:
            for value in node.outputs:
                self.made[value] = self._sliced(value)
            operands = [self._operand(node, value) for value in node.present_inputs]
            nodes.append(self.rules.get(node.op, self._same)(node, operands))
        outputs = tuple(self.made.get(value, value) for value in self.graph.outputs)
        origins = [self._origin(origin) for origin in self.graph.origins]
        result = self.graph.replace(nodes, outputs)
        return result.with_origins(origin for origin in origins if origin is not None)

    def _sliced(self, value: Value) -> Value:
        mask = self.kept[value]
        if mask.all():
            return value
        shape = (*value.type.shape[:-1], int(mask.sum()))
        return Value(value.name, value.type.with_shape(shape))

    def _operand(self, node: Node, value: Value) -> Value:
        """The operand's new form; elementwise constants lose the channels that the result loses."""
        if not value.is_constant:
            return self.made[value]
        mask = self.kept[node.output]
        if node.op not in ("add", "mul", "extremum") or channels_of(value) != len(mask):
            return value
        return _constant(value, value.array[..., mask]) if not mask.all() else value

    def _same(self, node: Node, operands: Sequence[Value]) -> Node:
        return self._node(node, operands, node.attrs)

    def _node(self, node: Node, operands: Sequence[Value], attrs: object) -> Node:
        outputs = tuple(self.made[value] for value in node.outputs)
        unchanged = all(a is b for a, b in zip(outputs, node.outputs, strict=True))
        same = all(a is b for a, b in zip(operands, node.present_inputs, strict=True))
        if unchanged and same and attrs is node.attrs:
            return node
        return Node(node.op, node.name, tuple(operands), outputs, attrs)

    def _linear(self, node: Node, operands: Sequence[Value]) -> Node:
        x, y = node.input(0), node.output
        rows, columns = self.kept[y], self.kept[x]
        if rows.all() and columns.all():
            return self._same(node, operands)
        weights, attrs, extra = node.input(1).array, node.attrs, np.zeros(len(rows), np.int64)
        if is_depthwise(node):
            weights = weights[rows]
            attrs = replace(attrs, groups=int(columns.sum()))
        else:
            folded = ~columns & folds_constants(node, self.intervals[x])
            extra = _row_sums(weights)[:, folded] @ self.intervals[x].low[folded]
            weights = weights[rows][..., columns]
        offset = -_zero_point(node) * _row_sums(weights).sum(axis=1)
        oracle = _with_rows(attrs.oracle, rows, extra, offset)
        attrs = replace(attrs, oracle=oracle, scale=attrs.scale[rows])
        return self._node(node, (operands[0], _constant(node.input(1), weights)), attrs)

    def _table(self, node: Node, operands: Sequence[Value]) -> Node:
        table, mask = node.input(1), self.kept[node.output]
        last = len(node.output.type.shape) - 1
        if table.type.shape[0] > 1 and node.attrs.axis % (last + 1) == last and not mask.all():
            table = _constant(table, table.array[mask])
        return self._node(node, (operands[0], table), node.attrs)

    def _slice(self, node: Node, operands: Sequence[Value]) -> Node:
        a, mask = slice_of(node), self.kept[node.input(0)]
        if mask.all():
            return self._same(node, operands)
        start = int(mask[: a.starts[-1]].sum())
        return self._node(node, operands, replace(a, starts=(*a.starts[:-1], start)))

    def _origin(self, origin: Origin) -> Origin | None:
        mask = self.kept.get(origin.value)
        if mask is None or mask.all():
            return origin
        if origin.shape[-1] != len(mask) or origin.kept is not None:
            return None
        channels = tuple(int(c) for c in np.flatnonzero(mask))
        shape = (*origin.shape[:-1], len(channels))
        return replace(origin, value=self.made[origin.value], shape=shape, kept=channels)


def _row_sums(weights: AnyArray) -> Int64:
    """Sums over all taps, int64 [O, I]."""
    rows = weights.astype(np.int64).reshape(len(weights), -1, weights.shape[-1])
    return np.asarray(rows.sum(axis=1), np.int64)


def _zero_point(node: Node) -> int:
    quant = node.input(0).type.quant
    return quant.zero_point if quant is not None and quant.is_per_tensor else 0


def _with_rows(oracle: Any, rows: Mask, extra: Int64, offset: Int64) -> Any:
    """The oracle of some output channels, for accumulators that lack ``extra`` [all channels].

    Where the bias is an integer, the offset stays what the zero point gives (``offset``, of the
    channels that are left) and the bias takes the rest.
    """
    vectors = {
        field.name: getattr(oracle, field.name)[rows]
        for field in fields(oracle)
        if isinstance(getattr(oracle, field.name), np.ndarray)
    }
    total = vectors["offset"] + extra[rows]
    if vectors["bias"].dtype.kind == "i":
        vectors |= {"bias": vectors["bias"] + total - offset, "offset": offset}
    else:
        vectors["offset"] = total
    return replace(oracle, **vectors)


def _constant(value: Value, array: AnyArray) -> Value:
    data = np.ascontiguousarray(array)
    data.setflags(write=False)
    return Value(value.name, TensorType(data.shape, value.type.dtype, value.type.quant), data)
