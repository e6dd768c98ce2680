"""C that drives a board's UART, from the board's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tinyq.codegen.environment import render
from tinyq.errors import error
from tinyq.resources import data_dir
from tinyq.target import Console

BAUD = 115_200
_TOLERANCE = 0.025  # of a bit rate: half a bit is lost over the ten bits of a byte at 5%


def _divide(console: Console, baud: int, times: int = 1) -> tuple[int, float]:
    divisor = round(times * console.clock_hz / baud)
    return divisor, times * console.clock_hz / max(divisor, 1)


def _nrf(console: Console, baud: int) -> tuple[int, float]:
    """Of 2^32 / 16 MHz; the lowest 12 bits are not used."""
    divisor = round(baud * 2**32 / console.clock_hz / 4096) * 4096
    return divisor, divisor * console.clock_hz / 2**32


def _sercom(console: Console, baud: int) -> tuple[int, float]:
    divisor = round(65536 * (1 - 16 * baud / console.clock_hz))
    return divisor, console.clock_hz * (1 - divisor / 65536) / 16


def _lpuart(console: Console, baud: int) -> tuple[int, float]:
    divisor = round(console.clock_hz / (16 * baud))
    return divisor, console.clock_hz / (16 * max(divisor, 1))


def _sci_b(console: Console, baud: int) -> tuple[int, float]:
    """BRR + 1 times 16 base clocks a bit."""
    divisor = round(console.clock_hz / (16 * baud))
    return divisor - 1, console.clock_hz / (16 * max(divisor, 1))


# The value of the baud rate register, which values it takes, and the rate that it gives.
_DIVISORS: Mapping[str, tuple[Callable[[Console, int], tuple[int, float]], int, int]] = {
    "nrf-uart": (_nrf, 4096, 0x10000000),
    "stm32-usart-v1": (_divide, 16, 0xFFFF),
    "stm32-usart-v2": (_divide, 16, 0xFFFF),
    "stm32-lpuart": (lambda console, baud: _divide(console, baud, 256), 0x300, 0xFFFFF),
    "pl011": (lambda console, baud: _divide(console, baud, 4), 64, 0x3FFFFF),
    "ambiq-pl011": (lambda console, baud: _divide(console, baud, 4), 64, 0x3FFFFF),
    "sam-sercom": (_sercom, 1, 0xFFFF),
    "imxrt-lpuart": (_lpuart, 1, 0x1FFF),
    "ra-sci-b": (_sci_b, 0, 0xFF),
    "cmsdk-apb": (_divide, 16, 0xFFFFF),
}
DRIVERS = tuple(_DIVISORS)


def uart_dir() -> Path:
    """Folder of ``uart.h`` and of the drivers."""
    return data_dir("templates") / "export" / "bare"


def uart_source(title: str, console: Console, baud: int = BAUD) -> str:
    """``uart.c`` for the UART of the board ``title``; raises TQ303 as :func:`divisor`."""
    value = divisor(title, console, baud)
    return render("export/bare/uart.c.j2", title=title, console=console, baud=baud, divisor=value)


def divisor(title: str, console: Console, baud: int) -> int:
    """Value of the baud rate register; raises TQ303 when no value is within 2.5% of ``baud``."""
    compute, least, most = _DIVISORS[console.driver]
    value, rate = compute(console, baud) if baud > 0 else (0, 0.0)
    if not least <= value <= most or abs(rate - baud) > _TOLERANCE * baud:
        raise error(
            "TQ303",
            f"{baud} baud: the UART of '{title}' runs at {console.clock_hz:,} Hz, which gives "
            f"no rate within {100 * _TOLERANCE:g}% of it",
            f"Use {BAUD}.",
        )
    return value
