"""Runs firmware in QEMU and counts instructions exactly.

With ``-icount shift=N`` every instruction advances virtual time by 2^N ns, and a read of a timer
sees the time of the very instruction that reads. With N = 8 a tick of every board's timer is less
than half an instruction, so that rounding gives the exact number; 32 bits of ticks then last for
500 million instructions at least.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyq.build import Artifact
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Samples, Ticks, find_program, run_files
from tinyq.emulate.trace import RunTrace
from tinyq.errors import TinyqError, error
from tinyq.target import Board, QemuMachine

PROGRAM = "qemu-system-arm"
VARIABLE = "TINYQ_QEMU"
_UNKNOWN_MACHINE = "unsupported machine type"
_SHIFT = 8
_NS_PER_INSTRUCTION = 1 << _SHIFT


@dataclass
class QemuRunner:
    """QEMU's system emulation of the artifact's board, with semihosting for the files.

    ``arguments`` are further ones for QEMU.
    """

    arguments: tuple[str, ...] = ()

    name = "qemu"

    def run(
        self, artifact: Artifact, samples: Samples, *, timeout: float = DEFAULT_TIMEOUT
    ) -> RunTrace:
        """Run every sample; raises TQ301 (no machine), TQ403, TQ404, TQ409 or TQ502."""
        machine = _machine(artifact.board)
        program = find_program(VARIABLE, PROGRAM)
        command = [
            program,
            *("-M", machine.machine, *machine.args),
            *("-display", "none", "-monitor", "none", "-serial", "none", "-nodefaults"),
            *("-icount", f"shift={_SHIFT},sleep=off"),
            *("-semihosting-config", "enable=on,target=native"),
            *("-kernel", str(artifact.executable)),
            *self.arguments,
        ]
        timer = machine.timer
        ticks = None if timer is None else instructions_from_ticks(timer.clock_hz)
        try:
            return run_files(self.name, command, artifact, samples, timeout=timeout, ticks=ticks)
        except TinyqError as problem:
            if _UNKNOWN_MACHINE not in str(problem):
                raise
            raise error(
                "TQ409",
                f"this version of QEMU has no machine '{machine.machine}'",
                "Install a newer QEMU, or use --emulator unicorn.",
            ) from None


def instructions_from_ticks(clock_hz: int) -> Ticks:
    """Conversion of ticks of a timer at ``clock_hz`` to instructions, rounded to the nearest.

    Two readings are each late by less than one tick, so the error is below the rounding when an
    instruction takes more than two ticks.
    """
    ticks_per_second_of_instructions = clock_hz * _NS_PER_INSTRUCTION
    if ticks_per_second_of_instructions <= 2 * 10**9:
        raise ValueError(f"a timer of {clock_hz} Hz is too slow to count instructions")

    def convert(ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        scaled = ticks * 10**9
        half = ticks_per_second_of_instructions // 2
        return np.asarray((scaled + half) // ticks_per_second_of_instructions, np.int64)

    return convert


def _machine(board: Board | None) -> QemuMachine:
    if board is None:
        raise ValueError("a host build cannot run in QEMU")
    if board.qemu is None:
        raise error("TQ301", f"board '{board.name}' has no QEMU machine")
    return board.qemu
