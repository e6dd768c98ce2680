"""Tensors of few values stored packed where memory is fuller than a budget.

There the layers are cut into regions that run in stripes of rows: one layer that reads several rows
of its operand for each of its result, with the elementwise ones around it. Between regions tensors
exist whole, packed where their values are few; within them only rows do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tinyq.ir import Graph, Value
from tinyq.ops.pack import PackAttrs
from tinyq.passes.pack import is_region, pack, storable, window_rows
from tinyq.passes.stripe import AttrsCache, Region
from tinyq.plan.exchange import Peaks
from tinyq.plan.remedies import Proposal
from tinyq.plan.sharing import share_memory
from tinyq.select import Libraries, Schedule, select
from tinyq.select.selection import Answers
from tinyq.target import Core

_STEPS = (2, 4, 8)
"""Rows of a region's result at a time."""

_SHARES = (1.0, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8)
"""Of the limit: above which of these bytes layers are cut into regions."""


class Packing:
    """Tries budgets and steps for one graph; what kernels answer is kept between goals."""

    def __init__(
        self, graph: Graph, core: Core, libraries: Libraries | None, family: str = ""
    ) -> None:
        self.core, self.libraries, self.family = core, libraries, family
        self.attrs, self.answers = AttrsCache(), Answers()
        self.storable = storable(graph)

    def proposals(self, whole: Schedule, limit: int) -> Iterator[Proposal]:
        """With what may be packed above every share of the limit, in stripes of every step."""
        if not self.storable:
            return
        peaks = Peaks(whole)
        cuts = [self._cut(whole, peaks, int(share * limit)) for share in _SHARES]
        for k, (bounds, stored) in enumerate(cuts):
            if stored and bounds and bounds not in [other for other, _ in cuts[:k]]:
                for step in _STEPS:
                    yield self._proposal(whole, bounds, stored, step)

    def _proposal(
        self, whole: Schedule, bounds: Sequence[tuple[int, int]], stored: Mapping[Value, PackAttrs],
        step: int,
    ) -> Proposal:  # fmt: skip
        nodes = whole.graph.nodes
        regions = [
            Region(start, stop, min(step, nodes[stop - 1].output.type.shape[1] // 2))
            for start, stop in bounds
        ]
        packed = pack(whole.graph, stored, regions, self.attrs)
        chosen = select(
            packed.graph, self.core, whole.goal, libraries=self.libraries, family=self.family,
            known=self.answers,
        )  # fmt: skip
        saved = sum(v.type.bytes - a.packed(v.type.shape[1]).bytes for v, a in stored.items())
        widths = " or ".join(str(b) for b in sorted({a.storage.bits for a in stored.values()}))
        tensors = "tensor is" if len(stored) == 1 else "tensors are"
        most = max(region.step for region in regions)
        return Proposal(
            share_memory(replace(chosen, rows=packed.rows)),
            f"{len(stored)} {tensors} packed, {widths} bits an element, and the layers around run "
            f"in stripes of at most {most} row{'s' if most > 1 else ''}",
            f"packed they have {saved:,} bytes less",
        )

    def _cut(
        self, whole: Schedule, peaks: Peaks, budget: int
    ) -> tuple[list[tuple[int, int]], dict[Value, PackAttrs]]:
        """First and last (excluded) nodes of regions, and the tensors between them to be packed."""
        nodes = whole.graph.nodes
        over = [peaks.needed.get(k, 0) > budget for k in range(len(nodes))]
        last = {value: k for k, node in enumerate(nodes) for value in node.present_inputs}
        alive = {
            node.output for k, node in enumerate(nodes)
            if node.output in self.storable and any(over[k : last[node.output] + 1])
        }  # fmt: skip
        wanted = [
            over[k] or node.output in alive or any(v in alive for v in node.present_inputs)
            for k, node in enumerate(nodes)
        ]
        bounds, at = [], 0
        while at < len(nodes):
            stop = _longest(whole.graph, at, wanted)
            if stop:
                bounds.append((at, stop))
            at = stop or at + 1
        inside = {node.output for start, stop in bounds for node in nodes[start : stop - 1]}
        return bounds, {v: self.storable[v] for v in self.storable if v in alive - inside}


def _longest(graph: Graph, start: int, wanted: Sequence[bool]) -> int:
    """Where the longest region from ``start`` on ends that reads one window, 0 without one."""
    found = wide = 0
    for stop in range(start + 1, len(wanted) + 1):
        node = graph.nodes[stop - 1]
        extent = window_rows(node)
        wide += extent > 1
        if not wanted[stop - 1] or not extent or wide > 1:
            break
        if node.output.type.shape[1] > 1 and is_region(graph, start, stop):
            found = stop
    return found
