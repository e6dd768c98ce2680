"""What Renode knows of a board: a platform of its own, or one with the board's memories and UART.

What this relies on was seen in Renode 1.16.1, or read in its sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyq.build.artifact import UartPort
from tinyq.codegen.environment import render
from tinyq.errors import error
from tinyq.target import Board, Console

# Renode 1.16.1 knows a Cortex-M55, but its Helium is incomplete.
CPUS: Mapping[str, str] = {
    "cortex-m0": "cortex-m0",
    "cortex-m0plus": "cortex-m0+",
    "cortex-m3": "cortex-m3",
    "cortex-m4": "cortex-m4f",
    "cortex-m7": "cortex-m7",
    "cortex-m33": "cortex-m33",
}
# By driver: Renode's model, and whether it asks for the clock. The nRF UART is left out: Renode's
# model knows the registers for DMA alone.
UARTS: Mapping[str, tuple[str, bool]] = {
    "cmsdk-apb": ("UART.CMSDK_APB_UART", False),
    "pl011": ("UART.PL011", False),
    "ambiq-pl011": ("UART.PL011", False),
    "stm32-usart-v1": ("UART.STM32_UART", False),
    "stm32-usart-v2": ("UART.STM32F7_USART", True),
}
SAMPLES = 0x21000000
"""Where ``samples.bin`` lies: no memory of any board, but the PSRAM of MPS2 with AN385 or AN386."""
SAMPLES_ROOM = 0x1000000
"""Bytes from there to the alias of the bits of SRAM (Armv7-M, bit-banding)."""
UART = Console(
    driver="cmsdk-apb",
    base=0x58200000,
    clock_hz=25_000_000,
    core_hz=25_000_000,
    source="an address that no board of ours uses",
    verified="as the UART of qemu-mps2-an386",
)
"""The UART of a platform whose board has none that Renode models."""
_PAGE = 0x400  # Renode wants whole pages of memory


@dataclass(frozen=True)
class Shipped:
    """A platform that comes with Renode, and its name for the board's console, '' for none.

    ``roomy`` platforms have memory at :data:`SAMPLES` already: more RAM than the chip.
    """

    platform: str
    uart: str
    roomy: bool = False


SHIPPED: Mapping[str, Shipped] = {
    "stm32f4-discovery": Shipped("platforms/boards/stm32f4_discovery.repl", "usart2"),
    "nucleo-f767zi": Shipped("platforms/boards/nucleo_f767zi.repl", "usart3", roomy=True),
    "nucleo-h743zi": Shipped("platforms/cpus/stm32h743.repl", "usart3"),
    "nrf52840-dk": Shipped("platforms/cpus/nrf52840.repl", ""),
    "arduino-nano-33-ble": Shipped("platforms/cpus/nrf52840.repl", ""),
    "seeed-xiao-nrf52840": Shipped("platforms/cpus/nrf52840.repl", ""),
}


@dataclass(frozen=True)
class Platform:
    """A board in Renode: ``uart`` is the name of ``console`` there, ``own`` if it is the board's.

    ``shipped`` is the file of Renode's own description, empty where there is none.
    """

    board: Board
    cpu: str
    console: Console
    uart: str
    shipped: str
    own: bool

    @property
    def port(self) -> UartPort:
        """How firmware talks there."""
        return UartPort(self.console, SAMPLES)

    def text(self, samples_bytes: int = 0) -> str:
        """The ``.repl``, with room for ``samples_bytes`` at :data:`SAMPLES`."""
        flash, ram = (self.board.mcu.memory(kind) for kind in ("flash", "ram"))
        model, frequency = UARTS[self.console.driver]
        shipped_uart = self.shipped and self.own
        roomy = self.board.name in SHIPPED and SHIPPED[self.board.name].roomy
        waits = {step.address for step in self.console.setup if step.wait}
        return render(
            "emulate/renode/platform.repl.j2",
            title=self.board.title,
            shipped=self.shipped,
            flash_base=flash.base,
            flash_size=_pages(flash.size),
            ram_base=ram.base,
            ram_size=_pages(ram.size),
            clock_hz=self.board.clock_hz,
            cpu=self.cpu,
            uart=self.uart,
            model="" if shipped_uart else model,
            uart_base=self.console.base,
            frequency=self.console.clock_hz if frequency else 0,
            samples_base=SAMPLES,
            samples_size=0 if roomy else _pages(samples_bytes),
            waited=[] if self.shipped else sorted(waits),
        )


def platform(board: Board) -> Platform:
    """``board`` in Renode; raises TQ409 for a core that Renode cannot stand for."""
    require_model(board.mcu.core)
    known, shipped = board.console, SHIPPED.get(board.name, Shipped("", "uart0"))
    own = known is not None and known.ready and known.driver in UARTS and shipped.uart != ""
    console = known if own and known is not None else UART
    name = shipped.uart if own else "uart_tinyq"
    return Platform(board, CPUS[board.mcu.core], console, name, shipped.platform, own)


def require_model(core: str) -> None:
    """Raise TQ409 for a core that Renode cannot stand for."""
    if core not in CPUS:
        raise error(
            "TQ409",
            f"Renode's Helium is incomplete (1.16.1): it cannot stand for '{core}', but for "
            f"{', '.join(CPUS)}",
        )


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
