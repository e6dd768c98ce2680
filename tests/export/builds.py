"""Builds exported packages with the compilers that are here."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wmissing-prototypes", "-Werror"]
STUBS = Path(__file__).with_name("stubs")


def outer_make_forgotten() -> dict[str, str]:
    """The environment without what `make test` leaves in it for a make of its own."""
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    return {name: value for name, value in os.environ.items() if name not in inherited}


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=120, env=outer_make_forgotten(),
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def host_program(folder: Path, sources: Sequence[Path], *flags: str, status: int = 0) -> str:
    """Compile C files for this machine, run the program, and return what it prints."""
    program = folder / "program"
    run("gcc", "-std=c99", "-O1", *STRICT, *flags, *sources, "-o", program, cwd=folder)
    return run(program, cwd=folder, status=status)


def listed_by_cmake(script: Path, stubs: str) -> list[Path]:
    """Files that ``script`` hands to its build system, whose commands ``stubs`` replaces."""
    driver = script.parent / "driver.cmake"
    driver.write_text(
        stubs + f'\nset(CMAKE_CURRENT_SOURCE_DIR "{script.parent}")\ninclude("{script}")\n'
    )
    done = subprocess.run(
        ["cmake", "-P", str(driver)], cwd=script.parent, capture_output=True, text=True, check=True
    )
    driver.unlink()
    return [script.parent / name for name in re.findall(r"^file (.+)$", done.stderr, re.MULTILINE)]


def yaml_keys(text: str) -> dict[str, str]:
    """Values by dotted key of the simple YAML that packages use: nested mappings and lists."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        assert "\t" not in line[:indent]
        if line.strip().startswith("- "):
            key = ".".join(part for _, part in path)
            found[key] = f"{found[key]} {line.strip()[2:]}".strip()
            continue
        name, colon, value = line.strip().partition(":")
        assert colon, line
        while path and path[-1][0] >= indent:
            path.pop()
        path.append((indent, name))
        found[".".join(part for _, part in path)] = value.strip().strip('"')
    return found
