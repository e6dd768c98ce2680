"""Writes firmware to a board: with pyOCD, with the board's own tool, or as a UF2 file."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyq.build.process import run
from tinyq.device.uf2 import elf_segments, uf2_image
from tinyq.errors import error
from tinyq.target import Board

_SECONDS = 600.0


@dataclass(frozen=True)
class Flashing:
    """How firmware gets onto a board: the command, and whether its program is here.

    ``by`` is ``pyocd``, ``tool`` or ``uf2`` (a copy to the board's drive, without a command).
    """

    by: str
    command: tuple[str, ...]
    available: bool
    image: Path
    needs_port: bool = False


def flasher_words(board: Board, images: Mapping[str, str]) -> tuple[str, ...]:
    """The board's flash command with its placeholders (``{file}``) replaced; empty without one."""
    words = []
    for word in board.flasher.command if board.flasher is not None else ():
        replaced = word
        for key, value in images.items():
            replaced = replaced.replace(key, value)
        words.append(replaced)
    return tuple(words)


def plan_flashing(board: Board, build: Path, port: str, drive: Path | None = None) -> Flashing:
    """How to write ``build/firmware.*`` to ``board``.

    ``drive`` is where the board's USB drive is mounted: the UF2 file is copied there. Else pyOCD,
    where it is installed and knows the board, then the board's own tool. Raises TQ908 for a drive
    where there is none, and for a board that no command is known for.
    """
    elf = build / "firmware.elf"
    if drive is not None:
        if board.uf2 is None:
            raise error("TQ908", f"'{board.name}' takes no UF2 files")
        return Flashing("uf2", (), True, write_uf2(board, elf))
    flasher = board.flasher
    if flasher is None:
        raise error("TQ908", f"no flash command is known for '{board.name}'; the image is {elf}")
    pyocd = _pyocd()
    if flasher.pyocd and pyocd:
        command = (*pyocd, "flash", "--target", flasher.pyocd, str(elf))
        return Flashing("pyocd", command, True, elf)
    images = {
        "{file}": str(elf), "{bin}": str(elf.with_suffix(".bin")),
        "{hex}": str(elf.with_suffix(".hex")), "{port}": port,
    }  # fmt: skip
    words = flasher_words(board, images)
    needs_port = any("{port}" in word for word in flasher.command)
    return Flashing("tool", words, shutil.which(words[0]) is not None, elf, needs_port)


def write_uf2(board: Board, elf: Path) -> Path:
    """``firmware.uf2`` beside the ELF."""
    assert board.uf2 is not None
    image = elf.with_suffix(".uf2")
    image.write_bytes(uf2_image(elf_segments(elf), board.uf2.family))
    return image


def flash(board: Board, how: Flashing, drive: Path | None = None) -> str:
    """Do it; the program's output. Raises TQ909 when it fails."""
    if how.by == "uf2" and drive is not None:
        if not (drive / "INFO_UF2.TXT").is_file():
            raise error(
                "TQ909", f"{drive} is not the drive of a board: it has no INFO_UF2.TXT",
                "Hold the board's BOOTSEL button (or press reset twice) while connecting it.",
            )  # fmt: skip
        shutil.copyfile(how.image, drive / how.image.name)
        return f"{how.image.name} copied to {drive}"
    done = run(how.command, how.image.parent, _SECONDS)
    if done.status != 0:
        state = f"status {done.status}" if done.status is not None else f"{_SECONDS:g} s"
        raise error("TQ909", f"{Path(how.command[0]).name} ended with {state}:\n{done.tail()}")
    return done.tail()


def _pyocd() -> tuple[str, ...]:
    """How pyOCD is started, empty when it is not installed."""
    found = shutil.which("pyocd")
    if found:
        return (found,)
    if importlib.util.find_spec("pyocd") is not None:
        return (sys.executable, "-m", "pyocd")
    return ()
