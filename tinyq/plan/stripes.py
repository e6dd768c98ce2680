"""Which of the first layers run in stripes, and of how many rows, to meet a limit on RAM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tinyq.ir import Graph
from tinyq.passes.stripe import AttrsCache, Striped, regions, stripe
from tinyq.plan.memory import MemoryPlan, Problem, plan
from tinyq.plan.placement import fullness
from tinyq.plan.sharing import share_memory
from tinyq.select import Libraries, Schedule, select
from tinyq.select.selection import Answers
from tinyq.target import Core

_REGIONS = 6
"""Regions that are tried: the shortest ones behind which the rest may meet the limit."""


@dataclass(frozen=True, eq=False)
class Stripes:
    """A network whose first layers run in stripes; ``note`` says what it costs and saves."""

    schedule: Schedule
    plan: MemoryPlan
    note: str


class StripeSearch:
    """Tries regions and steps for one graph; what kernels answer is kept between goals."""

    def __init__(
        self, graph: Graph, core: Core, libraries: Libraries | None, family: str = ""
    ) -> None:
        self.graph, self.core, self.libraries, self.family = graph, core, libraries, family
        self.attrs, self.answers = AttrsCache(), Answers()
        self.made: dict[tuple[int, int], Striped] = {}

    def run(self, whole: Schedule, memory: MemoryPlan, ram: int) -> Iterator[Stripes]:
        """Plans whose bound meets ``ram``, fewest instructions first; else the smallest found."""
        found = []
        for nodes in self._regions(whole, ram):
            height = self.graph.nodes[nodes - 1].output.type.shape[1]
            for step in (k for k in (1, 2, 4, 8, 16, 32) if 2 * k <= height):
                striped = self._striped(nodes, step)
                chosen = select(
                    striped.graph, self.core, whole.goal, libraries=self.libraries,
                    family=self.family, known=self.answers,
                )  # fmt: skip
                schedule = share_memory(replace(chosen, rows=striped.rows))
                problem = Problem(schedule)
                bound = max(fullness(problem.spans, problem.handovers).values())
                found.append((bound, schedule, striped))
        within = [entry for entry in found if entry[0] <= ram]
        within.sort(key=lambda entry: entry[1].instructions)
        if not within and found:
            within = [min(found, key=lambda entry: entry[0])]
        for _, schedule, striped in within:
            placed = plan(schedule)
            yield Stripes(schedule, placed, _note(whole, memory, schedule, placed, striped))

    def _regions(self, whole: Schedule, ram: int) -> list[int]:
        """Numbers of nodes behind which the rest of the network stays within ``ram``."""
        problem = Problem(whole)
        needed = fullness(problem.spans, problem.handovers)
        found = []
        for nodes in regions(self.graph):
            # From the layer after the region on, nothing of the region but its result is left.
            rest = max((size for time, size in needed.items() if time >= nodes), default=0)
            if rest <= ram and self.graph.nodes[nodes - 1].output.type.bytes <= ram:
                found.append(nodes)
        return found[:_REGIONS]

    def _striped(self, nodes: int, step: int) -> Striped:
        if (nodes, step) not in self.made:
            self.made[nodes, step] = stripe(self.graph, nodes, step, self.attrs)
        return self.made[nodes, step]


def _note(
    whole: Schedule, before: MemoryPlan, schedule: Schedule, after: MemoryPlan, striped: Striped
) -> str:
    more = 100 * (schedule.instructions / max(1, whole.instructions) - 1)
    rows = "row" if striped.step == 1 else "rows"
    return (
        f"the first {striped.nodes} layers run in {striped.steps} stripes, {striped.step} {rows} "
        f"of their result at a time: {after.arena_bytes:,} bytes of arena, not "
        f"{before.arena_bytes:,}, {more:+.1f}% instructions (estimate); no row is "
        f"computed twice, {striped.moved_bytes:,} bytes are moved"
    )
