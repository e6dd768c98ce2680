"""Stores tensors of few values as codes of some bits: pack and unpack nodes, and stripes.

Which values a tensor takes follows from the integers alone: the interval of a requantization, the
entries of a table. A stored tensor is packed row by row as its layer computes it and unpacked row
by row for the layers that read it, so that kernels compute on int8 as ever and none of them knows.
What comes and goes in stripes of rows is :mod:`tinyq.passes.stripe`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tinyq.ir import DType, Graph, Node, TensorType, Value
from tinyq.ops import REGISTRY
from tinyq.ops.pack import PackAttrs
from tinyq.passes.stripe import AttrsCache, Region, Rows, is_striped, stripe_regions
from tinyq.passes.values import few_values
from tinyq.quant.storage import Storage


@dataclass(frozen=True, eq=False)
class Packed:
    """A graph with stored tensors; ``rows`` says what its tensors stand for in the graph before."""

    graph: Graph
    rows: Mapping[Value, Rows]


def storable(graph: Graph) -> dict[Value, PackAttrs]:
    """Every computed int8 [1, H, W, C] of at most 16 values that other nodes read."""
    outputs, found = set(graph.outputs), {}
    for value, known in few_values(graph).items():
        storage, shape = Storage.of(known), value.type.shape
        stored = value not in outputs and graph.uses(value) and value.type.dtype is DType.INT8
        if storage is not None and stored and len(shape) == 4 and shape[0] == 1:
            found[value] = PackAttrs(storage, shape[2], shape[3])
    return found


def is_region(graph: Graph, start: int, stop: int) -> bool:
    """Whether nodes ``start`` to ``stop`` can run in stripes: their last result alone is needed."""
    nodes = graph.nodes[start:stop]
    if not nodes or not all(map(is_striped, nodes)):
        return False
    inside = {value for node in nodes for value in node.outputs}
    members = set(nodes)
    return all(
        value is nodes[-1].output
        or (value not in graph.outputs and members.issuperset(graph.uses(value)))
        for value in inside
    )


def pack(
    graph: Graph, stored: Mapping[Value, PackAttrs], regions: Sequence[Region],
    cache: AttrsCache | None = None,
) -> Packed:  # fmt: skip
    """The graph with ``stored`` tensors packed and ``regions`` in stripes.

    No tensor that is made inside of a region, but for its last one's result, may be stored. Nodes
    outside of regions read stored tensors whole.
    """
    inserted = _Inserting(graph, stored, regions)
    inserted.run()
    cut, rows = stripe_regions(inserted.graph, inserted.regions, cache)
    return Packed(cut, inserted.named(cut, rows))


@dataclass(eq=False)
class _Inserting:
    """Pack nodes behind the nodes whose results are stored, unpack nodes before their readers."""

    before: Graph
    stored: Mapping[Value, PackAttrs]
    given: Sequence[Region]
    nodes: list[Node] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    codes: dict[Value, Value] = field(default_factory=dict)
    copies: dict[Value, Value] = field(default_factory=dict)

    def run(self) -> None:
        """All nodes, region by region; nodes outside are regions without stripes."""
        at = 0
        for region in (*self.given, None):
            end = region.start if region is not None else len(self.before.nodes)
            for k in range(at, end):
                self._add(self.before.nodes[k : k + 1])
            if region is not None:
                start = len(self.nodes)
                self._add(self.before.nodes[region.start : region.stop])
                self.regions.append(Region(start, len(self.nodes), region.step))
                at = region.stop
        self.graph = self.before.replace(self.nodes)

    def _add(self, nodes: Iterable[Node]) -> None:
        read: dict[Value, Value] = {}
        for node in nodes:
            for value in node.present_inputs:
                if value in self.codes and value not in read:
                    read[value] = self._unpack(value, node)
            inputs = tuple(None if v is None else read.get(v, v) for v in node.inputs)
            changed = Node(node.op, node.name, inputs, node.outputs, node.attrs) if read else node
            if node.output in self.stored:
                self._pack(changed)
            else:
                self.nodes.append(changed)

    def _unpack(self, value: Value, reader: Node) -> Value:
        copy = Value(f"{value.name}:unpacked:{reader.name}", value.type)
        self.copies[copy] = value
        name = f"{self._maker(value)}:unpacked:{reader.name}"
        codes, attrs = self.codes[value], self.stored[value]
        self.nodes.append(Node("unpack", name, (codes,), (copy,), attrs))
        return copy

    def _pack(self, node: Node) -> None:
        """The node and one that packs its result; a table gives the codes itself."""
        value, attrs = node.output, self.stored[node.output]
        name = f"{node.name}:packed"
        codes = Value(f"{value.name}:packed", attrs.packed(value.type.shape[1]))
        self.codes[value] = codes
        if node.op == "lut" and len(node.input(1).array) == 1:
            table = attrs.storage.codes()[node.input(1).array[0].view(np.uint8)]
            constant = Value(f"{name}:table", TensorType(table.shape, DType.UINT8), table)
            self.nodes.append(Node("pack", name, (node.input(0), constant), (codes,), attrs))
            return
        self.nodes += [node, Node("pack", name, (value,), (codes,), attrs)]

    def _maker(self, value: Value) -> str:
        return self.before.producers[value].name

    def named(self, cut: Graph, rows: Mapping[Value, Rows]) -> dict[Value, Rows]:
        """The rows of stripes, and the whole tensors that are new, by the tensors before."""
        values = {codes: value for value, codes in self.codes.items()}
        whole = {
            new: Rows(new, "", 0, new.type.shape[1])
            for new in (*self.copies, *values)
            if new in cut.producers
        }
        return {new: self._named(of, values) for new, of in {**whole, **rows}.items()}

    def _named(self, rows: Rows, values: Mapping[Value, Value]) -> Rows:
        of = self.copies.get(rows.of, values.get(rows.of))
        if of is None:
            return rows
        packed = self.stored[of] if rows.of in values else None
        return replace(rows, of=of, layer=self._maker(of), packed=packed)


def window_rows(node: Node) -> int:
    """Rows of its operands that a row of the node's result needs, 0 where it runs whole."""
    window = REGISTRY[node.op].row_window(node) if is_striped(node) else None
    return window.extent if window is not None else 0
