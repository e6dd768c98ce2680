"""What is said of limits that nothing meets: what was reached, and what is in the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tinyq.errors import Diagnostic
from tinyq.plan.memory import MemoryPlan
from tinyq.plan.price import flash_estimate
from tinyq.select import Layer, Schedule

Tried = Sequence[tuple[Schedule, MemoryPlan]]


def peak_layer(schedule: Schedule, memory: MemoryPlan) -> Layer:
    """The layer whose operands, results and scratch reach the top of the arena."""

    def top(layer: Layer) -> int:
        ends = [memory.offsets[v] + v.type.bytes for v in (*layer.inputs, *layer.outputs)]
        offset = memory.scratch[layer.index]
        return max([*ends, 0 if offset is None else offset + layer.call.scratch_bytes])

    return max(schedule.layers, key=top)


def ram_problem(tried: Tried, limit: int | None) -> Iterator[Diagnostic]:
    """TQ801, where no plan keeps the limit on the arena."""
    schedule, memory = min(tried, key=lambda pair: pair[1].arena_bytes)
    if limit is None or memory.arena_bytes <= limit:
        return
    layer = peak_layer(schedule, memory)
    operands = (*layer.inputs, *layer.outputs)
    sizes = ", ".join(f"{v.type.dtype.value}{list(v.type.shape)}" for v in operands)
    stripes = " with the first layers in stripes of rows" if schedule.rows else ""
    part = schedule.rows.get(layer.outputs[0])
    yield Diagnostic(
        "TQ801",
        f"the arena takes {memory.arena_bytes:,} bytes{stripes}, "
        f"{memory.arena_bytes - limit:,} more than {limit:,}; no placement takes fewer "
        f"than {memory.live_bytes:,}. It is fullest here: {sizes}, scratch "
        f"{layer.call.scratch_bytes:,}{_inputs_alone(schedule, limit)}",
        "Make this tensor smaller: a smaller input, a larger stride before it, fewer channels.",
        part.layer if part is not None and part.layer else layer.node.name,
        layer.node.op,
    )


def _inputs_alone(schedule: Schedule, ram: int) -> str:
    """A remark where the inputs take what there is: nothing but a smaller input helps then."""
    size = sum(v.type.bytes for v in schedule.graph.inputs)
    if size < ram * 3 // 4:
        return ""
    return f"; the network's inputs alone take {size:,}"


def flash_problem(tried: Tried, limit: int | None) -> Iterator[Diagnostic]:
    """TQ802, where no schedule keeps the limit on flash."""
    schedule, _ = min(tried, key=lambda pair: flash_estimate(pair[0]))
    flash = flash_estimate(schedule)
    if limit is None or flash <= limit:
        return
    layer = max(schedule.layers, key=lambda layer: layer.call.constant_bytes)
    constants = sum(other.call.constant_bytes for other in schedule.layers)
    yield Diagnostic(
        "TQ802",
        f"constants take {constants:,} bytes and code about {flash - constants:,}, together "
        f"{flash - limit:,} more than {limit:,}. The largest layer has "
        f"{layer.call.constant_bytes:,}",
        "Train with fewer weights in this layer, or with fewer bits.",
        layer.node.name,
        layer.node.op,
    )
