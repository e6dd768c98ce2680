"""The second stage of an RP2040's boot: what its ROM reads from the first 256 bytes of flash.

The ROM copies them to SRAM, checks the CRC in the last four, and jumps to the first (RP2040 data
sheet, Bootrom: Flash Second Stage). The code sets up the SSI, so that flash appears at 0x10000000,
and starts the program by the vector table behind it. Reads are those of the command 03h with an
address of 24 bits, which every flash chip knows; the SPI clock is a quarter of the core's.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 256
_CODE_BYTES = BYTES - 4
_POLYNOMIAL = 0x04C11DB7

# Encoding and assembly; the tests assemble the second column and compare. It runs wherever it lies.
# Registers: RP2040 data sheet, SSI, list of registers, from 0x18000000; VTOR: Armv6-M, 0xE000ED08.
_LISTING = """
4b0b     | ldr  r3, ssi          | SSI, at 0x18000000
2000     | movs r0, #0           |
6098     | str  r0, [r3, #0x08]  | SSIENR: off, as the others may only be written then
2104     | movs r1, #4           |
6159     | str  r1, [r3, #0x14]  | BAUDR: the core's clock / 4
490a     | ldr  r1, ctrlr0       |
6019     | str  r1, [r3, #0x00]  | CTRLR0: one bit a clock, 32 clocks a frame, TMOD EEPROM_READ
6058     | str  r0, [r3, #0x04]  | CTRLR1: one frame
2101     | movs r1, #1           |
6119     | str  r1, [r3, #0x10]  | SER: the flash is selected
22f4     | movs r2, #0xf4        |
18d2     | adds r2, r2, r3       |
4807     | ldr  r0, spi_ctrlr0   |
6010     | str  r0, [r2]         | SPI_CTRLR0: command 03h of 8 bits, address of 24, no wait
6099     | str  r1, [r3, #0x08]  | SSIENR: on; flash is there from now on
4807     | ldr  r0, vtor         |
4907     | ldr  r1, vectors      |
6001     | str  r1, [r0]         | VTOR: the program's vector table
680a     | ldr  r2, [r1]         |
f3828808 | msr  msp, r2          | its stack
684a     | ldr  r2, [r1, #4]     |
4710     | bx   r2               | its reset handler
46c0     | nop                   |
18000000 | ssi: .word 0x18000000        |
001f0300 | ctrlr0: .word 0x001f0300     |
03000218 | spi_ctrlr0: .word 0x03000218 |
e000ed08 | vtor: .word 0xe000ed08       |
10000100 | vectors: .word 0x10000100    |
"""


@dataclass(frozen=True)
class Line:
    """One instruction or word: its bytes, its assembly, and what it is for."""

    code: bytes
    assembly: str
    comment: str


def lines() -> tuple[Line, ...]:
    """The code, in order."""
    return tuple(_line(*text.split("|")) for text in _LISTING.strip().splitlines())


def _line(encoded: str, assembly: str, comment: str) -> Line:
    halves = [int(encoded.strip()[k : k + 4], 16) for k in range(0, len(encoded.strip()), 4)]
    if ".word" in assembly:  # an instruction of 32 bits has its first half first, a word has not
        halves.reverse()
    code = b"".join(half.to_bytes(2, "little") for half in halves)
    return Line(code, " ".join(assembly.split()), comment.strip())


def image() -> bytes:
    """The 256 bytes: code, zeros, checksum."""
    code = b"".join(line.code for line in lines())
    if len(code) > _CODE_BYTES:
        raise ValueError(f"the second stage has {len(code)} bytes, more than {_CODE_BYTES}")
    padded = code.ljust(_CODE_BYTES, b"\0")
    return padded + checksum(padded).to_bytes(4, "little")


def checksum(data: bytes) -> int:
    """CRC-32 as the ROM computes it: not reflected, from 0xFFFFFFFF, without a final inversion."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (_POLYNOMIAL if crc >> 31 else 0)) & 0xFFFFFFFF
    return crc


def words() -> tuple[int, ...]:
    """The image as 64 little-endian words."""
    whole = image()
    return tuple(int.from_bytes(whole[k : k + 4], "little") for k in range(0, BYTES, 4))
