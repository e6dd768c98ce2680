"""Disassembles ELF files, with objdump or with the package capstone, into the same form."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyq.build.process import run
from tinyq.errors import error

_LINE = re.compile(r"^\s*([0-9a-f]+):\t([0-9a-f ]+)\t(\S+)(?:\t(.*))?$")
_FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_HEX = re.compile(r"#(-?)0x([0-9a-f]+)")
_BRANCH = re.compile(r"#0x([0-9a-f]+)$")

_CONDITIONS = ("eq", "ne", "cs", "cc", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le")
BRANCHES = frozenset(("b", "cbz", "cbnz", *(f"b{condition}" for condition in _CONDITIONS)))
"""Mnemonics of branches to an address that are no calls."""


@dataclass(frozen=True)
class Instruction:
    """One disassembled instruction; a branch's operand names its target as ``<symbol+0x10>``."""

    address: int
    mnemonic: str
    operands: str


Functions = dict[str, list[Instruction]]
"""Instructions by name of the function's symbol."""


def disassemble(path: Path, objdump: str, architecture: str = "") -> Functions:
    """Instructions of every function in the ELF's code sections, by the program ``objdump``.

    ``architecture`` is what it is told to read: it does not find Helium by the ELF's attributes.
    """
    options = ["-m", architecture] if architecture else []
    done = run([objdump, "-d", "-w", *options, str(path)], path.parent, 120.0)
    if done.status != 0:
        raise error("TQ402", f"{path.name} cannot be disassembled:\n{done.tail()}")
    functions: Functions = {}
    body: list[Instruction] = []
    for line in done.output.splitlines():
        if start := _FUNCTION.match(line):
            body = functions.setdefault(start[1], [])
        elif (found := _LINE.match(line)) and not found[3].startswith("."):
            body.append(Instruction(int(found[1], 16), found[3], found[4] or ""))
    return functions


def disassemble_with_capstone(path: Path, *, v8: bool) -> Functions:
    """As :func:`disassemble`, by the package capstone; ``v8`` for Armv8-M.

    The ELF needs its mapping symbols ($t, $d), which tell code from literals. Raises TQ402 for an
    instruction that capstone does not know: Helium and Armv8.1-M are such.
    """
    import capstone
    from elftools.elf.elffile import ELFFile

    mode = capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | (capstone.CS_MODE_V8 if v8 else 0)
    engine = capstone.Cs(capstone.CS_ARCH_ARM, mode)
    functions: Functions = {}
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        starts, kinds = _labels(elf)
        names = sorted((address, name) for address, (name, _) in starts.items())
        for section in elf.iter_sections():
            if section["sh_type"] == "SHT_PROGBITS" and section["sh_flags"] & 4:  # SHF_EXECINSTR
                for name, address, code in _pieces(section, starts, kinds):
                    body = _decoded(engine, code, address, path.name)
                    functions.setdefault(name, []).extend(_named(body, names))
    return functions


def _labels(elf: Any) -> tuple[dict[int, tuple[str, int]], dict[int, str]]:
    """Functions (name, end) and kinds of contents (t for code), by the address they start at."""
    starts: dict[int, tuple[str, int]] = {}
    kinds: dict[int, str] = {}
    for symbol in elf.get_section_by_name(".symtab").iter_symbols():
        address = symbol["st_value"] & ~1
        if symbol.name[:2] in ("$t", "$d"):
            kinds[address] = symbol.name[1]
        elif symbol["st_info"]["type"] == "STT_FUNC" and isinstance(symbol["st_shndx"], int):
            starts.setdefault(address, (symbol.name, address + symbol["st_size"]))
    return starts, kinds


def _pieces(
    section: Any, starts: dict[int, tuple[str, int]], kinds: dict[int, str]
) -> Iterator[tuple[str, int, bytes]]:
    """Function, address and bytes of every run of code; what pads between functions is left out."""
    low, data = section["sh_addr"], section.data()
    high = low + len(data)
    marks = {low, high, *starts, *(end for _, end in starts.values()), *kinds}
    name, end, kind = "", 0, "t"
    for start, stop in itertools.pairwise(sorted(mark for mark in marks if low <= mark <= high)):
        (name, end), kind = starts.get(start, (name, end)), kinds.get(start, kind)
        if start < end and kind == "t":
            yield name, start, data[start - low : stop - low]


def _decoded(engine: Any, code: bytes, address: int, file: str) -> list[Instruction]:
    found = list(engine.disasm_lite(code, address))
    read = sum(size for _, size, _, _ in found)
    if read != len(code):
        raise error("TQ402", f"{file} has an unknown instruction at {address + read:#x}")
    return [Instruction(at, mnemonic, operands) for at, _, mnemonic, operands in found]


def _named(body: list[Instruction], names: list[tuple[int, str]]) -> Iterator[Instruction]:
    """Decimal immediates, and symbols for the targets of branches, as objdump writes them."""
    for one in body:
        base = one.mnemonic.split(".")[0]
        target = _BRANCH.search(one.operands)
        if target and (base in BRANCHES or base in ("bl", "blx")):
            symbol = _symbol(int(target[1], 16), names)
            yield Instruction(one.address, one.mnemonic, one.operands[: target.start()] + symbol)
        else:
            decimal = _HEX.sub(lambda found: f"#{found[1]}{int(found[2], 16)}", one.operands)
            yield Instruction(one.address, one.mnemonic, decimal)


def _symbol(address: int, names: list[tuple[int, str]]) -> str:
    start, name = max((entry for entry in names if entry[0] <= address), default=(0, ""))
    offset = f"+{address - start:#x}" if address != start else ""
    return f"{address:x} <{name}{offset}>"
