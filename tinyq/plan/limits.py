"""Limits on memory: met by choosing other kernels, or refused with what is in the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from tinyq.errors import Diagnostic, TinyqError, error
from tinyq.ir import Graph
from tinyq.ops.base import KernelCall
from tinyq.plan.exchange import Exchange, exchanges
from tinyq.plan.memory import MemoryPlan, plan_shared
from tinyq.plan.order import order_layers
from tinyq.plan.stripes import StripeSearch
from tinyq.select import Goal, Layer, Libraries, Schedule, select
from tinyq.target import Core

_UNKNOWN_CODE = 500
"""Bytes of code taken for a kernel that states none: about the mean of the portable ones."""

Advice = Callable[[int, int], str]
"""Told the least bytes of arena and of flash that were found."""

_SMALLER = (Goal.SPEED, Goal.BALANCED, Goal.SIZE)
"""Each goal gives less flash than the one before."""


@dataclass(frozen=True)
class Limits:
    """Most bytes that the network may take, None without limit.

    ram: the arena; the stack, some hundred bytes that a verification measures, comes on top.
    flash: constants and the estimate of the code.
    """

    ram: int | None = None
    flash: int | None = None

    def allow(self, memory: MemoryPlan, flash: int) -> bool:
        """Whether both limits are kept."""
        return (self.ram is None or memory.arena_bytes <= self.ram) and (
            self.flash is None or flash <= self.flash
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was chosen, and a note where the limits moved the choice."""

    schedule: Schedule
    plan: MemoryPlan
    notes: tuple[str, ...] = ()


def parse_bytes(text: str) -> int:
    """Bytes from ``32K``, ``1M`` or ``4096``; K is 1024. Raises TQ303."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KM]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise error("TQ303", f"'{text}' is no size", "Write bytes as 32768, 32K or 1M.")
    return int(float(found[1]) * {"": 1, "K": 1024, "M": 1024**2}[found[2].upper()])


def fit(
    graph: Graph, core: Core, goal: Goal, limits: Limits, libraries: Libraries | None = None,
    family: str = "", advise: Advice | None = None,
) -> Fitted:  # fmt: skip
    """Select and plan within ``limits``.

    Other kernels where memory is fullest, the kernels of a smaller goal, then stripes of rows are
    tried, until the limits are met.

    ``libraries`` and ``family`` are those of :func:`tinyq.select.select`. ``advise`` adds to the
    remedies what else would help.

    Raises one TinyqError with TQ801 (RAM) and TQ802 (flash) for the limits that nothing meets.
    """
    tried: list[tuple[Schedule, MemoryPlan]] = []

    def allowed(schedule: Schedule, memory: MemoryPlan) -> bool:
        tried.append((schedule, memory))
        return limits.allow(memory, flash_estimate(schedule))

    goals = _SMALLER[_SMALLER.index(goal) :] if limits != Limits() else (goal,)
    whole: list[Fitted] = []
    for attempt in goals:
        found = _whole(select(graph, core, attempt, libraries=libraries, family=family))
        found = replace(found, notes=(*_moved(goal, attempt), *found.notes))
        whole.append(found)
        if allowed(found.schedule, found.plan):
            return found
        for exchange in exchanges(found.schedule) if limits.ram is not None else ():
            if limits.ram is not None and exchange.needed <= limits.ram:
                schedule, memory = plan_shared(exchange.schedule)
                if allowed(schedule, memory):
                    notes = (*found.notes, _exchanged(found.plan, memory))
                    return Fitted(schedule, memory, notes)
    if limits.ram is not None:
        search = StripeSearch(whole[0].schedule.graph, core, libraries, family)
        for found in whole:
            if found.plan.arena_bytes <= limits.ram:  # flash is what is short: stripes take more
                continue
            for striped in search.run(found.schedule, found.plan, limits.ram):
                if allowed(striped.schedule, striped.plan):
                    return Fitted(striped.schedule, striped.plan, (*found.notes, striped.note))
    problems = [*_ram_problem(tried, limits), *_flash_problem(tried, limits)]
    arena = min(memory.arena_bytes for _, memory in tried)
    more = advise(arena, min(flash_estimate(s) for s, _ in tried)) if advise is not None else ""
    raise TinyqError([replace(p, remedy=f"{p.remedy} {more}".strip()) for p in problems])


_WORTH = {Goal.SPEED: 0.0, Goal.BALANCED: 0.5, Goal.SIZE: 1.0}
"""Of a share of the arena that is saved, the shares of instructions and flash that it may take; for
the smallest code: bytes of flash for a byte of the arena."""


def _whole(schedule: Schedule) -> Fitted:
    """The plan without limits: layers in the best order, and kernels as small as is worth it."""
    first = plan_shared(schedule)
    best, notes = first, list[str]()
    ordered = order_layers(schedule)
    if ordered is not schedule:
        other = plan_shared(ordered)
        if other[1].arena_bytes < best[1].arena_bytes:
            schedule, best = ordered, other
            notes.append(
                f"layers run in another order: {other[1].arena_bytes:,} bytes of arena, not "
                f"{first[1].arena_bytes:,}"
            )
    chosen = _worth_it(schedule)
    if chosen is not schedule:
        other = plan_shared(chosen)
        if other[1].arena_bytes < best[1].arena_bytes:
            notes.append(_exchanged(best[1], other[1]))
            best = other
    return Fitted(*best, tuple(notes))


def _worth_it(schedule: Schedule) -> Schedule:
    """With kernels exchanged as far as the goal pays for it."""
    worth = _WORTH[schedule.goal]
    if not worth:
        return schedule
    found = list(exchanges(schedule))
    if schedule.goal is Goal.SIZE:
        return min(found, key=lambda e: e.cost + worth * e.needed).schedule
    time, flash, arena = _shares(found[0])

    def score(exchange: Exchange) -> float:
        parts = _shares(exchange)
        return parts[0] / time + parts[1] / flash + worth * parts[2] / arena

    return min(found, key=score).schedule


def _shares(exchange: Exchange) -> tuple[float, float, float]:
    """Instructions, bytes of flash and bytes of arena, none of them zero."""
    layers = exchange.schedule.layers
    time = sum(layer.call.instructions for layer in layers)
    flash = sum(layer.call.flash_bytes for layer in layers)
    return max(1.0, time), max(1.0, flash), max(1.0, exchange.needed)


def _exchanged(before: MemoryPlan, after: MemoryPlan) -> str:
    return (
        f"kernels with less scratch where memory is fullest: {after.arena_bytes:,} bytes of arena, "
        f"not {before.arena_bytes:,}"
    )


def _moved(goal: Goal, attempt: Goal) -> tuple[str, ...]:
    if attempt is goal:
        return ()
    return (f"kernels are chosen for {attempt.value}, not {goal.value}, to keep the memory limits",)


def flash_estimate(schedule: Schedule) -> int:
    """Bytes of flash: constants exactly, code by the kernels' estimates, shared functions once."""
    seen: set[tuple[str, str]] = set()
    constants: set[object] = set()
    total = 0
    for layer in schedule.layers:
        for constant in layer.call.constants:
            content: object = id(constant.array)
            if layer.outputs[0] in schedule.rows:  # stripes have the same constants
                content = sha256(np.ascontiguousarray(constant.array).tobytes()).digest()
            if content not in constants:
                total += int(constant.array.nbytes)
            constants.add(content)
        key, code = shared_code(layer.call)
        total += 0 if key in seen else code
        seen.add(key)
    return total


