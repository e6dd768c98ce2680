"""What a build leaves: something an emulator can run, and what was read from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyq.build.network import Network
from tinyq.target import Board, Console, Core, Peripheral


@dataclass(frozen=True)
class Footprint:
    """Memory of the network alone, in bytes: no start-up code, no harness.

    It is read from an ELF that links the network's objects and the library routines they call, and
    nothing else. ``flash_bytes`` is code, constants and the initial values of data.
    ``stack_bound_bytes`` is the worst case of ``<name>_invoke`` over all call paths.
    ``data_bytes`` counts variables outside the arena, initialised or not.
    """

    code_bytes: int
    constant_bytes: int
    data_bytes: int
    stack_bound_bytes: int

    @property
    def flash_bytes(self) -> int:
        """Code and constants."""
        return self.code_bytes + self.constant_bytes


@dataclass(frozen=True)
class UartPort:
    """How firmware reaches the host without files: ``templates/boot/port_memory.c``.

    Samples lie in memory at ``samples``, results go over ``console``. Where instructions are to be
    counted, the emulator notes their number each time ``tinyq_mark`` is entered.
    """

    console: Console
    samples: int


@dataclass(frozen=True)
class Artifact:
    """A program that runs one network over a file of samples.

    ``core``, ``board`` and ``footprint`` are ``None`` in a build for the host. ``profiled`` builds
    record each layer's output and instructions; their totals include the hooks. ``toolchain``
    names the compiler of firmware, ``compiler`` is the version that it states; ``timer`` counts on
    a board whose emulated machine has none. ``uart`` is what firmware without files reports over.
    """

    network: Network
    executable: Path
    profiled: bool
    core: Core | None = None
    board: Board | None = None
    footprint: Footprint | None = None
    toolchain: str = ""
    compiler: str = ""
    timer: Peripheral | None = None
    uart: UartPort | None = None
