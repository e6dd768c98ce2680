"""Whether a network fits a board: flash, arena, variables, stack and what start-up takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tinyq.build.artifact import Footprint
from tinyq.build.firmware import HARNESS_STACK, measure_network
from tinyq.build.network import Network
from tinyq.errors import Diagnostic, TinyqError
from tinyq.target import Board, Core, Memory, board_names, load_board

START_FLASH = 1024
"""Bytes of flash for the vector table, start-up code and a minimal main."""
START_STACK = 1024
"""Bytes of stack that the room for an arena leaves before the stack has been measured."""


_NAMED = 4  # boards in a message


@dataclass(frozen=True)
class Room:
    """Bytes that a board leaves to a network: its arena, and its constants and code."""

    ram: int
    flash: int


@dataclass(frozen=True)
class BoardFit:
    """What a network takes of a board's memories, in bytes; ``stack_bytes`` includes its caller."""

    board: Board
    footprint: Footprint
    arena_bytes: int
    stack_bytes: int

    @property
    def flash_bytes(self) -> int:
        """Code, constants, and start-up."""
        return self.footprint.flash_bytes + START_FLASH

    @property
    def ram_bytes(self) -> int:
        """Arena, variables, and stack."""
        return self.arena_bytes + self.footprint.data_bytes + self.stack_bytes

    @property
    def fits(self) -> bool:
        """Whether both memories suffice."""
        return not self.problems()

    def problems(self) -> list[Diagnostic]:
        """A TQ803 for each memory that is too small, saying by how much and what would do."""
        parts = self.footprint
        found = [
            *_compare(
                self.board, self.board.flash, self.flash_bytes,
                f"code {parts.code_bytes:,}, constants {parts.constant_bytes:,}, start-up "
                f"{START_FLASH:,}",
            ),
            *_compare(
                self.board, self.board.ram, self.ram_bytes,
                f"arena {self.arena_bytes:,}, stack {self.stack_bytes:,}, variables "
                f"{parts.data_bytes:,}",
            ),
        ]  # fmt: skip
        larger = enough(self.board.mcu.core, self.ram_bytes, self.flash_bytes)
        return [replace(d, remedy=f"{d.info.remedy} {larger}") for d in found]


def room(board: Board) -> Room:
    """What a compilation for ``board`` may use, before the stack is known."""
    return Room(board.ram.size - START_STACK, board.flash.size - START_FLASH)


def enough(core: str, ram: int, flash: int) -> str:
    """Which boards have so many bytes: those with ``core`` if any do, smallest RAM first."""
    boards = [b for b in map(load_board, board_names()) if not b.name.startswith("qemu-")]
    large = sorted(
        (b for b in boards if b.ram.size >= ram and b.flash.size >= flash),
        key=lambda b: (b.ram.size, b.flash.size, b.name),
    )
    same = [b.name for b in large if b.mcu.core == core]
    if same:
        return f"Boards with the same core that have enough: {', '.join(same[:_NAMED])}."
    others = [f"{b.name} ({b.mcu.core})" for b in large]
    if others:
        return f"Boards with another core that have enough: {', '.join(others[:_NAMED])}."
    return "No board that tinyq knows has enough."


def check_fit(
    network: Network, core: Core, board: Board, folder: Path, toolchain: str = ""
) -> BoardFit:
    """Build ``network`` in ``folder``, measure it, and compare with ``board``; raises TQ803."""
    footprint = measure_network(network, core, folder, toolchain)
    fit = BoardFit(
        board, footprint, network.arena_bytes, footprint.stack_bound_bytes + HARNESS_STACK
    )
    problems = fit.problems()
    if problems:
        raise TinyqError(problems)
    return fit


def _compare(board: Board, memory: Memory, needed: int, parts: str) -> list[Diagnostic]:
    if needed <= memory.size:
        return []
    return [
        Diagnostic(
            "TQ803",
            f"'{board.name}' has {memory.size:,} bytes of {memory.kind} ({memory.name}), "
            f"{needed:,} are needed ({parts}): {needed - memory.size:,} too many",
        )
    ]
