"""Reads ELF files: section sizes, symbols, and floating-point code that must not be there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyq.build.disassembly import Instruction
from tinyq.errors import error

# Run-time ABI for the Arm Architecture (IHI 0043), tables 2 to 8: helpers on float and double, and
# libgcc's names for the same.
_SOFT_FLOAT = re.compile(
    r"__aeabi_(?:[cfd]?[fd](?:add|sub|rsub|mul|div|neg|cmp\w*|rcmp\w*)|[fd]2\w+|u?[il]2[fd]|ul2[fd]"
    r"|[hf]2[hf]\w*|cdcmp\w*|cdrcmple|cfcmp\w*|cfrcmple)"
    r"|__gnu_[dhf]2[dhf]\w*"
    r"|__(?:add|sub|mul|div|neg|eq|ne|lt|le|gt|ge|cmp|unord|fix|fixuns|float|floatun|floatuns"
    r"|extend|trunc)\w*[sdt]f\w*"
)
_FLOAT_SUFFIX = re.compile(r"\.(?:f16|f32|f64|bf16)\b")


@dataclass(frozen=True)
class Symbol:
    """A named function or object: address and size in bytes, and the section it lies in."""

    name: str
    kind: str
    address: int
    size: int
    section: str


@dataclass(frozen=True)
class ElfInfo:
    """Sizes in bytes of an ELF's loaded contents, and its symbols sorted by address."""

    code_bytes: int
    constant_bytes: int
    data_bytes: int
    bss_bytes: int
    symbols: tuple[Symbol, ...]


def read_elf(path: Path) -> ElfInfo:
    """Read sizes and symbols.

    Constants are read-only data; data is what is copied to RAM (it takes flash too); a section for
    the stack does not count.
    """
    from elftools.elf.elffile import ELFFile

    code = constants = data = bss = 0
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        for section in elf.iter_sections():
            flags, size = section["sh_flags"], section["sh_size"]
            if not flags & 2 or section.name == ".stack":  # SHF_ALLOC
                continue
            if section["sh_type"] == "SHT_NOBITS":
                bss += size
            elif flags & 4:  # SHF_EXECINSTR
                code += size
            elif flags & 1:  # SHF_WRITE
                data += size
            else:
                constants += size
        table = elf.get_section_by_name(".symtab")
        symbols = [] if table is None else list(_symbols(elf, table))
    return ElfInfo(code, constants, data, bss, tuple(sorted(symbols, key=_symbol_order)))


def _symbol_order(symbol: Symbol) -> tuple[int, str]:
    return symbol.address, symbol.name


def _symbols(elf: Any, table: Any) -> Iterator[Symbol]:
    for symbol in table.iter_symbols():
        index = symbol["st_shndx"]
        if not symbol.name or not isinstance(index, int):
            continue
        yield Symbol(
            name=symbol.name,
            kind=symbol["st_info"]["type"].removeprefix("STT_").lower(),
            address=symbol["st_value"],
            size=symbol["st_size"],
            section=elf.get_section(index).name,
        )


def read_stack_sizes(path: Path) -> dict[int, int]:
    """Frames in bytes by address of the function, of the section .stack_sizes that clang writes.

    The section holds an address and a ULEB128 number for each function.
    """
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".stack_sizes")
        data = b"" if section is None else section.data()
    sizes: dict[int, int] = {}
    at = 0
    while at < len(data):
        address = int.from_bytes(data[at : at + 4], "little") & ~1
        at, size, shift = at + 4, 0, 0
        while True:
            size |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        sizes[address] = size
    return sizes


def float_code(
    info: ElfInfo, functions: dict[str, list[Instruction]], *, mve: bool
) -> tuple[str, ...]:
    """Soft-float helpers and floating-point instructions, described one a line.

    With ``mve`` the vector registers are legal, and only instructions on float data count.
    """
    found = [f"routine {s.name}" for s in info.symbols if _SOFT_FLOAT.fullmatch(s.name)]
    for name, body in functions.items():
        for instruction in body:
            mnemonic = instruction.mnemonic
            if mnemonic.startswith("v") and (not mve or _FLOAT_SUFFIX.search(mnemonic)):
                found.append(f"instruction {mnemonic} in {name}")
                break
    return tuple(dict.fromkeys(found))


def require_integer_only(
    path: Path, info: ElfInfo, functions: dict[str, list[Instruction]], *, mve: bool
) -> None:
    """Raise TQ406 when the ELF holds floating-point code."""
    found = float_code(info, functions, mve=mve)
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise error("TQ406", f"{path.name} has {', '.join(found[:5])}{more}")
