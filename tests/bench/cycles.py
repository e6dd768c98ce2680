"""Estimates cycles from how often each instruction ran and the core's timing table.

A plugin of QEMU (count.c, compiled here) counts every address; the disassembly says what each one
is. No flash wait states, no caches, no interlocks but those of the table: an estimate.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyq.build import build_firmware, load_network
from tinyq.emulate.qemu import QemuRunner
from tinyq.target import load_board, load_core
from tinyq.target.types import CycleTable

_SYMBOL = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_LIBRARY = ("memcpy", "memset", "memmove", "__aeabi_memcpy", "__aeabi_lmul", "__aeabi_llsl")
_CONDITIONS = "eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|hs|lo"
_CONDITIONAL = re.compile(rf"^b(?:{_CONDITIONS})$|^cbn?z$")
_MULTIPLE = re.compile(r"^(ldm|stm|push|pop)")
_LONG = re.compile(r"^[us]m(ull|lal|aal)")
_SIMD = re.compile(
    r"^(sml[as][bdltw]|smu[las]|smm|smla|[us]xt[ab]|[us]xtab|pkh|ssat|usat|[su]add|[su]sub|uqadd|qadd)"
)


@dataclass(frozen=True)
class Instruction:
    """One instruction of the ELF and how often it ran."""

    symbol: str
    name: str
    operands: str
    count: int


@dataclass(frozen=True)
class CycleEstimate:
    """Of one inference; ``instructions`` are those that the estimate is about."""

    cycles: int
    instructions: int


def estimate(folder: Path, samples: list[NDArray[np.generic]], work: Path) -> CycleEstimate:
    """Cycles of one inference of the compiled network in ``folder``; one sample is run."""
    network = load_network(folder)
    core = load_core(network.target)
    artifact = build_firmware(network, core, load_board(core.board), work / "build")
    counts = _run_counted(artifact, samples, work)
    mine = tuple(
        found
        for found in _disassembled(artifact.executable, counts)
        if found.symbol.startswith((f"{network.name}_", "tinyq_"))
        or found.symbol.split(".")[0] in _LIBRARY
    )
    return CycleEstimate(round(cycles_of(mine, core.timing)), sum(i.count for i in mine))


def _run_counted(
    artifact: object, samples: list[NDArray[np.generic]], work: Path
) -> dict[int, int]:
    plugin, counts, wrapper = work / "count.so", work / "counts.txt", work / "qemu.sh"
    source = Path(__file__).with_name("count.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", plugin, source], check=True)
    wrapper.write_text(f'#!/bin/sh\nexec qemu-system-arm -plugin {plugin},out={counts} "$@"\n')
    wrapper.chmod(0o755)
    before = os.environ.get("TINYQ_QEMU")
    os.environ["TINYQ_QEMU"] = str(wrapper)
    try:
        QemuRunner().run(artifact, samples)
    finally:
        os.environ.pop("TINYQ_QEMU")
        if before is not None:
            os.environ["TINYQ_QEMU"] = before
    pairs = (line.split() for line in counts.read_text().splitlines())
    return {int(address, 16): int(count, 16) for address, count in pairs}


def _disassembled(elf: Path, counts: dict[int, int]) -> list[Instruction]:
    command = ["arm-none-eabi-objdump", "-d", "--no-show-raw-insn", str(elf)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, symbol = [], ""
    for line in text.splitlines():
        if named := _SYMBOL.match(line):
            symbol = named[1]
            continue
        parts = line.split("\t")
        if len(parts) < 2 or not parts[0].strip().endswith(":"):
            continue
        address = int(parts[0].strip()[:-1], 16)
        name = parts[1].strip().removesuffix(".w").removesuffix(".n")
        operands = parts[2] if len(parts) > 2 else ""
        found.append(Instruction(symbol, name, operands, counts.get(address, 0)))
    return found


def cycles_of(instructions: tuple[Instruction, ...], timing: CycleTable) -> float:
    """Sum over instructions in the order of their addresses."""
    total, after_load = 0.0, False
    for k, found in enumerate(instructions):
        following = instructions[k + 1].count if k + 1 < len(instructions) else 0
        total += _cycles(found, following, after_load, timing)
        after_load = found.name.startswith("ldr") and found.count > 0
    return total


def _cycles(found: Instruction, following: int, after_load: bool, t: CycleTable) -> float:
    name, n = found.name, found.count
    if _CONDITIONAL.match(name):
        stays = min(n, following)
        return (n - stays) * t.branch_taken + stays * t.branch_not_taken
    if name in ("bl", "blx"):
        return n * t.call
    if name in ("b", "bx", "tbb", "tbh"):
        return n * t.branch_taken
    if _MULTIPLE.match(name):
        cycles = t.load_multiple_base + _registers(found.operands) * t.load_multiple_each
        return n * (cycles + (t.branch_taken - 1 if "pc" in found.operands else 0))
    if name.startswith("ldrd"):
        return n * (t.load_multiple_base + 2 * t.load_multiple_each)
    if name.startswith("strd"):
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
