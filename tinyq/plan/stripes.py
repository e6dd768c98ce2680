"""Which of the first layers run in stripes, and of how many rows, to need less memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tinyq.ir import Graph
from tinyq.passes.stripe import AttrsCache, Striped, regions, stripe
from tinyq.plan.exchange import Peaks
from tinyq.plan.remedies import Proposal
from tinyq.plan.sharing import share_memory
from tinyq.select import Libraries, Schedule, select
from tinyq.select.selection import Answers
from tinyq.target import Core

_REGIONS = 6
"""Regions that are tried: the shortest ones behind which the rest may meet the limit."""

_STEPS = (1, 2, 4, 8, 16, 32)


class Stripes:
    """Tries regions and steps for one graph; what kernels answer is kept between goals."""

    def __init__(
        self, graph: Graph, core: Core, libraries: Libraries | None, family: str = ""
    ) -> None:
        self.graph, self.core, self.libraries, self.family = graph, core, libraries, family
        self.attrs, self.answers = AttrsCache(), Answers()
        self.made: dict[tuple[int, int], Striped] = {}

    def proposals(self, whole: Schedule, limit: int) -> Iterator[Proposal]:
        """Every region behind which the rest may stay within ``limit``, with every step."""
        for nodes in self._regions(whole, limit):
            height = self.graph.nodes[nodes - 1].output.type.shape[1]
            for step in (k for k in _STEPS if 2 * k <= height):
                striped = self._striped(nodes, step)
                chosen = select(
                    striped.graph, self.core, whole.goal, libraries=self.libraries,
                    family=self.family, known=self.answers,
                )  # fmt: skip
                schedule = share_memory(replace(chosen, rows=striped.rows))
                rows = "row" if step == 1 else "rows"
                yield Proposal(
                    schedule,
                    f"the first {striped.nodes} layers run in {striped.steps} stripes, {step} "
                    f"{rows} of their result at a time",
                    f"no row is computed twice, {striped.moved_bytes:,} bytes are moved",
                )

    def _regions(self, whole: Schedule, limit: int) -> list[int]:
        """Numbers of nodes behind which the rest of the network can stay within ``limit``."""
        peaks = Peaks(whole)
        beyond = [time for time in peaks.needed if peaks.least(time) > limit]
        found = []
        for nodes in regions(self.graph):
            # From the layer after the region on, nothing of the region but its result is left.
            met = all(time < nodes for time in beyond)
            if met and self.graph.nodes[nodes - 1].output.type.bytes <= limit:
                found.append(nodes)
        return found[:_REGIONS]

    def _striped(self, nodes: int, step: int) -> Striped:
        if (nodes, step) not in self.made:
            self.made[nodes, step] = stripe(self.graph, nodes, step, self.attrs)
        return self.made[nodes, step]
