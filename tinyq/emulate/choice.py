"""Which emulator and which compiler run a network, and what is installed of both."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from tinyq.build.arm import INSTALL_EXTRA, TOOLCHAINS, default_toolchain, find_gcc, find_zig
from tinyq.build.toolchain import probe
from tinyq.emulate import renode, renode_platform, unicorn
from tinyq.emulate.qemu import PROGRAM, VARIABLE
from tinyq.emulate.runner import find_program
from tinyq.errors import Diagnostic, TinyqError, error

EMULATORS = ("qemu", "unicorn", "renode", "host")


@dataclass(frozen=True)
class Choice:
    """Emulators to run on, the Arm compiler ('' for the host alone), and what was replaced why."""

    emulators: tuple[str, ...]
    toolchain: str
    notes: tuple[str, ...] = ()


def choose(emulator: str = "", toolchain: str = "", core: str = "") -> Choice:
    """Resolve what the user asked for; '' is QEMU and GCC, else unicorn and zig, where installed.

    ``emulator`` is a name or several with commas, ``core`` the core that is to be emulated. Raises
    TQ303 for an unknown name; TQ401 or TQ403, or both, when nothing fit is installed; TQ409 for a
    core that the emulator has no model of.
    """
    asked = tuple(part.strip() for part in emulator.split(",")) if emulator else ()
    _check(asked, emulator, toolchain)
    if asked == ("host",):
        return Choice(asked, "")
    for name in asked:
        _require(name, core)
    problems: list[Diagnostic] = []
    notes: list[str] = []
    if not asked:
        try:
            asked, note = _default_emulator(core)
            notes.extend(note)
        except TinyqError as problem:
            problems.extend(problem.diagnostics)
    if not toolchain:
        try:
            toolchain = default_toolchain()
        except TinyqError as problem:
            problems.extend(problem.diagnostics)
        if toolchain == "zig":
            notes.append("arm-none-eabi-gcc is not installed: zig compiled the code")
    if problems:
        raise TinyqError(problems)
    return Choice(asked, toolchain, tuple(notes))


def _check(asked: tuple[str, ...], emulator: str, toolchain: str) -> None:
    for name in asked:
        if name not in EMULATORS:
            raise error("TQ303", f"unknown emulator '{name}'", f"Accepted: {', '.join(EMULATORS)}.")
    if len(set(asked)) != len(asked):
        raise error("TQ303", f"--emulator {emulator}", "Name each emulator once.")
    if toolchain and toolchain not in TOOLCHAINS:
        raise error("TQ303", f"--toolchain {toolchain}", f"Accepted: {', '.join(TOOLCHAINS)}.")
    if toolchain and asked == ("host",):
        raise error(
            "TQ303",
            f"--toolchain {toolchain} with --emulator host",
            "TINYQ_CC names the host's compiler.",
        )


def _require(emulator: str, core: str) -> None:
    if emulator == "qemu":
        find_program(VARIABLE, PROGRAM)
    if emulator == "unicorn" and core:
        unicorn.require_model(core)
    if emulator == "renode":
        if core:
            renode_platform.require_model(core)
        renode.require_renode()


def _default_emulator(core: str) -> tuple[tuple[str], tuple[str, ...]]:
    """QEMU, or unicorn and why."""
    if os.environ.get(VARIABLE) or shutil.which(PROGRAM):
        _require("qemu", core)
        return ("qemu",), ()
    if not unicorn.installed():
        raise error("TQ403", f"neither {PROGRAM} nor the package unicorn is installed")
    _require("unicorn", core)
    return ("unicorn",), (f"{PROGRAM} is not installed: unicorn ran the code",)


@dataclass(frozen=True)
class Tool:
    """An emulator or compiler: what it is for, and where or which version, '' when absent."""

    name: str
    kind: str
    found: str
    install: str


def tools() -> tuple[Tool, ...]:
    """Every emulator and compiler that tinyq can use, installed or not."""
    qemu = shutil.which(os.environ.get(VARIABLE) or PROGRAM) or ""
    renode_at = shutil.which(os.environ.get(renode.VARIABLE) or renode.PROGRAM) or ""
    gcc, zig, clang = find_gcc(), find_zig(), probe("clang")
    return (
        Tool("qemu", "emulator", qemu, "apt install qemu-system-arm"),
        Tool("unicorn", "emulator", unicorn.version(), INSTALL_EXTRA),
        Tool("renode", "emulator", renode_at, renode.INSTALL),
        Tool("gcc", "compiler", gcc.version if gcc else "", "apt install gcc-arm-none-eabi"),
        Tool("clang", "compiler", clang.version if clang and gcc else "", "apt install clang"),
        Tool("zig", "compiler", zig.version if zig else "", INSTALL_EXTRA),
    )
