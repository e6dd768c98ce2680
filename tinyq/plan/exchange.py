"""Kernels exchanged for ones with less scratch where the arena is fullest.

Selection prices instructions and flash, layer by layer. What a kernel takes of the arena counts
only at the fullest moments, so it is priced here: there, the cheapest other kernel that lowers the
peak is taken, and the next peak is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tinyq.ops.base import KernelCall
from tinyq.plan.memory import Problem
from tinyq.plan.placement import fullness
from tinyq.plan.sharing import share_memory
from tinyq.select import Layer, Schedule


@dataclass(frozen=True, eq=False)
class Exchange:
    """A schedule with some kernels exchanged.

    ``needed`` are the bytes that any placement of it takes, ``cost`` what it costs more than before
    the first exchange, in units of the goal.
    """

    schedule: Schedule
    needed: int
    cost: float


def exchanges(schedule: Schedule) -> Iterator[Exchange]:
    """The schedule itself, then ones that need less and less memory at more and more cost."""
    current = Exchange(schedule, max(_fullness(schedule).values(), default=0), 0.0)
    yield current
    # Every layer can be at the peak with every kernel that it has.
    for _ in range(sum(len(layer.candidates) for layer in schedule.layers)):
        following = _lowered(current)
        if following is None:
            return
        lower = following.needed < current.needed
        current = following
        if lower:
            yield current


def _fullness(schedule: Schedule) -> dict[int, int]:
    problem = Problem(share_memory(schedule))
    return fullness(problem.spans, problem.handovers)


def _lowered(found: Exchange) -> Exchange | None:
    """With another kernel for the first layer at the peak, None where it has no smaller one."""
    layers = found.schedule.layers
    full = _fullness(found.schedule)
    peak = next((k for k, size in sorted(full.items()) if size == found.needed), -1)
    if not 0 <= peak < len(layers) or layers[peak].call.alias:
        return None
    layer = layers[peak]
    now = cost_of(layer)
    best: Exchange | None = None
    for candidate in layer.candidates:
        call = candidate.call
        if call is None or call is layer.call or not _alike(call, layer.call):
            continue
        other = replace(layer, call=call)
        schedule = replace(found.schedule, layers=(*layers[:peak], other, *layers[peak + 1 :]))
        after = _fullness(schedule)
        cost = found.cost + candidate.cost - now
        if after[peak] < full[peak] and (best is None or cost < best.cost):
            best = Exchange(schedule, max(after.values()), cost)
    return best


def _alike(a: KernelCall, b: KernelCall) -> bool:
    """Whether both are tinyq's own, or both a library's."""
    return (a.library is None) == (b.library is None)


def cost_of(layer: Layer) -> float:
    """What the layer's kernel costs, in units of the goal; nothing without code."""
    return next((c.cost for c in layer.candidates if c.call is layer.call), 0.0)
