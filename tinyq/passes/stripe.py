"""Executes layers in stripes of rows, so that the largest tensors never exist whole.

Some nodes that follow each other form a region. In every step each of them computes the rows that
the next rows of the region's result need, from rows that it has not computed before: nothing is
computed twice. Of its operand it keeps the rows that the next step needs too, at the head of the
buffer that the next rows are written behind. In the graph that is plain: a slice of the old buffer,
joined with the new rows; the memory planner lets the joins need no code, and the life of a row of
the region's input end with its last reader.

Regions of the first layers begin with the first node that works row by row; those before it run as
they are. Convolutions of a stripe are convolutions with padding of their own: only the first ones
are padded above, only the last ones below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyq.ir import DType, Graph, Node, Value
from tinyq.ops import REGISTRY
from tinyq.ops.base import RowWindow
from tinyq.ops.concat import ConcatAttrs
from tinyq.ops.pack import PackAttrs
from tinyq.ops.slice import SliceAttrs

_ROWS = 1
"""The axis of the rows in [1, H, W, C]."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A tensor of the striped graph as rows ``start`` to ``stop`` of one of the graph before.

    ``layer`` is the node that computes that one, empty for an input. ``packed``: how the rows are
    stored, None as int8.
    """

    of: Value
    layer: str
    start: int
    stop: int
    packed: PackAttrs | None = None


@dataclass(frozen=True)
class Region:
    """Nodes ``start`` to ``stop`` (excluded), ``step`` rows of the last one's result at a time."""

    start: int
    stop: int
    step: int


@dataclass(frozen=True, eq=False)
class Striped:
    """A graph of which ``nodes`` nodes run in ``steps`` steps of ``step`` rows of their result.

    ``rows`` says what the tensors of the stripes are; ``moved_bytes`` are what one inference copies
    besides, to keep rows for the next step.
    """

    graph: Graph
    rows: Mapping[Value, Rows]
    nodes: int
    steps: int
    step: int
    moved_bytes: int


@dataclass(eq=False)
class AttrsCache:
    """Attributes of nodes for rows with some padding: equal ones are one object."""

    _made: dict[tuple[str, int, int, int], tuple[Any, Any]] = field(default_factory=dict)

    def get(self, node: Node, top: int, bottom: int) -> Any:
        """The attributes for ``top`` and ``bottom`` rows of padding."""
        key = (node.op, id(node.attrs), top, bottom)
        if key not in self._made:  # the node's own attributes are kept alive beside the made ones
            self._made[key] = node.attrs, REGISTRY[node.op].attrs_of_rows(node, top, bottom)
        return self._made[key][1]


def first_striped(graph: Graph) -> int:
    """How many nodes precede the first one that can be executed in stripes."""
    before = (k for k, node in enumerate(graph.nodes) if is_striped(node))
    return next(before, len(graph.nodes))


def regions(graph: Graph) -> Iterator[int]:
    """Numbers of nodes up to whose last one the graph can be executed in stripes.

    Of the tensors made until there, that last one's result is the only one that is needed later.
    """
    first = first_striped(graph)
    inside = {*graph.inputs, *(v for node in graph.nodes[:first] for v in node.outputs)}
    for count, node in enumerate(graph.nodes[first:], first + 1):
        if not is_striped(node):
            return
        inside.add(node.output)
        later = {v for other in graph.nodes[count:] for v in other.present_inputs}
        needed = inside & (later | set(graph.outputs))
        if needed == {node.output} and count > first + 1:
            yield count


def is_striped(node: Node) -> bool:
    """Whether the node can compute some rows of its result from some of its operands'."""
    operator = REGISTRY.operators.get(node.op)
    window = operator.row_window(node) if operator is not None else None
    computed = _computed(node)
    if window is None or len(node.outputs) != 1 or not computed:
        return False
    shapes = [v.type.shape for v in (*computed, node.output)]
    if any(len(s) != 4 or s[0] != 1 for s in shapes) or any(
        v.type.dtype is not DType.INT8 for v in (*computed, node.output)
    ):
        return False
    height, last = shapes[0][_ROWS], node.output.type.shape[_ROWS]
    # Every window holds a row of the operand, the first and the last ones too.
    first_stop, last_start = window.reads(0, 1)[1], window.reads(last - 1, last)[0]
    return first_stop > 0 and last_start < height


def stripe(graph: Graph, nodes: int, step: int, cache: AttrsCache | None = None) -> Striped:
    """The graph whose nodes up to ``nodes`` (of :func:`regions`) give ``step`` rows at a time."""
    region = Region(first_striped(graph), nodes, step)
    return _Striping(graph, region, cache or AttrsCache()).run()


def stripe_regions(
    graph: Graph, chosen: Sequence[Region], cache: AttrsCache | None = None
) -> tuple[Graph, dict[Value, Rows]]:
    """The graph with regions anywhere in stripes, and what their tensors are.

    Regions are in order and apart; of the tensors that the nodes of each make only the last one's
    result is needed by others.
    """
    rows: dict[Value, Rows] = {}
    cache = cache or AttrsCache()
    for region in reversed(chosen):
        striped = _Striping(graph, region, cache).run()
        graph = striped.graph
        rows.update(striped.rows)
    return graph, rows


