"""Firmware without an operating system: start-up code and linker script for one board."""

from __future__ import annotations

import shlex

from tinyq.build.harness import boot_dir
from tinyq.codegen.environment import render
from tinyq.export.source import Source
from tinyq.target import Board

_BOOT = ("startup.c", "port.h", "port_semihosting.c")
_IMAGES = {
    "{file}": "$(BUILD)/firmware.elf",
    "{bin}": "$(BUILD)/firmware.bin",
    "{hex}": "$(BUILD)/firmware.hex",
    "{port}": "$(PORT)",
}
_STACK_BYTES = 8 * 1024


def files(source: Source, board: Board) -> dict[str, bytes]:
    """``board/`` starts the core and places the program; ``test/`` runs the golden samples."""
    stack = min(_STACK_BYTES, board.ram.size // 8)
    known = {
        "board": board,
        "stack_bytes": stack,
        "machine": _machine(board),
        "flash_command": flash_command(board),
    }
    script = render(
        "boot/link.ld.j2",
        title=board.title,
        flash=board.flash,
        ram=board.ram,
        stack_bytes=stack,
        guard_bytes=0,
    )
    return {
        "Makefile": source.text("bare/Makefile.j2", **known),
        "README.md": source.text("bare/README.md.j2", **known),
        **source.network(source.name),
        **source.model_test("test"),
        "test/main.c": source.text("bare/main.c.j2"),
        "board/link.ld": script.encode("utf-8"),
        **{f"board/{name}": (boot_dir() / name).read_bytes() for name in _BOOT},
    }


def flash_command(board: Board) -> str:
    """The shell command that writes the firmware to ``board``, empty when none is known."""
    if board.flasher is None:
        return ""
    words = []
    for word in board.flasher.command:
        quoted = shlex.quote(word) if " " in word else word
        for key, value in _IMAGES.items():
            quoted = quoted.replace(key, value)
        # Single quotes keep the shell from splitting; make replaces its variables before.
        words.append(quoted)
    return " ".join(words)


def _machine(board: Board) -> str:
    if board.qemu is None:
        return ""
    return " ".join((board.qemu.machine, *board.qemu.args))
