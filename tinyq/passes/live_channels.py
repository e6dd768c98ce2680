"""Which channels of each tensor have to be computed.

A channel is kept when something that is kept reads it with a weight that is not zero and cannot
take it as a constant. That is the least fixed point of the rules below, begun from the outputs of
the network: an operator that works channel by channel ties its operands' channels to its results';
a linear operator asks only for the channels that its kept outputs weigh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tinyq.ir import Graph, Node, Value
from tinyq.ops.conv2d import Conv2dAttrs
from tinyq.ops.pad import attrs_of as pad_of
from tinyq.ops.slice import attrs_of as slice_of
from tinyq.passes.ranges import Interval, channels_of, joined_rows

Mask = npt.NDArray[np.bool_]


def live_channels(graph: Graph, intervals: Mapping[Value, Interval]) -> dict[Value, Mask]:
    """For each input and computed value the channels that must stay, bool [C], at least one."""
    return _Liveness(graph, intervals).run()


def folds_constants(node: Node, x: Interval) -> Mask:
    """Input channels that a linear node can take as constants, bool [C].

    Those with one possible value; beside padding only where that value is what padding reads.
    """
    attrs = node.attrs
    if not isinstance(attrs, Conv2dAttrs) or not any(attrs.pads):
        return x.constant
    return np.asarray(x.constant & (x.low == attrs.x_zero_point), np.bool_)


def is_depthwise(node: Node) -> bool:
    """Whether each input channel of a conv2d has output channels of its own."""
    attrs = node.attrs
    return isinstance(attrs, Conv2dAttrs) and attrs.groups == channels_of(node.input(0)) > 1


class _Liveness:
    def __init__(self, graph: Graph, intervals: Mapping[Value, Interval]) -> None:
        self.graph = graph
        self.intervals = intervals
        self.kept = {value: np.zeros(channels_of(value), np.bool_) for value in intervals}
        self.read: dict[Node, Mask] = {}
        self.changed = False
        self.rules: dict[str, Callable[[Node], None]] = {
            "conv2d": self._conv,
            "dense": self._linear,
            "average_pool2d": self._tied,
            "max_pool2d": self._tied,
            "resize_nearest": self._tied,
            "rebase": self._tied,
            "lut": self._table,
            "rescale": self._tied,
            "curve": self._tied,
            "add": self._binary,
            "mul": self._binary,
            "extremum": self._binary,
            "concat": self._concat,
            "slice": self._slice,
            "pad": self._pad,
            "reshape": self._reshape,
        }

    def run(self) -> dict[Value, Mask]:
        for value in (*self.graph.inputs, *self.graph.outputs):
            if not value.is_constant:
                self._keep(value, True)
        self._settle()
        # A tensor cannot be empty. Filling the last ones first decides for those before them.
        for node in reversed(self.graph.nodes):
            for value in node.outputs:
                if not self.kept[value].any():
                    self._keep_at(value, np.arange(channels_of(value)) == 0)
                    self._settle()
        return self.kept

    def _settle(self) -> None:
        self.changed = True
        while self.changed:
            self.changed = False
            for node in (*reversed(self.graph.nodes), *self.graph.nodes):
                self.rules.get(node.op, self._barrier)(node)

    def _keep_at(self, value: Value, mask: Mask) -> None:
        if value.is_constant:
            return
        kept = self.kept[value]
        if np.any(mask & ~kept):
            kept |= mask
            self.changed = True

    def _keep(self, value: Value, every: bool) -> None:
        self._keep_at(value, np.full(channels_of(value), every))

    def _tie(self, a: Value, b: Value) -> None:
        """The same channels of both."""
        both = self.kept[a] | self.kept[b]
        self._keep_at(a, both)
        self._keep_at(b, both)

    def _barrier(self, node: Node) -> None:
        for value in (*node.present_inputs, *node.outputs):
            self._keep(value, True)

    def _tied(self, node: Node) -> None:
        self._tie(node.input(0), node.output)

    def _conv(self, node: Node) -> None:
        if node.attrs.groups == 1:
            self._linear(node)
        elif is_depthwise(node):
            x, y = node.input(0), node.output
            multiplier = channels_of(y) // channels_of(x)
            both = self.kept[x] | self.kept[y].reshape(-1, multiplier).any(axis=1)
            self._keep_at(x, both)
            self._keep_at(y, np.repeat(both, multiplier))
        else:
            self._barrier(node)

    def _linear(self, node: Node) -> None:
        x, weights = node.input(0), node.input(1).array
        if node not in self.read:
            rows = (weights != 0).reshape(weights.shape[0], -1, weights.shape[-1]).any(axis=1)
            self.read[node] = rows & ~folds_constants(node, self.intervals[x])
        wanted = self.read[node][self.kept[node.output]]
        self._keep_at(x, np.asarray(wanted.any(axis=0), np.bool_))

    def _table(self, node: Node) -> None:
        self._tie(node.input(0), node.output)

    def _binary(self, node: Node) -> None:
        wide = [v for v in node.present_inputs if channels_of(v) == channels_of(node.output)]
        for value in node.present_inputs:
            if value not in wide:
                self._keep(value, True)
            elif not value.is_constant:
                self._tie(value, node.output)

    def _concat(self, node: Node) -> None:
        if node.attrs.axis != len(node.output.type.shape) - 1:
            for value in node.present_inputs:
                if value.is_constant:
                    self._barrier(node)
                else:
                    self._tie(value, node.output)
            return
        start = 0
        for value in node.present_inputs:
            end = start + channels_of(value)
            here = self.kept[node.output][start:end]
            own = np.ones(end - start, np.bool_) if value.is_constant else self.kept[value]
            both: Mask = here | own
            whole = np.zeros(channels_of(node.output), np.bool_)
            whole[start:end] = both
            self._keep_at(node.output, whole)
            self._keep_at(value, both)
            start = end

    def _slice(self, node: Node) -> None:
        a, x, y = slice_of(node), node.input(0), node.output
        if a.steps[-1] != 1 and channels_of(y) > 1:
            self._barrier(node)
            return
        part = slice(a.starts[-1], a.starts[-1] + channels_of(y))
        whole = np.zeros(channels_of(x), np.bool_)
        whole[part] = self.kept[x][part] | self.kept[y]
        self._keep_at(x, whole)
        self._keep_at(y, whole[part])

    def _pad(self, node: Node) -> None:
        a = pad_of(node)
        if a.before[-1] or a.after[-1]:
            self._barrier(node)
        else:
            self._tied(node)

    def _reshape(self, node: Node) -> None:
        times = joined_rows(node)
        if times is None:
            self._barrier(node)
            return
        x, y = node.input(0), node.output
        both = self.kept[x] | self.kept[y].reshape(times, -1).any(axis=0)
        self._keep_at(x, both)
        self._keep_at(y, np.tile(both, times))
