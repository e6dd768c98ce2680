"""Scripts with which Renode runs the firmware of a bare package: platform, script, Robot test.

What the scripts rely on was seen in Renode 1.16.1; the scripts themselves have not run.
"""

from __future__ import annotations

from tinyq.emulate.renode_platform import CPUS, platform
from tinyq.export.source import Source
from tinyq.target import Board

SECONDS = 60
"""Seconds of the emulated clock; at 100 million instructions a second."""


def supported(board: Board) -> bool:
    """Whether Renode has models of the board's core and console."""
    return board.mcu.core in CPUS and platform(board).own


def renode_files(source: Source, board: Board) -> dict[str, bytes]:
    """``renode/`` of a bare package; nothing for a board that Renode cannot stand for."""
    if not supported(board):
        return {}
    where = platform(board)
    scripts = {
        f"renode/{name}": source.text(
            f"bare/renode/{name}.j2", uart=where.uart, seconds=SECONDS, vectors=board.flash.base
        )
        for name in ("run.resc", "test.robot")
    }
    return {"renode/platform.repl": where.text().encode("utf-8"), **scripts}