def shared_code(call: KernelCall) -> tuple[tuple[str, str], int]:
    """What tells a call's function apart from others, and the estimate of its code in bytes."""
    return (call.template, repr(call.params)), 0 if call.alias else call.code_bytes or _UNKNOWN_CODE


def peak_layer(schedule: Schedule, memory: MemoryPlan) -> Layer:
    """The layer whose operands, results and scratch reach the top of the arena."""

    def top(layer: Layer) -> int:
        ends = [memory.offsets[v] + v.type.bytes for v in (*layer.inputs, *layer.outputs)]
        offset = memory.scratch[layer.index]
        return max([*ends, 0 if offset is None else offset + layer.call.scratch_bytes])

    return max(schedule.layers, key=top)


def _ram_problem(tried: list[tuple[Schedule, MemoryPlan]], limits: Limits) -> Iterable[Diagnostic]:
    schedule, memory = min(tried, key=lambda pair: pair[1].arena_bytes)
    if limits.ram is None or memory.arena_bytes <= limits.ram:
        return
    layer = peak_layer(schedule, memory)
    operands = (*layer.inputs, *layer.outputs)
    sizes = ", ".join(f"{v.type.dtype.value}{list(v.type.shape)}" for v in operands)
    stripes = " with the first layers in stripes of rows" if schedule.rows else ""
    part = schedule.rows.get(layer.outputs[0])
    yield Diagnostic(
        "TQ801",
        f"the arena takes {memory.arena_bytes:,} bytes{stripes}, "
        f"{memory.arena_bytes - limits.ram:,} more than {limits.ram:,}; no placement takes fewer "
        f"than {memory.live_bytes:,}. It is fullest here: {sizes}, scratch "
        f"{layer.call.scratch_bytes:,}{_inputs_alone(schedule, limits.ram)}",
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


def _flash_problem(
    tried: list[tuple[Schedule, MemoryPlan]], limits: Limits
) -> Iterable[Diagnostic]:
    schedule, _ = min(tried, key=lambda pair: flash_estimate(pair[0]))
    flash = flash_estimate(schedule)
    if limits.flash is None or flash <= limits.flash:
        return
    layer = max(schedule.layers, key=lambda layer: layer.call.constant_bytes)
    constants = sum(other.call.constant_bytes for other in schedule.layers)
    yield Diagnostic(
        "TQ802",
        f"constants take {constants:,} bytes and code about {flash - constants:,}, together "
        f"{flash - limits.flash:,} more than {limits.flash:,}. The largest layer has "
        f"{layer.call.constant_bytes:,}",
        "Train with fewer weights in this layer, or with fewer bits.",
        layer.node.name,
        layer.node.op,
    )
