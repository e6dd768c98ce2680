"""Interval analysis: which integers each channel of each tensor can take.

A channel is an index along the last axis. Intervals are sound (nothing outside is ever computed)
for every input of the network, and exact arithmetic on their ends makes them tight enough to find
the channels that are constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from tinyq.ir import Graph, Node, Value
from tinyq.ops import REGISTRY
from tinyq.ops.average_pool2d import AveragePool2dAttrs, MeanOracle, attrs_of, counts_of
from tinyq.ops.base import width_of
from tinyq.ops.conv2d import Conv2dAttrs
from tinyq.ops.max_pool2d import window_of
from tinyq.ops.pad import attrs_of as pad_of
from tinyq.ops.params import window_counts
from tinyq.ops.slice import attrs_of as slice_of
from tinyq.ops.transpose import permutation
from tinyq.quant import WideLinear

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Interval:
    """Smallest and largest integer of each channel, int64 [C], both included."""

    low: Int64
    high: Int64

    @property
    def constant(self) -> npt.NDArray[np.bool_]:
        """Channels with one possible value, bool [C]."""
        return np.equal(self.low, self.high)

    def including(self, value: int) -> Interval:
        """The interval widened to hold ``value`` too."""
        return Interval(np.minimum(self.low, value), np.maximum(self.high, value))

    def union(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def all_channels(self, channels: int) -> Interval:
        """The hull of all channels, for each of ``channels``."""
        low, high = self.low.min(), self.high.max()
        return Interval(np.full(channels, low), np.full(channels, high))


def channels_of(value: Value) -> int:
    """Size of the last axis, 1 for a scalar."""
    return value.type.shape[-1] if value.type.shape else 1


def channel_intervals(graph: Graph) -> dict[Value, Interval]:
    """The interval of every computed value and every integer input of an integer graph."""
    found: dict[Value, Interval] = {value: _any(value) for value in graph.inputs}
    for node in graph.nodes:
        operands = [found.get(v) or _of_constant(v) for v in node.present_inputs]
        rule = _RULES.get(node.op)
        if rule is None:
            found.update((value, _any(value)) for value in node.outputs)
        else:
            found[node.output] = rule(node, operands)
    return found


def accumulator_interval(node: Node, x: Interval) -> Interval:
    """Raw accumulators [O] of a conv2d or dense node whose input channels lie in ``x``."""
    weights = node.input(1).array.astype(np.int64)
    outputs, depth = weights.shape[0], weights.shape[-1]
    taps = weights.reshape(outputs, -1, depth)
    groups = 1
    if isinstance(node.attrs, Conv2dAttrs):
        groups = node.attrs.groups
        if any(node.attrs.pads):
            x = x.including(node.attrs.x_zero_point)
    group = np.arange(outputs) // (outputs // groups)
    low, high = (end.reshape(groups, depth)[group] for end in (x.low, x.high))
    positive, negative = np.maximum(taps, 0).sum(axis=1), np.minimum(taps, 0).sum(axis=1)
    return Interval(
        (positive * low + negative * high).sum(axis=1),
        (positive * high + negative * low).sum(axis=1),
    )


def _any(value: Value) -> Interval:
    low, high = value.type.dtype.limits
    channels = channels_of(value)
    return Interval(np.full(channels, low, np.int64), np.full(channels, high, np.int64))


def _of_constant(value: Value) -> Interval:
    rows = value.array.reshape(-1, channels_of(value)).astype(np.int64)
    return Interval(rows.min(axis=0), rows.max(axis=0))


def _linear(node: Node, operands: list[Interval]) -> Interval:
    reached = accumulator_interval(node, operands[0])
    ends = node.attrs.oracle(np.stack([reached.low, reached.high], axis=1))
    if isinstance(node.attrs.oracle, WideLinear):
        # Its integers are found later and may round the other way.
        oracle = node.attrs.oracle
        ends = np.clip(ends + np.array([-1, 1]), oracle.qmin, oracle.qmax)
    return Interval(ends[:, 0], ends[:, 1])


def _average(node: Node, operands: list[Interval]) -> Interval:
    y, x = node.output.type.quant, operands[0]
    if not isinstance(node.attrs, AveragePool2dAttrs) or y is None or width_of(node) > 8:
        return _any(node.output)
    a = attrs_of(node)
    if a.count_include_pad:
        x = x.including(a.x.zero_point)
    rows, columns = counts_of(node)
    found: Interval | None = None
    for count in sorted({r * c for r in rows for c in columns}):
        oracle = MeanOracle(count, a.x, y, a.qmin, a.qmax, a.rule)
        here = Interval(oracle(count * x.low[None])[0], oracle(count * x.high[None])[0])
        found = here if found is None else found.union(here)
    assert found is not None
    return found


def _maximum(node: Node, operands: list[Interval]) -> Interval:
    w, x, y = window_of(node), node.input(0).type, node.output.type
    for k in (0, 1):
        reach = (w.kernel_hw[k] - 1) * w.dilation_hw[k] + 1
        sizes = (x.shape[k + 1], y.shape[k + 1], reach, w.stride_hw[k], w.pads[k], w.pads[k + 2])
        if min(window_counts(*sizes, False)) <= 0 or (w.dilation_hw[k] > 1 and any(w.pads)):
            return operands[0].including(x.dtype.limits[0])
    return operands[0]


def _table(node: Node, operands: list[Interval]) -> Interval:
    x, table = operands[0], node.input(1).array.astype(np.int64)
    if node.input(0).type.dtype.limits[0] < 0:
        table = np.roll(table, 128, axis=1)
        x = Interval(x.low + 128, x.high + 128)
    last = len(node.input(0).type.shape) - 1
    if len(table) > 1 and node.attrs.axis % (last + 1) != last:
        low, high = table.min(axis=0)[None], table.max(axis=0)[None]
    else:
        low = high = table
    codes = np.arange(256)
    inside = (codes >= x.low[:, None]) & (codes <= x.high[:, None])
    beyond = 1 << 16
    return Interval(
        np.where(inside, low, beyond).min(axis=1), np.where(inside, high, -beyond).max(axis=1)
    )


def _monotone(node: Node, operands: list[Interval]) -> Interval:
    ends = (node.attrs(operands[0].low), node.attrs(operands[0].high))
    return Interval(np.minimum(*ends), np.maximum(*ends))


def _binary(node: Node, operands: list[Interval]) -> Interval:
    """Both operators are monotone in each operand but at listed pairs, which are looked at too."""
    a, b = operands
    operator, channels = REGISTRY[node.op], channels_of(node.output)
    corners = [
        operator.reference(node, (p, q))[0].astype(np.int64)
        for p, q in product((a.low, a.high), (b.low, b.high))
    ]
    found = Interval(np.min(corners, axis=0), np.max(corners, axis=0))
    for p, q, _ in getattr(node.attrs, "fixes", ()):
        inside = (a.low <= p) & (p <= a.high) & (b.low <= q) & (q <= b.high)
        one = operator.reference(node, (np.array([p]), np.array([q])))[0].astype(np.int64)
        wider = found.including(int(one[0]))
        found = Interval(
            np.where(inside, wider.low, found.low), np.where(inside, wider.high, found.high)
        )
    return Interval(np.broadcast_to(found.low, channels), np.broadcast_to(found.high, channels))


def _concat(node: Node, operands: list[Interval]) -> Interval:
    if node.attrs.axis == len(node.output.type.shape) - 1:
        return Interval(
            np.concatenate([o.low for o in operands]), np.concatenate([o.high for o in operands])
        )
    found = operands[0]
    for other in operands[1:]:
        found = found.union(other)
    return found


def _slice(node: Node, operands: list[Interval]) -> Interval:
    a = slice_of(node)
    index = a.starts[-1] + a.steps[-1] * np.arange(channels_of(node.output))
    return Interval(operands[0].low[index], operands[0].high[index])


def _pad(node: Node, operands: list[Interval]) -> Interval:
    a = pad_of(node)
    x = operands[0]
    if any(a.before[:-1]) or any(a.after[:-1]):
        x = x.including(a.value)
    widths = (a.before[-1], a.after[-1])
    low, high = (np.pad(end, widths, constant_values=a.value) for end in (x.low, x.high))
    return Interval(low, high)


def _reshape(node: Node, operands: list[Interval]) -> Interval:
    times = joined_rows(node)
    if times is None:
        return operands[0].all_channels(channels_of(node.output))
    return Interval(np.tile(operands[0].low, times), np.tile(operands[0].high, times))


def joined_rows(node: Node) -> int | None:
    """How many rows of input channels make a row of a reshape's output; None if they do not."""
    before, after = node.input(0).type.shape, node.output.type.shape
    if not before or not after or after[-1] % before[-1]:
        return None
    return after[-1] // before[-1]


def _transpose(node: Node, operands: list[Interval]) -> Interval:
    perm = permutation(node)
    if perm[-1] == len(perm) - 1:
        return operands[0]
    return operands[0].all_channels(channels_of(node.output))


def _rebase(node: Node, operands: list[Interval]) -> Interval:
    shift = node.output.type.dtype.limits[0] - node.input(0).type.dtype.limits[0]
    return Interval(operands[0].low + shift, operands[0].high + shift)


_RULES: Mapping[str, Callable[[Node, list[Interval]], Interval]] = {
    "conv2d": _linear,
    "dense": _linear,
    "average_pool2d": _average,
    "max_pool2d": _maximum,
    "lut": _table,
    "rescale": _monotone,
    "add": _binary,
    "mul": _binary,
    "extremum": _binary,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "resize_nearest": lambda _node, operands: operands[0],
    "rebase": _rebase,
}
