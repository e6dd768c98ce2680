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
from tinyq.plan.memory import MemoryPlan, plan_shared
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
    """Select and plan within ``limits``: the kernels of a smaller goal, or stripes of rows.

    ``libraries`` and ``family`` are those of :func:`tinyq.select.select`. ``advise`` adds to the
    remedies what else would help.

    Raises one TinyqError with TQ801 (RAM) and TQ802 (flash) for the limits that nothing meets.
    """
    tried: list[tuple[Schedule, MemoryPlan]] = []
    goals = _SMALLER[_SMALLER.index(goal) :] if limits != Limits() else (goal,)
    for attempt in goals:
        schedule, memory = plan_shared(
            select(graph, core, attempt, libraries=libraries, family=family)
        )
        tried.append((schedule, memory))
        if limits.allow(memory, flash_estimate(schedule)):
            return Fitted(schedule, memory, _moved(goal, attempt))
    whole = list(tried)
    if limits.ram is not None:
        search = StripeSearch(graph, core, libraries, family)
        for (schedule, memory), attempt in zip(whole, goals, strict=True):
            if memory.arena_bytes <= limits.ram:  # flash is what is short: stripes take more
                continue
            for striped in search.run(schedule, memory, limits.ram):
                tried.append((striped.schedule, striped.plan))
                if limits.allow(striped.plan, flash_estimate(striped.schedule)):
                    notes = (*_moved(goal, attempt), striped.note)
                    return Fitted(striped.schedule, striped.plan, notes)
    problems = [*_ram_problem(tried, limits), *_flash_problem(tried, limits)]
    arena = min(memory.arena_bytes for _, memory in tried)
    more = advise(arena, min(flash_estimate(s) for s, _ in tried)) if advise is not None else ""
    raise TinyqError([replace(p, remedy=f"{p.remedy} {more}".strip()) for p in problems])


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
