"""Scripts with which Renode runs the firmware of a bare package: platform, script, Robot test.

What the scripts rely on was seen in Renode 1.16.1; the scripts themselves have not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyq.export.source import Source
from tinyq.target import Board

SECONDS = 60
"""Seconds of the emulated clock; at 100 million instructions a second."""

# Renode has no processor of its own for the M55, and its Helium is incomplete.
_CPUS: Mapping[str, str] = {
    "cortex-m0": "cortex-m0",
    "cortex-m0plus": "cortex-m0+",
    "cortex-m3": "cortex-m3",
    "cortex-m4": "cortex-m4f",
    "cortex-m7": "cortex-m7",
    "cortex-m33": "cortex-m33",
}
# By driver: Renode's model, and whether it asks for the clock. The nRF UART is left out: Renode's
# model knows the registers for DMA alone.
_UARTS: Mapping[str, tuple[str, bool]] = {
    "cmsdk-apb": ("UART.CMSDK_APB_UART", False),
    "pl011": ("UART.PL011", False),
    "stm32-usart-v1": ("UART.STM32_UART", False),
    "stm32-usart-v2": ("UART.STM32F7_USART", True),
}


@dataclass(frozen=True)
class Shipped:
    """A platform that comes with Renode, and its name for the board's console."""

    platform: str
    uart: str


SHIPPED: Mapping[str, Shipped] = {
    "stm32f4-discovery": Shipped("platforms/boards/stm32f4_discovery.repl", "usart2"),
    "nucleo-f767zi": Shipped("platforms/boards/nucleo_f767zi.repl", "usart3"),
    "nucleo-h743zi": Shipped("platforms/cpus/stm32h743.repl", "usart3"),
}
_PAGE = 0x400  # Renode wants whole pages of memory


def supported(board: Board) -> bool:
    """Whether Renode has models of the board's core and console."""
    console = board.console
    return (
        console is not None
        and console.ready
        and board.mcu.core in _CPUS
        and console.driver in _UARTS
    )


def renode_files(source: Source, board: Board) -> dict[str, bytes]:
    """``renode/`` of a bare package; nothing for a board that Renode cannot stand for."""
    console = board.console
    if console is None or not supported(board):
        return {}
    shipped = SHIPPED.get(board.name)
    model, frequency = _UARTS[console.driver]
    flash, ram = (board.mcu.memory(kind) for kind in ("flash", "ram"))
    known = {
        "board": board,
        "shipped": shipped.platform if shipped else "",
        "uart": shipped.uart if shipped else "uart0",
        "model": model,
        "frequency": frequency,
        "cpu": _CPUS[board.mcu.core],
        "waited": sorted({step.address for step in console.setup if step.wait}),
        "flash_base": flash.base,
        "flash_size": -(-flash.size // _PAGE) * _PAGE,
        "ram_base": ram.base,
        "ram_size": -(-ram.size // _PAGE) * _PAGE,
        "seconds": SECONDS,
    }
    return {
        f"renode/{name}": source.text(f"bare/renode/{name}.j2", **known)
        for name in ("platform.repl", "run.resc", "test.robot")
    }
