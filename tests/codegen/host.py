"""Compiles generated code for this machine and calls it through ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinyq.codegen import GenerateOptions, Program, generate
from tinyq.ir import AnyArray
from tinyq.plan import plan
from tinyq.select import Schedule

WARNINGS = (
    "-std=c99",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wmissing-prototypes",
    "-Wshadow",
    "-Werror",
)
# Reports are fatal, and the trapping form needs no run-time library inside a shared object.
UNDEFINED = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")


def write(program: Program, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in program.files.items():
        (folder / path).write_bytes(content)


def build(program: Program, folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    """A shared library of the program."""
    write(program, folder)
    sources = [str(path) for path in sorted(folder.glob("*.c"))]
    library = folder / f"lib{program.name}.so"
    command = [compiler, *WARNINGS, "-O1", "-fPIC", "-shared", *flags, *sources]
    done = subprocess.run(
        [*command, "-o", str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return library


class Instance:
    """A loaded network with an arena of its own."""

    def __init__(self, library: Path, program: Program) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.name = program.name
        self.manifest = program.manifest
        size = program.manifest["arena_bytes"]
        # Guard bytes after the arena show writes beyond it.
        self.memory = np.full(size + 64, 0x5A, np.uint8)
        skip = -self.memory.ctypes.data % 16
        self.arena = self.memory[skip : skip + size]
        self.guard = self.memory[skip + size :]
        self.context = (ctypes.c_void_p * 1)()
        for call in ("input", "output"):
            getattr(self.lib, f"{self.name}_{call}").restype = ctypes.c_void_p
        assert self.call("init", self.arena.ctypes.data_as(ctypes.c_void_p), size) == 0

    def call(self, function: str, *arguments: object) -> int:
        found = getattr(self.lib, f"{self.name}_{function}")
        converted = [ctypes.c_size_t(a) if isinstance(a, int) else a for a in arguments]
        return int(found(self.context, *converted))

    def _view(self, kind: str, index: int) -> npt.NDArray[np.generic]:
        entry = self.manifest[f"{kind}s"][index]
        address = getattr(self.lib, f"{self.name}_{kind}")(self.context, ctypes.c_int(index))
        buffer = (ctypes.c_uint8 * entry["bytes"]).from_address(address)
        return np.frombuffer(buffer, np.dtype(entry["dtype"])).reshape(entry["shape"])

    def run(self, *inputs: AnyArray) -> tuple[AnyArray, ...]:
        for index, array in enumerate(inputs):
            self._view("input", index)[...] = array
        assert self.call("invoke") == 0
        assert np.all(self.guard == 0x5A)
        return tuple(self._view("output", k).copy() for k in range(len(self.manifest["outputs"])))


def program_of(
    schedule: Schedule, name: str = "net", options: GenerateOptions | None = None
) -> Program:
    return generate(schedule, plan(schedule), name, options)


def run_once(
    schedule: Schedule,
    folder: Path,
    *inputs: AnyArray,
    compiler: str = "gcc",
    flags: tuple[str, ...] = (),
) -> tuple[AnyArray, ...]:
    """Outputs of one inference, with undefined behaviour trapped."""
    program = program_of(schedule)
    library = build(program, folder, *UNDEFINED, *flags, compiler=compiler)
    return Instance(library, program).run(*inputs)
