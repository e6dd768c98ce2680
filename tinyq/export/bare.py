"""Firmware without an operating system: start-up code and linker script for one board."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from tinyq.build.harness import boot_dir
from tinyq.codegen.environment import render
from tinyq.export.source import Source
from tinyq.target import Board, Peripheral

_BOOT = ("startup.c", "port.h", "port_semihosting.c")
_IMAGES = {
    "{file}": "$(BUILD)/firmware.elf",
    "{bin}": "$(BUILD)/firmware.bin",
    "{hex}": "$(BUILD)/firmware.hex",
    "{port}": "$(PORT)",
}
_LEAST_STACK = 2 * 1024


def files(source: Source, board: Board) -> dict[str, bytes]:
    """``board/`` starts the core and places the program; ``test/`` runs the golden samples."""
    stack = min(_LEAST_STACK, board.ram.size // 8)
    uart = uart_port(source, board)
    known = {
        "board": board,
        "uart": bool(uart),
        "tx_pin": dict(board.console.options).get("tx_pin", "") if board.console else "",
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
    )
    return {
        "Makefile": source.text("bare/Makefile.j2", **known),
        "README.md": source.text("bare/README.md.j2", **known),
        **source.network(source.name),
        **source.model_test("test"),
        "test/main.c": source.text("bare/main.c.j2"),
        "board/link.ld": script.encode("utf-8"),
        **uart,
        **{f"board/{name}": (boot_dir() / name).read_bytes() for name in _BOOT},
    }


def _uart_nrf(board: Board, console: Peripheral) -> dict[str, object]:
    """Port and number of the pin ``P1.08``."""
    port, _, pin = str(dict(console.options)["tx_pin"])[1:].partition(".")
    return {"pin": int(pin), "port": int(port)}


def _uart_stm32f4(board: Board, console: Peripheral) -> dict[str, object]:
    """Port and number of the pin ``PA2``, and where the device's clock is enabled (RM0090, RCC)."""
    pin = str(dict(console.options)["tx_pin"])
    enable, bit = _STM32F4_ENABLE[console.base]
    return {"pin": int(pin[2:]), "port": ord(pin[1]) - ord("A"), "enable": enable, "bit": bit}


# Address and bit that give USART1 (APB2ENR) and USART2 (APB1ENR) their clock.
_STM32F4_ENABLE = {0x40011000: (0x40023844, 4), 0x40004400: (0x40023840, 17)}

_UARTS: Mapping[str, Callable[[Board, Peripheral], dict[str, object]]] = {
    "nrf-uart": _uart_nrf,
    "stm32f4-usart": _uart_stm32f4,
}


def uart_port(source: Source, board: Board) -> dict[str, bytes]:
    """``board/port_uart.c`` for boards whose UART tinyq can set up, else nothing."""
    console = board.console
    if console is None or console.driver not in _UARTS or not console.options:
        return {}
    template = f"bare/port_uart_{console.driver.replace('-', '_')}.c.j2"
    known = _UARTS[console.driver](board, console)
    return {"board/port_uart.c": source.text(template, board=board, console=console, **known)}


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
