"""Tensors of few values stored packed where memory is fuller than a budget.

There the layers are cut into regions that run in stripes of rows: one layer that reads several rows
of its operand for each of its result, with the elementwise ones around it. Between regions tensors
exist whole, packed where their values are few; within them only rows do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tinyq.ir import Graph, Value
from tinyq.ops.pack import PackAttrs
from tinyq.passes.pack import is_region, pack, storable, window_rows
from tinyq.passes.stripe import AttrsCache, Region
from tinyq.plan.exchange import alike
from tinyq.plan.memory import Problem
from tinyq.plan.placement import fullness
from tinyq.plan.sharing import share_memory
from tinyq.select import Layer, Libraries, Schedule, select
from tinyq.select.selection import Answers
from tinyq.target import Core

_STEPS = (2, 4, 8)
"""Rows of a region's result at a time."""

_SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8)
"""Of a limit, or of what is needed without packing: the budgets that are tried."""

_LITTLE = 1.1
"""Times the instructions of the whole network that packing may take without being asked for."""

_PLACED = 3
"""Schedules that are placed, of those that are worth it."""


@dataclass(frozen=True, eq=False)
class PackedSchedule:
    """A schedule with packed tensors; ``needed`` are the bytes that any placement of it takes."""

    schedule: Schedule
    needed: int
    stored: Mapping[Value, PackAttrs]
    regions: tuple[Region, ...]

    def note(self, whole: Schedule, before: int, after: int) -> str:
        """What it saves and costs, from the bytes of the arena ``before`` and ``after``."""
        more = 100 * (self.schedule.instructions / max(1, whole.instructions) - 1)
        bits = sorted({attrs.storage.bits for attrs in self.stored.values()})
        widths = " or ".join(map(str, bits))
        tensors = "tensor is" if len(self.stored) == 1 else "tensors are"
        step = max(region.step for region in self.regions)
        return (
            f"{len(self.stored)} {tensors} packed, {widths} bits an element, and the layers around "
            f"run in stripes of at most {step} row{'s' if step > 1 else ''}: {after:,} bytes of "
            f"arena, not {before:,}, {more:+.1f}% instructions (estimate)"
        )


class PackSearch:
    """Packs one graph's tensors within budgets; what kernels answer is kept between them."""

    def __init__(
        self, graph: Graph, core: Core, libraries: Libraries | None, family: str = ""
    ) -> None:
        self.core, self.libraries, self.family = core, libraries, family
        self.attrs, self.answers = AttrsCache(), Answers()
        self.storable = storable(graph)

    def within(self, whole: Schedule, ram: int) -> list[PackedSchedule]:
        """Schedules that may fit in ``ram`` bytes, fewest instructions first."""
        # A placement can take more than what is needed at least.
        found = self._under(whole, [int(share * ram) for share in (1.0, *_SHARES[:3])])
        found = [packed for packed in found if packed.needed <= ram]
        return sorted(found, key=lambda packed: packed.schedule.instructions)

    def worth(self, whole: Schedule, flash: Callable[[Schedule], int]) -> list[PackedSchedule]:
        """Schedules that need less at little cost, those first that save most of flash and RAM.

        Where all of them cost more, the one with the fewest instructions.
        """
        most = needed_bytes(whole)
        found = self._under(whole, [int(share * most) for share in _SHARES])
        found = [packed for packed in found if packed.needed < most]
        if not found:
            return []
        little = [p for p in found if p.schedule.instructions <= _LITTLE * whole.instructions]
        little = little or [min(found, key=lambda packed: packed.schedule.instructions)]
        return sorted(little, key=lambda packed: packed.needed + flash(packed.schedule))[:_PLACED]

    def _under(self, whole: Schedule, budgets: Iterable[int]) -> list[PackedSchedule]:
        return (
            [p for budget in budgets for p in self._tried(whole, budget)] if self.storable else []
        )

    def _tried(self, whole: Schedule, budget: int) -> Iterator[PackedSchedule]:
        """With stripes of every step, whatever they need."""
        bounds, stored = self._cut(whole, budget)
        if not stored or not bounds:
            return
        nodes = whole.graph.nodes
        for step in _STEPS:
            regions = tuple(
                Region(start, stop, min(step, nodes[stop - 1].output.type.shape[1] // 2))
                for start, stop in bounds
            )
            packed = pack(whole.graph, stored, regions, self.attrs)
            chosen = select(
                packed.graph, self.core, whole.goal, libraries=self.libraries, family=self.family,
                known=self.answers,
            )  # fmt: skip
            schedule = _fitted(share_memory(replace(chosen, rows=packed.rows)), budget)
            yield PackedSchedule(schedule, needed_bytes(schedule), stored, regions)

    def _cut(
        self, whole: Schedule, budget: int
    ) -> tuple[list[tuple[int, int]], dict[Value, PackAttrs]]:
        """First and last (excluded) nodes of regions, and the tensors between them to be packed."""
        nodes = whole.graph.nodes
        problem = Problem(_fitted(whole, budget))
        needed = fullness(problem.spans, problem.handovers)
        over = [needed.get(k, 0) > budget for k in range(len(nodes))]
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


def needed_bytes(schedule: Schedule) -> int:
    """Bytes that any placement takes."""
    problem = Problem(schedule)
    return max(fullness(problem.spans, problem.handovers).values(), default=0)


def _fitted(schedule: Schedule, budget: int) -> Schedule:
    """With the cheapest kernels whose scratch the budget has room for, else the least scratch."""
    bare = tuple(
        la if la.call.alias else replace(la, call=replace(la.call, scratch_bytes=0))
        for la in schedule.layers
    )
    problem = Problem(replace(schedule, layers=bare))
    needed = fullness(problem.spans, problem.handovers)
    used, layers = 0, []
    for k, layer in enumerate(schedule.layers):
        used = needed.get(k, used)
        layers.append(_with_scratch(layer, budget - used))
    return replace(schedule, layers=tuple(layers))


def _with_scratch(layer: Layer, most: int) -> Layer:
    if layer.call.alias or layer.call.scratch_bytes <= most:
        return layer
    calls = [
        (c.cost, c.call) for c in layer.candidates
        if c.call is not None and not c.call.alias and alike(c.call, layer.call)
    ]  # fmt: skip
    fitting = [(cost, call) for cost, call in calls if call.scratch_bytes <= most]
    if fitting:
        return replace(layer, call=min(fitting, key=lambda pair: pair[0])[1])
    return replace(layer, call=min(calls, key=lambda p: (p[1].scratch_bytes, p[0]))[1])
