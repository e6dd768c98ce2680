"""What bare firmware writes to the registers of a UART, against the pins and rates it is for."""

from __future__ import annotations

import re

import pytest

from tinyq.build.uart import DRIVERS, uart_source
from tinyq.build.uart import divisor as uart_divisor
from tinyq.errors import TinyqError
from tinyq.target import Board, board_names, load_board

BOARDS = [b for b in map(load_board, board_names()) if b.console is not None and b.console.ready]

# board, baud rate, value of the register as the reference manual's tables or formulas give it
DIVISORS = [
    # nRF51 Series Reference Manual and nRF52 Product Specifications, BAUDRATE
    ("microbit-v1", 9600, 0x00275000),
    ("microbit-v1", 115200, 0x01D7E000),
    ("nrf52840-dk", 1000000, 0x10000000),
    # RM0090, error calculation at f_PCLK = 16 MHz, oversampling by 16: 8.6875 for 115.2 kBps
    ("stm32f4-discovery", 115200, round(8.6875 * 16)),
    ("stm32f4-discovery", 9600, round(104.1875 * 16)),
    # RM0041: 4.3125 at 8 MHz, in sixteenths
    ("stm32vldiscovery", 115200, 69),
    # RM0432, LPUART: 256 f_CK / baud
    ("nucleo-l4r5zi", 9600, 106667),
    # RP2040 data sheet, UART baud rate: 12 MHz / (16 * 115200) = 6.510 = 6 + 33/64
    ("raspberry-pi-pico", 115200, 6 * 64 + 33),
    # DS40001882, SERCOM USART asynchronous arithmetic: 65536 (1 - 16 * 9600 / 8 MHz)
    ("seeed-xiao-samd21", 9600, 64278),
    ("teensy-4.1", 115200, 13),
    ("qemu-mps2-an385", 115200, 217),
    # Apollo4 Plus register reference, IBRD and FBRD: 24 MHz / (16 * 115200) = 13.02 = 13 + 1/64
    ("apollo4p-evb", 115200, 13 * 64 + 1),
    # FSP, r_sci_b_uart.c: clock / (coefficient * baud) - 1, 16 for BGDM alone: 9.85 and 129.2
    ("ek-ra8m1", 115200, 10),
    ("ek-ra8m1", 9600, 129),
]


def divisor(board: Board, baud: int) -> int:
    assert board.console is not None
    return uart_divisor(board.title, board.console, baud)


@pytest.mark.parametrize(("name", "baud", "value"), DIVISORS)
def test_baud_rate_register(name: str, baud: int, value: int) -> None:
    assert divisor(load_board(name), baud) == value


BAD = [("nucleo-l4r5zi", 3_000_000), ("stm32vldiscovery", 921_600), ("teensy-4.1", 0),
       ("microbit-v1", -5), ("seeed-xiao-samd21", 1_000_000)]  # fmt: skip


@pytest.mark.parametrize(("name", "baud"), BAD)
def test_baud_rate_that_the_clock_does_not_give(name: str, baud: int) -> None:
    with pytest.raises(TinyqError, match="TQ303"):
        divisor(load_board(name), baud)


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.name)
def test_every_uart_has_a_driver_and_sources(board: Board) -> None:
    console = board.console
    assert console is not None
    assert console.driver in DRIVERS
    assert divisor(board, 115_200) > 0
    assert console.verified.startswith(("QEMU", "never run on hardware"))
    assert console.verified.startswith("QEMU") == (
        board.qemu is not None and board.name != "olimex-stm32-h405"
    )
    # Reading a register that is waited for, or changing one, is said in words.
    assert all(step.what for step in console.setup)


STM32 = [b for b in BOARDS if b.console is not None and re.match(r"stm32-.*", b.console.driver)
         and b.name != "stm32vldiscovery"]  # fmt: skip
GPIO_BASES = {
    "stm32f405rg": 0x40020000, "stm32f407vg": 0x40020000, "stm32f446re": 0x40020000,
    "stm32f767zi": 0x40020000, "stm32h743zi": 0x58020000, "stm32l475vg": 0x48000000,
    "stm32l4r5zi": 0x48000000, "stm32l552ze": 0x42020000, "stm32u575zi": 0x42020000,
}  # fmt: skip


