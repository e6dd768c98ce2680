"""Reads ``targets/*.toml`` into cores, microcontrollers and boards."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tinyq.errors import TinyqError, error
from tinyq.resources import data_dir
from tinyq.target.types import (
    ISAS,
    Board,
    Console,
    Core,
    CycleTable,
    Flasher,
    Mcu,
    Memory,
    Peripheral,
    Pipeline,
    PipelineKind,
    QemuMachine,
    RegisterStep,
    Uf2,
)

_T = TypeVar("_T")
_BOOTS = ("rp2040", "rp2350")
_FPUS = ("none", "single", "double")


class _Table:
    """A TOML table that knows its file, so that every complaint can name both."""

    def __init__(self, file: Path, values: dict[str, Any], where: str = "") -> None:
        self.file, self.values, self.where = file, values, where
        self.seen: set[str] = set()

    def bad(self, found: str) -> TinyqError:
        prefix = f"[{self.where}] " if self.where else ""
        return error("TQ302", prefix + found, file=self.file.name)

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        self.seen.add(key)
        if key not in self.values:
            if default is None:
                raise self.bad(f"field '{key}' is missing")
            return default
        value = self.values[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.bad(f"field '{key}' is {value!r}, not of type {kind.__name__}")
        return value

    def choice(self, key: str, accepted: tuple[str, ...]) -> str:
        value = self.get(key, str)
        if value not in accepted:
            raise self.bad(f"field '{key}' is '{value}', not one of {', '.join(accepted)}")
        return value

    def at_least(self, key: str, least: int, default: int | None = None) -> int:
        value = self.get(key, int, default)
        if value < least:
            raise self.bad(f"field '{key}' is {value}, below {least}")
        return value

    def strings(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        value = self.get(key, list, default)
        if not all(isinstance(item, str) for item in value):
            raise self.bad(f"field '{key}' is not a list of strings")
        return tuple(value)

    def table(self, key: str) -> _Table:
        where = f"{self.where}.{key}" if self.where else key
        return _Table(self.file, self.get(key, dict), where)

    def has(self, key: str) -> bool:
        return key in self.values

    def done(self) -> None:
        unknown = sorted(set(self.values) - self.seen)
        if unknown:
            raise self.bad(f"unknown field '{unknown[0]}'")


def read_core(file: Path, isa: str = "", mul_cycles: int = 0) -> Core:
    """Read a core's file; ``isa`` and ``mul_cycles`` override its defaults.

    Raises :class:`TinyqError` TQ302 for a bad file and TQ301 for an override it does not offer.
    """
    top = _read(file)
    features, multiplier = top.table("features"), top.table("multiplier")
    isas = top.table("isa")
    names = tuple(name for name in ISAS if isas.has(name))
    default_isa = top.choice("default_isa", names)
    chosen = isa or default_isa
    if chosen not in names:
        raise error(
            "TQ301",
            f"'{file.stem}' has no instruction set '{chosen}'",
            f"It has: {', '.join(names)}.",
        )
    options = multiplier.get("options", list)
    default_cycles = multiplier.at_least("cycles", 1)
    if (mul_cycles or default_cycles) not in options:
        raise error(
            "TQ301",
            f"'{file.stem}' has no multiplier of {mul_cycles} cycles",
            f"It has: {', '.join(map(str, options))}.",
        )
    flags = isas.table(chosen)
    core = Core(
        name=top.get("name", str),
        title=top.get("title", str),
        architecture=top.get("architecture", str),
        isa=chosen,
        isas=names,
        flags=flags.strings("flags"),
        float_flags=flags.strings("float_flags", []),
        zig=flags.get("zig", str),
        long_multiply=features.get("long_multiply", bool),
        hw_divide=features.get("hw_divide", bool),
        unaligned=features.get("unaligned", bool),
        fpu=features.choice("fpu", _FPUS),
        mul_cycles=mul_cycles or default_cycles,
        timing=_with_multiplier(_cycle_table(top.table("timing")), mul_cycles),
        board=top.get("board", str),
        source=top.get("source", str),
        default_isa=default_isa,
        default_mul_cycles=default_cycles,
        pipeline=_pipeline(top.table("pipeline")) if top.has("pipeline") else None,
    )
    top.strings("aliases", [])
    for table in (top, features, multiplier, flags):
        table.done()
    return core


def read_mcu(file: Path) -> Mcu:
    """Read a microcontroller's file; raises TQ302 for a bad one."""
    top = _read(file)
    memories = []
    for number, values in enumerate(top.get("memory", list)):
        entry = _Table(file, values, f"memory {number}")
        memories.append(
            Memory(
                name=entry.get("name", str),
                kind=entry.choice("kind", ("flash", "ram")),
                base=entry.at_least("base", 0),
                size=entry.at_least("size", 1),
                source=entry.get("source", str),
            )
        )
        entry.done()
    for kind in ("flash", "ram"):
        if all(memory.kind != kind for memory in memories):
            raise top.bad(f"no memory of kind '{kind}'")
    _check_apart(top, memories)
    mcu = Mcu(
        name=top.get("name", str),
        title=top.get("title", str),
        core=top.get("core", str),
        clock_hz=top.at_least("clock_hz", 1),
        memories=tuple(memories),
        source=top.get("source", str),
        counter=_peripheral(top.table("counter")) if top.has("counter") else None,
    )
    top.done()
    return mcu


