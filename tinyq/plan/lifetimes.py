"""Who lies where in the arena, and when: what charts and reports read."""

from __future__ import annotations

from dataclasses import dataclass

from tinyq.plan.memory import MemoryPlan
from tinyq.select import Schedule


@dataclass(frozen=True)
class Lifetime:
    """One buffer: bytes ``offset`` to ``offset + bytes`` while layers ``first`` to ``last`` run.

    ``kind`` is input, output, tensor or scratch. Inputs live from before the first layer (-1),
    outputs until after the last (the number of layers). Buffers may share bytes where a kernel
    writes over what it has read.
    """

    name: str
    kind: str
    offset: int
    bytes: int
    first: int
    last: int


def lifetimes(schedule: Schedule, plan: MemoryPlan) -> tuple[Lifetime, ...]:
    """Every buffer of the arena, in the order in which they are written."""
    graph, end = schedule.graph, len(schedule.layers)
    last = dict.fromkeys(graph.outputs, end)
    for layer in schedule.layers:
        for value in layer.inputs:
            last[value] = max(last.get(value, -1), layer.index)
    found = [
        Lifetime(v.name, "input", plan.offsets[v], v.type.bytes, -1, last.get(v, -1))
        for v in graph.inputs
    ]
    outputs = set(graph.outputs)
    for layer in schedule.layers:
        now = layer.index
        for v in layer.outputs:
            kind = "output" if v in outputs else "tensor"
            found.append(
                Lifetime(
                    v.name, kind, plan.offsets[v], v.type.bytes, now, max(now, last.get(v, now))
                )
            )
        offset = plan.scratch[now]
        if offset is not None:
            found.append(
                Lifetime(layer.node.name, "scratch", offset, layer.call.scratch_bytes, now, now)
            )
    return tuple(found)


def live_bytes(buffers: tuple[Lifetime, ...], layer: int) -> int:
    """Bytes of the arena in use while ``layer`` runs; bytes that buffers share count once."""
    spans = sorted((b.offset, b.offset + b.bytes) for b in buffers if b.first <= layer <= b.last)
    total = end = 0
    for low, high in spans:
        total += max(0, high - max(low, end))
        end = max(end, high)
    return total