@pytest.mark.parametrize("board", STM32, ids=lambda b: b.name)
def test_pins_of_an_stm32(board: Board) -> None:
    """GPIO ports are 0x400 apart: MODER 0x00, PUPDR 0x0C, AFRL 0x20, AFRH 0x24; four bits a pin."""
    console = board.console
    assert console is not None
    written = {step.address: step for step in console.setup}
    alternate = 8 if console.driver == "stm32-lpuart" else 7
    pins = []
    for name in (console.tx, console.rx):
        port, pin = name[1], int(name[2:])
        pins.append(pin)
        gpio = GPIO_BASES[board.mcu.name] + 0x400 * (ord(port) - ord("A"))
        function = written[gpio + 0x20 + 4 * (pin // 8)]
        shift = 4 * (pin % 8)
        assert (function.clear >> shift & 15, function.set >> shift & 15) == (15, alternate)
        mode = written[gpio]
        assert (mode.clear >> 2 * pin & 3, mode.set >> 2 * pin & 3) == (3, 2)
    assert mode.clear == sum(3 << 2 * pin for pin in pins)
    pull = written[gpio + 0x0C]
    assert (pull.clear, pull.set) == (3 << 2 * pins[1], 1 << 2 * pins[1])
    # The port's clock comes on before its registers are written.
    clock = next(k for k, step in enumerate(console.setup) if f"clock of GPIO{port}" in step.what)
    assert console.setup[clock].set == 1 << (ord(port) - ord("A"))
    assert all(step.address != gpio for step in console.setup[:clock])


NRF = [b for b in BOARDS if b.console is not None and b.console.driver == "nrf-uart"]


@pytest.mark.parametrize("board", NRF, ids=lambda b: b.name)
def test_pins_of_an_nrf(board: Board) -> None:
    console = board.console
    assert console is not None
    written = {step.address: step.set for step in console.setup if step.write}
    for name, select, configured in ((console.tx, 0x50C, 1), (console.rx, 0x514, 0xC)):
        port, pin = map(int, name[1:].split("."))
        assert written[console.base + select] == 32 * port + pin
        assert written[0x50000000 + 0x300 * port + 0x700 + 4 * pin] == configured


def test_pins_of_an_apollo4() -> None:
    """PINCFG registers are four bytes apart; both pins' function 4 is UART0's."""
    board = load_board("apollo4p-evb")
    console = board.console
    assert console is not None
    steps = [step.address for step in console.setup]
    written = {step.address: step.set for step in console.setup if step.write and step.set}
    for name in (console.tx, console.rx):
        pin = written[0x40010000 + 4 * int(name.removeprefix("GPIO"))]
        assert pin & 15 == 4
    # Power comes first; pins are only written between the key and its removal.
    assert steps[:2] == [0x40021004, 0x40021008]
    assert (steps[2], steps[-1], written[0x40010200]) == (0x40010200, 0x40010200, 0x73)
    text = uart_source(board.title, console)
    assert text.count("0x18u;") == 1  # CLKEN and 24 MHz before the divisors
    assert text.index("0x18u;") < text.index("+ 0x24u") < text.index("0x319u;")


def test_pins_and_clock_of_an_ra8() -> None:
    """PFS: ports are 0x40 apart, pins 4; PSEL (28:24) is 5 for SCI9; PMR, bit 16, comes last."""
    console = load_board("ek-ra8m1").console
    assert console is not None
    for name in (console.tx, console.rx):
        register = 0x40400800 + 0x40 * int(name[1], 16) + 4 * int(name[2:])
        first, then = (step.set for step in console.setup if step.address == register)
        assert (first >> 24, then ^ first) == (5, 1 << 16)
    assert console.base == 0x40358000 + 0x100 * 9
    stop = next(step for step in console.setup if step.address == 0x40203004)
    assert stop.clear == 1 << (31 - 9)
    # Every lock is closed again: PRCR with its key, PWPRS with B0WI.
    last = {step.address: step.set for step in console.setup if step.write}
    assert (last[0x4001E3FA], last[0x40400D14]) == (0xA500, 0x80)
    # SCICLK stands still while its source changes, and runs before SCI9 is used.
    clock = [step for step in console.setup if step.address == 0x4001E055]
    assert [bool(s.set & 0x40 or s.clear & 0x40 or s.wait or s.gone) for s in clock] == [True] * 5
    assert (clock[2].set & 15, clock[-1].gone) == (3, 0x80)