def read_board(file: Path, find_mcu: Callable[[str], Mcu]) -> Board:
    """Read a board's file, its microcontroller through ``find_mcu``; raises TQ302 for a bad one."""
    top = _read(file)
    mcu = find_mcu(top.get("mcu", str))
    board = Board(
        name=top.get("name", str),
        title=top.get("title", str),
        mcu=mcu,
        source=top.get("source", str),
        clock_hz=top.at_least("clock_hz", 1, mcu.clock_hz),
        console=_console(top.table("console")) if top.has("console") else None,
        qemu=_qemu(top.table("qemu")) if top.has("qemu") else None,
        flasher=_flasher(top.table("flasher")) if top.has("flasher") else None,
        flash_offset=top.at_least("flash_offset", 0, 0),
        start=top.get("start", str, ""),
        uf2=_uf2(top.table("uf2")) if top.has("uf2") else None,
        boot=top.choice("boot", _BOOTS) if top.has("boot") else "",
    )
    if board.flash_offset >= mcu.memory("flash").size:
        raise top.bad(f"field 'flash_offset' is {board.flash_offset}, beyond the flash")
    top.done()
    return board


def load_core(target: str) -> Core:
    """Core of a target string: ``cortex-m4``, ``cortex-m4+scalar``, ``cortex-m0+mul32``.

    Raises :class:`TinyqError` TQ301 when the name or an override after a ``+`` is unknown.
    """
    text = target.strip().lower()
    names = _core_files()
    # "cortex-m0+" is a name that ends in the separator: the longest name that fits wins.
    fitting = [name for name in names if text == name or text.startswith(f"{name}+")]
    if not fitting:
        raise _unknown("target", target, list(names))
    name = max(fitting, key=len)
    isa, mul_cycles = "", 0
    for part in text[len(name) :].split("+")[1:]:
        if part in ISAS:
            isa = part
        elif part.startswith("mul") and part[3:].isdigit():
            mul_cycles = int(part[3:])
        else:
            raise error(
                "TQ301",
                f"'{part}' in target '{target}' is not known",
                f"After the core may follow {', '.join('+' + i for i in ISAS)} or +mul32.",
            )
    return read_core(names[name], isa, mul_cycles)


def load_mcu(name: str) -> Mcu:
    """Microcontroller called ``name``; raises TQ301 when there is none."""
    return read_mcu(_find("microcontroller", "mcus", name))


def load_board(name: str) -> Board:
    """Board called ``name``; raises TQ301 when there is none."""
    return read_board(_find("board", "boards", name), load_mcu)


def core_names() -> tuple[str, ...]:
    """Names of all cores, without aliases, smallest core first."""
    return tuple(sorted(_files("cores"), key=lambda name: (int(_digits(name)), name)))


def mcu_names() -> tuple[str, ...]:
    """Names of all microcontrollers, sorted."""
    return tuple(sorted(_files("mcus")))


def board_names() -> tuple[str, ...]:
    """Names of all boards, sorted."""
    return tuple(sorted(_files("boards")))


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name)) or "0"


def _files(folder: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted((data_dir("targets") / folder).glob("*.toml"))}


@cache
def _core_files() -> dict[str, Path]:
    """File of every core, by its name and by each alias."""
    files: dict[str, Path] = {}
    for name, path in _files("cores").items():
        for alias in (name, *_read(path).strings("aliases", [])):
            files[alias] = path
    return files


def _find(what: str, folder: str, name: str) -> Path:
    files = _files(folder)
    if name not in files:
        raise _unknown(what, name, list(files))
    return files[name]


def _unknown(what: str, name: str, known: list[str]) -> TinyqError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return error("TQ301", f"unknown {what} '{name}'", f"{hint}`tinyq targets` lists them.")


def _read(file: Path) -> _Table:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise error("TQ302", f"cannot be read: {problem}", file=file.name) from problem
    top = _Table(file, values)
    if top.get("name", str) != file.stem:
        raise top.bad(f"field 'name' is not the file's name '{file.stem}'")
    return top


def _with_multiplier(timing: CycleTable, mul_cycles: int) -> CycleTable:
    return replace(timing, multiply=float(mul_cycles)) if mul_cycles else timing


def _cycle_table(table: _Table) -> CycleTable:
    costs = {
        field.name: table.get(field.name, float, 0.0 if field.name == "vector" else None)
        for field in fields(CycleTable)
        if field.name not in ("source", "estimate", "boards")
    }
    if min(costs.values()) < 0:
        raise table.bad("a cycle count is negative")
    cycles = CycleTable(
        source=table.get("source", str),
        estimate=table.get("estimate", bool),
        boards=table.get("boards", str, ""),
        **costs,
    )
    table.done()
    return cycles


