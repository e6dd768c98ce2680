"""What a schedule costs: time, flash, and the price that a goal puts on them."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from tinyq.ops.base import KernelCall, PackedConstant
from tinyq.select import Goal, Schedule

_UNKNOWN_CODE = 500
"""Bytes of code taken for a kernel that states none: about the mean of the portable ones."""


@dataclass(frozen=True)
class Cost:
    """Instructions of one inference, those that a slow multiplier waits included; bytes of flash
    (an estimate) and of arena (the least that any placement needs)."""

    time: float
    flash: int
    arena: int

    @staticmethod
    def of(schedule: Schedule, arena: int) -> Cost:
        """What a schedule that needs ``arena`` bytes costs."""
        waits = schedule.core.mul_cycles - 1
        time = sum(
            layer.call.instructions + (waits * layer.macs if layer.call.multiplies else 0)
            for layer in schedule.layers
        )
        return Cost(time, flash_estimate(schedule), arena)


_WORTH = {Goal.SPEED: 0.0, Goal.BALANCED: 0.5, Goal.SIZE: 1.0}
"""Of a share of the arena that is saved, the shares of instructions and flash that it may take; for
the smallest code: bytes of flash for a byte of the arena."""


def price(goal: Goal, cost: Cost, usual: Cost) -> float:
    """What a goal minimises where no limit is given.

    ``usual`` is the cost of the schedule that is compared with.
    """
    if goal is Goal.SIZE:
        return cost.flash + _WORTH[goal] * cost.arena
    return _running(goal, cost, usual) + _WORTH[goal] * cost.arena / max(1, usual.arena)


def price_within(goal: Goal, cost: Cost, usual: Cost) -> float:
    """What a goal minimises among schedules that keep a limit on the arena: bytes below it are
    worth nothing."""
    return cost.flash if goal is Goal.SIZE else _running(goal, cost, usual)


def _running(goal: Goal, cost: Cost, usual: Cost) -> float:
    time = cost.time / max(1.0, usual.time)
    return time if goal is Goal.SPEED else time + cost.flash / max(1, usual.flash)


def flash_estimate(schedule: Schedule) -> int:
    """Bytes of flash: constants exactly, code by the kernels' estimates, shared functions once."""
    seen: set[tuple[str, str]] = set()
    constants: set[object] = set()
    contents: dict[int, bytes] = {}
    total = 0
    for layer in schedule.layers:
        for constant in layer.call.constants:
            content: object = id(constant.array)
            if layer.outputs[0] in schedule.rows:  # stripes have the same constants
                content = _content(constant, contents)
            if content not in constants:
                total += int(constant.array.nbytes)
            constants.add(content)
        key, code = shared_code(layer.call)
        total += 0 if key in seen else code
        seen.add(key)
    return total


def _content(constant: PackedConstant, known: dict[int, bytes]) -> bytes:
    array = constant.array
    if id(array) not in known:
        known[id(array)] = sha256(np.ascontiguousarray(array).tobytes()).digest()
    return known[id(array)]


def shared_code(call: KernelCall) -> tuple[tuple[str, str], int]:
    """What tells a call's function apart from others, and the estimate of its code in bytes."""
    return (call.template, repr(call.params)), 0 if call.alias else call.code_bytes or _UNKNOWN_CODE
