"""Firmware without an operating system: start-up code and linker script for one board."""

from __future__ import annotations

import shlex

from tinyq.build.harness import boot_dir
from tinyq.build.network import source_digest
from tinyq.build.uart import BAUD
from tinyq.codegen.environment import render
from tinyq.device.flash import flasher_words
from tinyq.export.renode import renode_files, supported
from tinyq.export.second_stage import BYTES, lines, words
from tinyq.export.source import Source
from tinyq.export.uart import uart_files
from tinyq.target import Board

_BOOT = ("startup.c", "port.h", "port_semihosting.c")
_IMAGES = {
    "{file}": "$(BUILD)/firmware.elf",
    "{bin}": "$(BUILD)/firmware.bin",
    "{hex}": "$(BUILD)/firmware.hex",
    "{port}": "$(PORT)",
}
_LEAST_STACK = 2 * 1024


def files(source: Source, board: Board, baud: int = BAUD) -> dict[str, bytes]:
    """``board/`` starts the core and places the program; ``test/`` runs the golden samples.

    ``device/`` runs samples for a host, where the UART is known; ``renode/`` has scripts for
    Renode, where it has models of core and UART. Raises TQ303 for a baud rate that the UART cannot
    have.
    """
    stack = min(_LEAST_STACK, board.ram.size // 8)
    uart = uart_files(source, board, baud)
    known = {
        "board": board,
        "uart": bool(uart),
        "renode": supported(board),
        "baud": baud,
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
        fill=True,
        second_stage=BYTES if board.boot == "rp2040" else 0,
    )
    return {
        "Makefile": source.text("bare/Makefile.j2", **known),
        "README.md": source.text("bare/README.md.j2", **known),
        **source.network(source.name),
        **source.model_test("test"),
        "test/main.c": source.text("bare/main.c.j2"),
        "board/link.ld": script.encode("utf-8"),
        **_boot(source, board),
        **uart,
        **(_device(source, board) if uart else {}),
        **renode_files(source, board),
        **{f"board/{name}": (boot_dir() / name).read_bytes() for name in _BOOT},
    }


def _boot(source: Source, board: Board) -> dict[str, bytes]:
    """What the board's boot ROM looks for, besides a vector table."""
    if not board.boot:
        return {}
    stage = {"lines": lines(), "words": words()}
    return {"board/boot.c": source.text(f"bare/boot_{board.boot}.c.j2", stage=stage)}


def _device(source: Source, board: Board) -> dict[str, bytes]:
    """``device/``: the other end of ``tinyq verify --device``."""
    console, counter = board.console, board.mcu.counter
    known = {
        "inputs": len(source.manifest["inputs"]),
        "outputs": len(source.manifest["outputs"]),
        "digest": source_digest(source.files),
        "core_hz": console.core_hz if console is not None else 0,
        "counter": counter,
    }
    made = {
        f"device/{name.removesuffix('.j2')}": source.text(f"bare/device/{name}", **known)
        for name in ("server.c.j2", "frame.c.j2", "frame.h", "cycles.c.j2", "cycles.h")
    }
    if counter is not None:
        made["device/timer.h"] = (boot_dir() / "timer.h").read_bytes()
    return made


def flash_command(board: Board) -> str:
    """The shell command that writes the firmware to ``board``, empty when none is known."""
    words = flasher_words(board, _IMAGES)
    # Quotes keep the shell from splitting; make replaces its variables before.
    return " ".join(shlex.quote(word) if " " in word else word for word in words)


def _machine(board: Board) -> str:
    if board.qemu is None:
        return ""
    return " ".join((board.qemu.machine, *board.qemu.args))