def _pipeline(table: _Table) -> Pipeline:
    units = table.table("units")
    numbers = tuple((name, units.at_least(name, 1)) for name in units.values)
    kinds = table.table("kinds")
    made = Pipeline(
        source=table.get("source", str),
        width=table.at_least("width", 1),
        words=table.at_least("words", 1),
        multiple=table.at_least("multiple", 0, 0),
        taken=table.at_least("taken", 0, 0),
        mispredicted=table.at_least("mispredicted", 0, 0),
        units=numbers,
        kinds={name: _pipeline_kind(kinds.table(name), numbers) for name in kinds.values},
    )
    if "alu" not in made.kinds:
        raise kinds.bad("field 'alu' is missing")
    table.done()
    return made


def _pipeline_kind(table: _Table, units: tuple[tuple[str, int], ...]) -> PipelineKind:
    kind = PipelineKind(
        units=table.strings("units", []),
        latency=table.at_least("latency", 0, 1),
        occupies=table.at_least("occupies", 1, 1),
        early=table.at_least("early", 0, 0),
        late=table.at_least("late", 0, 0),
        alone=table.get("alone", bool, False),
        first=table.get("first", bool, False),
        busy=table.at_least("busy", 1, 1),
    )
    unknown = sorted(set(kind.units) - {name for name, _ in units})
    if unknown:
        raise table.bad(f"there is no unit '{unknown[0]}'")
    table.done()
    return kind


def _check_apart(top: _Table, memories: list[Memory]) -> None:
    ordered = sorted(memories, key=lambda memory: memory.base)
    for low, high in itertools.pairwise(ordered):
        if low.end > high.base:
            raise top.bad(f"memories '{low.name}' and '{high.name}' overlap")


def _peripheral(table: _Table) -> Peripheral:
    options: list[tuple[str, int | str]] = []
    if table.has("options"):
        for key, value in sorted(table.get("options", dict).items()):
            if type(value) not in (int, str):
                raise table.bad(f"option '{key}' is neither a number nor a string")
            options.append((key, value))
    device = Peripheral(
        driver=table.get("driver", str),
        base=table.at_least("base", 0),
        source=table.get("source", str),
        clock_hz=table.at_least("clock_hz", 0, 0),
        options=tuple(options),
    )
    table.done()
    return device


def _console(table: _Table) -> Console:
    console = Console(
        driver=table.get("driver", str),
        base=table.at_least("base", 0),
        source=table.get("source", str),
        clock_hz=table.at_least("clock_hz", 0, 0),
        core_hz=table.at_least("core_hz", 0, 0),
        tx=table.get("tx", str, ""),
        rx=table.get("rx", str, ""),
        setup=tuple(_step(table, number) for number in range(len(table.get("setup", list, [])))),
        verified=table.get("verified", str, ""),
    )
    if console.setup and not (console.verified and console.clock_hz):
        raise table.bad("a 'setup' needs 'verified' and 'clock_hz'")
    table.done()
    return console


def _step(table: _Table, number: int) -> RegisterStep:
    where = f"{table.where}.setup {number}"
    step = _Table(table.file, table.get("setup", list)[number], where)
    made = RegisterStep(
        what=step.get("what", str),
        address=step.at_least("address", 0),
        bits=step.at_least("bits", 8, 32),
        clear=step.at_least("clear", 0, 0),
        set=step.at_least("write" if step.has("write") else "set", 0, 0),
        wait=step.at_least("wait", 0, 0),
        gone=step.at_least("gone", 0, 0),
        write=step.has("write"),
    )
    step.done()
    if made.bits not in (8, 16, 32) or made.address % (made.bits // 8):
        raise step.bad(f"no register of {made.bits} bits is at {made.address:#x}")
    if max(made.clear, made.set, made.wait, made.gone) >> made.bits:
        raise step.bad(f"a value is wider than {made.bits} bits")
    changed = bool(made.clear or (made.set and not made.write))
    if bool(made.wait) + bool(made.gone) + made.write + changed != 1:
        raise step.bad("it takes either 'wait', or 'gone', or 'write', or 'clear' and 'set'")
    return made


def _qemu(table: _Table) -> QemuMachine:
    machine = QemuMachine(
        machine=table.get("machine", str),
        args=table.strings("args", []),
        timer=_peripheral(table.table("timer")) if table.has("timer") else None,
    )
    table.done()
    return machine


def _uf2(table: _Table) -> Uf2:
    made = Uf2(family=table.at_least("family", 1), source=table.get("source", str))
    table.done()
    return made


def _flasher(table: _Table) -> Flasher:
    flasher = Flasher(
        probe=table.get("probe", str),
        command=table.strings("command"),
        source=table.get("source", str),
        pyocd=table.get("pyocd", str, ""),
    )
    if not flasher.command:
        raise table.bad("field 'command' is empty")
    table.done()
    return flasher