class _Striping:
    """One rewriting.

    ``done`` are the rows of each tensor that are computed, ``kept`` the buffer that holds its last
    ones and the row at which that begins.
    """

    def __init__(self, graph: Graph, region: Region, cache: AttrsCache) -> None:
        self.graph, self.cache = graph, cache
        self.first, self.count, self.step = region.start, region.stop, region.step
        self.region = graph.nodes[self.first : self.count]
        self.result = self.region[-1].output
        self.readers: dict[Value, list[Node]] = {}
        for node in self.region:
            for value in _computed(node):
                self.readers.setdefault(value, []).append(node)
        self.made: list[Node] = []
        self.rows: dict[Value, Rows] = {}
        self.done: dict[Value, int] = {node.output: 0 for node in self.region}
        self.kept: dict[Value, tuple[Value, int]] = {}
        self.parts: list[Value] = []
        self.moved = 0

    def run(self) -> Striped:
        height = self.result.type.shape[_ROWS]
        steps = -(-height // self.step)
        for k in range(steps):
            wanted = self._wanted(min(height, (k + 1) * self.step))
            for node in self.region:
                if wanted[node.output] > self.done[node.output]:
                    self._advance(node, k, wanted[node.output])
        join = Node(
            "concat", f"{self.region[-1].name}:rows", tuple(self.parts), (self.result,),
            ConcatAttrs(_ROWS),
        )  # fmt: skip
        self.rows[self.result] = Rows(self.result, self.region[-1].name, 0, height)
        before, after = self.graph.nodes[: self.first], self.graph.nodes[self.count :]
        graph = self.graph.replace((*before, *self.made, join, *after))
        return Striped(graph, self.rows, len(self.region), steps, self.step, self.moved)

    def _wanted(self, rows: int) -> dict[Value, int]:
        """How many rows of each tensor the first ``rows`` of the result need."""
        wanted = {self.result: rows}
        for node in reversed(self.region):
            needed = _window(node).reads(0, wanted.get(node.output, 0))[1]
            for value in _computed(node):
                height = value.type.shape[_ROWS]
                wanted[value] = max(wanted.get(value, 0), min(height, max(0, needed)))
        return wanted

    def _advance(self, node: Node, k: int, stop: int) -> None:
        """Compute the rows of ``node``'s result up to ``stop``."""
        result, start = node.output, self.done[node.output]
        needed = self._first_needed(result) if start else start
        carried: Value | None = None
        if needed < start:
            carried = self._slice(result, needed, start, f"{node.name}@{k}:kept")
            self.moved += carried.type.bytes
        low, high = _window(node).reads(start, stop)
        height = _computed(node)[0].type.shape[_ROWS]
        top, bottom = max(0, -low), max(0, high - height)
        operands = tuple(
            v if v is None or v.is_constant
            else self._slice(v, max(0, low), min(high, height), f"{node.name}@{k}:{n}")
            for n, v in enumerate(node.inputs)
        )  # fmt: skip
        fresh = self._value(result, start, stop, f"{result.name}@{k}")
        attrs = self.cache.get(node, top, bottom)
        self.made.append(Node(node.op, f"{node.name}@{k}", operands, (fresh,), attrs))
        self.done[result] = stop
        if result is self.result:
            self.parts.append(fresh)
        elif carried is None:
            self.kept[result] = (fresh, start)
        else:
            joined = self._value(result, needed, stop, f"{result.name}@{k}:joined")
            name = f"{node.name}@{k}:joined"
            self.made.append(Node("concat", name, (carried, fresh), (joined,), ConcatAttrs(_ROWS)))
            self.kept[result] = (joined, needed)

    def _first_needed(self, value: Value) -> int:
        """First row that some reader has still to read; the number of rows so far without one."""
        rows = self.done[value]
        for reader in self.readers.get(value, ()):
            done, last = self.done[reader.output], reader.output.type.shape[_ROWS]
            if done < last:
                rows = min(rows, max(0, _window(reader).reads(done, done + 1)[0]))
        return rows

    def _slice(self, value: Value, start: int, stop: int, name: str) -> Value:
        """Rows of a tensor, out of the buffer that holds them."""
        held, first = self.kept.get(value, (value, 0))
        shape = held.type.shape
        if (start, stop) == (first, first + shape[_ROWS]):
            return held
        part = self._value(value, start, stop, name)
        attrs = SliceAttrs((0, start - first, 0, 0), (1, 1, 1, 1))
        self.made.append(Node("slice", name, (held,), (part,), attrs))
        return part

    def _value(self, of: Value, start: int, stop: int, name: str) -> Value:
        shape = of.type.shape
        made = Value(name, of.type.with_shape((1, stop - start, *shape[2:])))
        producer = self.graph.producers.get(of)
        self.rows[made] = Rows(of, producer.name if producer else "", start, stop)
        return made


def _computed(node: Node) -> list[Value]:
    return [v for v in node.present_inputs if not v.is_constant]


def _window(node: Node) -> RowWindow:
    window = REGISTRY[node.op].row_window(node)
    assert window is not None
    return window
