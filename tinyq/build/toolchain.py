"""Finds C compilers and compiles with them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tinyq.build.process import Completed, run
from tinyq.errors import error

WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wmissing-prototypes",
)
_COMPILE_SECONDS = 600.0
_NO_ROOM = ("will not fit in region", "overflowed by")
_DISK_FULL = "No space left on device"
_NO_CACHE = ("unable to resolve zig cache directory", "unable to open global cache directory")


@dataclass(frozen=True)
class Toolchain:
    """A C compiler and the binary utilities that belong to it.

    ``family`` is ``"gcc"`` or ``"clang"``; ``prefix`` precedes the utilities' names
    (``arm-none-eabi-``). ``arguments`` come first in every call of the compiler.
    """

    compiler: str
    family: str
    version: str
    prefix: str = ""
    arguments: tuple[str, ...] = ()

    def tool(self, name: str) -> str:
        """Path of a binary utility (``objdump``); raises TQ401 when it is missing."""
        beside = Path(self.compiler).with_name(f"{self.prefix}{name}")
        found = str(beside) if beside.is_file() else shutil.which(f"{self.prefix}{name}")
        if not found:
            raise error("TQ401", f"'{self.prefix}{name}' is not on the PATH")
        return found

    def compile(self, source: Path, output: Path, flags: Iterable[str]) -> None:
        """Compile one C file to an object file; raises TQ402 with the compiler's message.

        Raises TQ703 when the disk is full.
        """
        command = [self.compiler, *self.arguments, "-c", str(source), "-o", str(output), *flags]
        done = run(command, output.parent, _COMPILE_SECONDS)
        if done.status != 0:
            _require_disk(done, output)
            raise error("TQ402", f"{source.name} does not compile:\n{done.tail(20)}")

    def link(self, objects: Sequence[Path], output: Path, flags: Iterable[str]) -> None:
        """Link object files; raises TQ405 when they do not fit and TQ402 for any other failure.

        Raises TQ703 when the disk is full.
        """
        command = [self.compiler, *self.arguments, *map(str, objects), "-o", str(output), *flags]
        done = run(command, output.parent, _COMPILE_SECONDS)
        if done.status == 0:
            return
        _require_disk(done, output)
        if any(sign in done.output for sign in _NO_ROOM):
            lines = [line for line in done.output.splitlines() if any(s in line for s in _NO_ROOM)]
            raise error("TQ405", f"{output.name} does not fit: " + "; ".join(dict.fromkeys(lines)))
        raise error("TQ402", f"{output.name} does not link:\n{done.tail(20)}")


def make(toolchain: Toolchain, folder: Path, variables: Sequence[str]) -> None:
    """Run make in an exported package; raises TQ401 without make and TQ402 when it fails."""
    program = shutil.which("make")
    if program is None:
        raise error("TQ401", "'make' is not on the PATH", "Install it: apt install make.")
    prefix = toolchain.compiler.removesuffix("gcc")
    done = run([program, "-s", f"PREFIX={prefix}", *variables], folder, _COMPILE_SECONDS)
    if done.status != 0:
        _require_disk(done, folder)
        raise error("TQ402", f"make fails in {folder}:\n{done.tail(20)}")


def _require_disk(done: Completed, output: Path) -> None:
    if _DISK_FULL in done.output:
        raise error("TQ703", _DISK_FULL, file=str(output.parent))
    if any(sign in done.output for sign in _NO_CACHE):
        raise error(
            "TQ703",
            "zig finds no folder for its cache",
            "Set ZIG_GLOBAL_CACHE_DIR to a folder that can be written.",
        )


@cache
def probe(name: str, prefix: str = "") -> Toolchain | None:
    """The compiler called ``name``, or None where there is none on the PATH that runs."""
    path = shutil.which(name)
    if path is None:
        return None
    done = run([path, "--version"], Path.cwd(), 30.0)
    if done.status != 0:
        return None
    head = done.output.splitlines()[0] if done.output else ""
    family = "clang" if "clang" in head else "gcc"
    return Toolchain(str(Path(path).absolute()), family, head, prefix)


def host_toolchain(compiler: str = "") -> Toolchain:
    """A compiler for this machine: ``compiler``, ``TINYQ_CC``, else cc, gcc or clang.

    Raises TQ401 when there is none, or the one asked for does not run.
    """
    asked = compiler or os.environ.get("TINYQ_CC") or ""
    for name in (asked,) if asked else ("gcc", "cc", "clang"):
        found = probe(name)
        if found is not None:
            return found
    raise error(
        "TQ401",
        f"'{asked}' is not on the PATH or does not run" if asked else "no C compiler was found",
        "Install one (apt install gcc), or name one in TINYQ_CC.",
    )
