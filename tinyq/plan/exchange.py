"""Kernels exchanged for ones with less scratch where the arena is fullest.

Selection prices instructions and flash, layer by layer. What a kernel takes of the arena counts
only at the fullest moments, so it is priced here. Another kernel of a layer changes what is needed
while that layer runs and at no other time: within a limit, the cheapest kernel of every layer that
keeps it is the cheapest choice of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tinyq.ops.base import KernelCall
from tinyq.plan.memory import Problem
from tinyq.plan.placement import fullness
from tinyq.plan.sharing import share_memory
from tinyq.select import Candidate, Layer, Schedule


@dataclass(frozen=True, eq=False)
class Exchange:
    """A schedule with some kernels exchanged.

    ``needed`` are the bytes that any placement of it takes, ``cost`` what it costs more than before
    the first exchange, in units of the goal.
    """

    schedule: Schedule
    needed: int
    cost: float


class Peaks:
    """What a schedule needs while each of its layers runs, with any of their kernels."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._problem = Problem(share_memory(schedule))
        self.needed = fullness(self._problem.spans, self._problem.handovers)
        self._others: dict[int, list[tuple[Candidate, int]]] = {}

    def within(self, limit: int) -> Exchange | None:
        """With the cheapest kernels that need no more than ``limit``; None where there are none."""
        layers, cost, highest = list(self.schedule.layers), 0.0, 0
        for time, needed in self.needed.items():
            if needed > limit:
                allowed = [(c, size) for c, size in self._kernels(time) if size <= limit]
                if not allowed:
                    return None
                best, size = min(allowed, key=lambda entry: entry[0].cost)
                assert best.call is not None
                cost += best.cost - cost_of(layers[time])
                layers[time] = replace(layers[time], call=best.call)
                highest = max(highest, size)
            else:
                highest = max(highest, needed)
        same = all(a is b for a, b in zip(layers, self.schedule.layers, strict=True))
        schedule = self.schedule if same else replace(self.schedule, layers=tuple(layers))
        return Exchange(schedule, highest, cost)

    def exchanges(self) -> Iterator[Exchange]:
        """The schedule itself, then ones that need less and less memory at more and more cost."""
        highest = max(self.needed.values(), default=0)
        found: Exchange | None = Exchange(self.schedule, highest, 0.0)
        while found is not None:
            yield found
            found = self.within(found.needed - 1)

    def least(self, time: int) -> int:
        """The fewest bytes that are needed at a time, with whatever kernel."""
        return min([self.needed[time], *(size for _, size in self._kernels(time))])

    def least_beyond(self, limit: int) -> int:
        """The fewest bytes above ``limit`` that are needed; the limit where nothing is above it."""
        beyond = (time for time, size in self.needed.items() if size > limit)
        return max([limit, *(self.least(time) for time in beyond)])

    def _kernels(self, time: int) -> list[tuple[Candidate, int]]:
        """The other kernels of the layer that runs then, and what is needed with each."""
        if time not in self._others:
            self._others[time] = []
            shared = self._problem.schedule.layers
            if 0 <= time < len(shared) and not shared[time].call.alias:
                layer = self.schedule.layers[time]
                self._others[time] = [
                    (c, self._problem.needed_with(layer, c.call))
                    for c in layer.candidates
                    if c.call is not None and c.call is not layer.call and _alike(c.call, layer)
                ]
        return self._others[time]


def _alike(call: KernelCall, layer: Layer) -> bool:
    """Whether both are tinyq's own, or both a library's."""
    return (call.library is None) == (layer.call.library is None)


def cost_of(layer: Layer) -> float:
    """What the layer's kernel costs, in units of the goal; nothing without code."""
    return next((c.cost for c in layer.candidates if c.call is layer.call), 0.0)
