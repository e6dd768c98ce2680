"""Estimates cycles from how often each instruction ran, by the core's table or its pipeline.

No flash wait states, no caches, no interlocks but those of the table: an estimate, and labelled so
wherever it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyq.build.disassembly import Instruction
from tinyq.emulate.pipeline import pipeline_cycles
from tinyq.emulate.trace import Counts
from tinyq.target.types import CycleTable, Pipeline

_CONDITIONS = "eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|hs|lo"
_CONDITIONAL = re.compile(rf"^b(?:{_CONDITIONS})$|^cbn?z$")
_MULTIPLE = re.compile(r"^(ldm|stm|push|pop)")
_LONG = re.compile(r"^[us]m(ull|lal|aal)")
_SIMD = re.compile(
    r"^(sml[as][bdltw]|smu[las]|smm|smla|[us]xt[ab]|[us]xtab|pkh|ssat|usat|[su]add|[su]sub|uqadd|qadd)"
)


@dataclass(frozen=True)
class Cost:
    """Executed instructions and estimated cycles."""

    instructions: int = 0
    cycles: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.instructions + other.instructions, self.cycles + other.cycles)


def cost_by_function(
    functions: Mapping[str, Sequence[Instruction]],
    counts: Counts,
    timing: CycleTable,
    pipeline: Pipeline | None = None,
) -> dict[str, Cost]:
    """What every function that ran cost; ``functions`` are disassembled, by symbol.

    By the ``pipeline`` where there is one, else by the table.
    """
    found = {}
    for name, body in functions.items():
        executed = [counts.get(instruction.address, 0) for instruction in body]
        if any(executed):
            cycles = (
                pipeline_cycles(body, executed, pipeline)
                if pipeline
                else _cycles_of(body, executed, timing)
            )
            found[name] = Cost(sum(executed), cycles)
    return found


def _cycles_of(body: Sequence[Instruction], counts: Sequence[int], timing: CycleTable) -> float:
    total, after_load = 0.0, False
    for instruction, count, following in zip(body, counts, [*counts[1:], 0], strict=True):
        name = instruction.mnemonic.removesuffix(".w").removesuffix(".n")
        total += _cycles(name, instruction.operands, count, following, after_load, timing)
        after_load = name.startswith("ldr") and count > 0
    return total


def _cycles(
    name: str, operands: str, n: int, following: int, after_load: bool, t: CycleTable
) -> float:
    if _CONDITIONAL.match(name):
        stays = min(n, following)
        return (n - stays) * t.branch_taken + stays * t.branch_not_taken
    if name in ("bl", "blx"):
        return n * t.call
    if name in ("b", "bx", "tbb", "tbh"):
        return n * t.branch_taken
    if _MULTIPLE.match(name):
        cycles = t.load_multiple_base + _registers(operands) * t.load_multiple_each
        return n * (cycles + (t.branch_taken - 1 if "pc" in operands else 0))
    if name.startswith(("ldrd", "strd")):
        return n * (t.load_multiple_base + 2 * t.load_multiple_each)
    if name.startswith("ldr"):
        return n * (t.load_next if after_load else t.load)
    if name.startswith("str"):
        return n * t.store
    return n * _arithmetic(name, t)


def _arithmetic(name: str, t: CycleTable) -> float:
    if name.startswith("v"):
        return t.vector or t.alu
    if name.startswith(("sdiv", "udiv")):
        return t.divide
    if _LONG.match(name):
        return t.multiply_long
    if name.startswith(("mla", "mls")):
        return t.multiply_accumulate
    if name.startswith("mul"):
        return t.multiply
    if _SIMD.match(name):
        return t.simd or t.alu
    return t.alu


def _registers(operands: str) -> int:
    listed = operands[operands.find("{") + 1 : operands.find("}")].split(",")
    count = 0
    for part in listed:
        low, _, high = part.strip().partition("-")
        count += int(high[1:]) - int(low[1:]) + 1 if high else 1
    return count
