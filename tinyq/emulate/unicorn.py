"""Runs firmware in unicorn, a processor without a machine around it, and counts its instructions.

The memories of the artifact's board, semihosting and the board's timer are here; there are no other
devices and no interrupts. The instructions of a block are counted when it is entered, and the timer
shows their number. Two readings lie at the same places of their blocks in every call, so that their
difference is the same as QEMU's exact count; ``tests/emulate`` compares the two.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tinyq.build import Artifact
from tinyq.build.arm import INSTALL_EXTRA
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Samples
from tinyq.emulate.trace import Counts, RunTrace, read_outputs, samples_file
from tinyq.errors import TinyqError, error
from tinyq.target import Board, Core, Memory, Peripheral

# The Cortex-M0+ has the instructions of the Cortex-M0; unicorn 2.1 has no model of the M55.
MODELS = {
    "cortex-m0": "UC_CPU_ARM_CORTEX_M0",
    "cortex-m0plus": "UC_CPU_ARM_CORTEX_M0",
    "cortex-m3": "UC_CPU_ARM_CORTEX_M3",
    "cortex-m4": "UC_CPU_ARM_CORTEX_M4",
    "cortex-m7": "UC_CPU_ARM_CORTEX_M7",
    "cortex-m33": "UC_CPU_ARM_CORTEX_M33",
}
TIMER = Peripheral("sse-counter", 0x58100000, "unicorn: an address that no board of ours uses")
"""The timer of a firmware whose board brings none."""

_Hook = Callable[[Any, int, int, object], None]
_PAGE = 0x1000
_BKPT = 7  # the number of the exception that QEMU's translator raises for BKPT
_SEMIHOSTING = 0xBEAB  # bkpt 0xAB
_MASK = 0xFFFFFFFF
_SAMPLES, _OUTPUTS = 3, 4
_APPLICATION_EXIT = 0x20026


def installed() -> bool:
    """Whether the package unicorn is there."""
    return importlib.util.find_spec("unicorn") is not None


def version() -> str:
    """Name and version of the package, '' when it is not installed."""
    return f"unicorn {importlib.metadata.version('unicorn')}" if installed() else ""


class UnicornRunner:
    """Unicorn's core with the memories of the artifact's board."""

    name = "unicorn"

    def run(
        self, artifact: Artifact, samples: Samples, *, timeout: float = DEFAULT_TIMEOUT
    ) -> RunTrace:
        """Run every sample; raises TQ403, TQ404, TQ409 (no model of the core) or TQ502."""
        machine = _machine(artifact, samples)
        start = time.monotonic()
        machine.run(timeout)
        elapsed = time.monotonic() - start
        try:
            counts = machine.timer is not None
            return read_outputs(
                bytes(machine.outputs), artifact, self.name, elapsed,
                (lambda ticks: ticks) if counts else None,
            )  # fmt: skip
        except ValueError as problem:
            raise error("TQ404", f"unicorn left no usable outputs: {problem}") from problem


def count_in_unicorn(
    artifact: Artifact, samples: Samples, marks: Sequence[int], *, timeout: float = DEFAULT_TIMEOUT
) -> tuple[Counts, ...]:
    """Counts of every instruction, in phases that begin where a block starts at one of ``marks``.

    Raises as :meth:`UnicornRunner.run`.
    """
    phases: list[dict[tuple[int, int], int]] = [{}]

    def enter(engine: Any, address: int, size: int, user: object) -> None:
        if address in starts:
            phases.append({})
        block = (address, size)
        phases[-1][block] = phases[-1].get(block, 0) + 1

    starts = frozenset(marks)
    machine = _machine(artifact, samples)
    machine.watch(enter)
    machine.run(timeout)
    return tuple(_by_instruction(machine, blocks) for blocks in phases)


def _by_instruction(machine: _Machine, blocks: Mapping[tuple[int, int], int]) -> Counts:
    counts: Counts = {}
    for (address, size), times in blocks.items():
        for offset in _offsets(machine.code(address, size)):
            counts[address + offset] = counts.get(address + offset, 0) + times
    return counts


def require_model(core: str) -> None:
    """Raise TQ409 for a core that unicorn has no model of, TQ403 when it is not installed."""
    if core not in MODELS:
        known = ", ".join(MODELS)
        raise error("TQ409", f"unicorn has no model of '{core}'; it has {known}")
    if not installed():
        raise error("TQ403", "the package unicorn is not installed", f"{INSTALL_EXTRA}.")


def _machine(artifact: Artifact, samples: Samples) -> _Machine:
    if artifact.board is None or artifact.core is None:
        raise ValueError("a host build cannot run in unicorn")
    require_model(artifact.core.name)
    contents = samples_file(artifact.network, samples)
    return _Machine(artifact, artifact.core, artifact.board, contents)


class _Machine:
    """One run: memories, timer, semihosting, and the count of instructions."""

    def __init__(self, artifact: Artifact, core: Core, board: Board, samples: bytes) -> None:
        import unicorn
        from unicorn import arm_const

        self._unicorn, self._registers = unicorn, arm_const
        self._start, self._samples, self._at = board.flash.base, samples, 0
        self.outputs, self._printed = bytearray(), b""
        self._status: int | None = None
        self._problem = ""
        self._count = [0]
        self.timer = (board.qemu.timer if board.qemu else None) or artifact.timer
        engine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        engine.ctl_set_cpu_model(getattr(arm_const, MODELS[core.name]))
        self._engine = engine
        flash, ram = board.flash, board.ram
        self._map(flash, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        self._map(ram, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        self._load(artifact)
        if self.timer is not None:
            page = self.timer.base & -_PAGE
            engine.mmio_map(page, _PAGE, self._read_timer, None, _ignore, None)
        self.watch(_counter(self._count))
        engine.hook_add(unicorn.UC_HOOK_INTR, self._exception)

    def watch(self, enter: _Hook) -> None:
        """Call ``enter`` with address and size of every block that is entered."""
        self._engine.hook_add(self._unicorn.UC_HOOK_BLOCK, enter)

    def code(self, address: int, size: int) -> bytes:
        """Contents of memory."""
        return bytes(self._engine.mem_read(address, size))

    def _map(self, memory: Memory, rights: int) -> None:
        low, high = memory.base & -_PAGE, -(-memory.end // _PAGE) * _PAGE
        self._engine.mem_map(low, high - low, rights)

    def _load(self, artifact: Artifact) -> None:
        from elftools.elf.elffile import ELFFile

        with artifact.executable.open("rb") as stream:
            for segment in ELFFile(stream).iter_segments(type="PT_LOAD"):
                if segment["p_filesz"]:
                    self._engine.mem_write(segment["p_paddr"], segment.data())

    def run(self, timeout: float) -> None:
        """Run from the reset vector to the end; raises TQ404 unless the firmware says PASS."""
        registers, base = self._registers, self._start
        self._engine.reg_write(registers.UC_ARM_REG_SP, self._word(base))
        try:
            self._engine.emu_start(self._word(base + 4) | 1, _MASK, timeout=int(timeout * 1e6))
        except self._unicorn.UcError as problem:
            raise self._failed(self._problem or f"fault at {self._pc():#010x}: {problem}") from None
        if self._status is None:
            raise self._failed(self._problem or f"not finished after {timeout:g} s")
        if self._status != _APPLICATION_EXIT or self._printed.splitlines()[-1:] != [b"PASS"]:
            raise self._failed("ended with an error")

    def _failed(self, what: str) -> TinyqError:
        printed = self._printed.decode("utf-8", "replace").strip() or "(it printed nothing)"
        return error("TQ404", f"unicorn: {what}; its last output:\n{printed}")

    def _pc(self) -> int:
        return int(self._engine.reg_read(self._registers.UC_ARM_REG_PC))

    def _word(self, address: int) -> int:
        return int.from_bytes(self._engine.mem_read(address, 4), "little")

    def _read_timer(self, engine: Any, offset: int, size: int, user: object) -> int:
        down = self.timer is not None and self.timer.driver == "cmsdk-apb"
        return (-self._count[0] if down else self._count[0]) & _MASK

    def _exception(self, engine: Any, number: int, user: object) -> None:
        registers, pc = self._registers, self._pc()
        if number != _BKPT or self._word(pc) & 0xFFFF != _SEMIHOSTING:
            self._problem = f"fault at {pc:#010x} (exception {number})"
            engine.emu_stop()
            return
        operation = engine.reg_read(registers.UC_ARM_REG_R0)
        argument = engine.reg_read(registers.UC_ARM_REG_R1)
        engine.reg_write(registers.UC_ARM_REG_R0, self._semihosting(operation, argument) & _MASK)
        engine.reg_write(registers.UC_ARM_REG_PC, (pc + 2) | 1)

    def _semihosting(self, operation: int, argument: int) -> int:
        """One call of the harness (Semihosting for AArch32 and AArch64, 2.0); its result."""
        engine = self._engine
        if operation == 0x04:  # SYS_WRITE0
            while (byte := bytes(engine.mem_read(argument, 1))) != b"\0":
                self._printed, argument = self._printed + byte, argument + 1
            return 0
        if operation == 0x01:  # SYS_OPEN: mode 1 is rb
            return _SAMPLES if self._word(argument + 4) == 1 else _OUTPUTS
        if operation in (0x05, 0x06):
            address, size = self._word(argument + 4), self._word(argument + 8)
            if operation == 0x05:  # SYS_WRITE
                self.outputs += engine.mem_read(address, size)
                return 0
            part = self._samples[self._at : self._at + size]
            engine.mem_write(address, part)  # SYS_READ: its result is how many bytes are missing
            self._at += len(part)
            return size - len(part)
        if operation == 0x20:  # SYS_EXIT_EXTENDED
            self._status = self._word(argument)
            engine.emu_stop()
        return 0


def _counter(total: list[int]) -> _Hook:
    """A hook that adds a block's instructions to ``total``; most of the time of a run is here."""
    known: dict[tuple[int, int], int] = {}

    def enter(engine: Any, address: int, size: int, user: object) -> None:
        try:
            total[0] += known[address, size]
        except KeyError:
            known[address, size] = len(_offsets(engine.mem_read(address, size)))
            total[0] += known[address, size]

    return enter


def _ignore(engine: Any, offset: int, size: int, value: int, user: object) -> None:
    """Writes start, stop and capture the timer, which always runs and always shows the count."""


def _offsets(code: bytes) -> list[int]:
    """Offsets of Thumb instructions: one of 32 bits starts with 0b11101, 0b11110 or 0b11111."""
    if not code:
        raise RuntimeError("unicorn reported a block without its size")
    words = np.frombuffer(code, "<u2")
    offsets, at = [], 0
    while at < len(words):
        offsets.append(2 * at)
        at += 2 if words[at] >= 0xE800 else 1
    return offsets
