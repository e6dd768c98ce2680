"""The second stage of an RP2040's boot: encoding, checksum, place, and what it does when run."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

import export_models
import onnx
import pytest
import unicorn
from builds import run
from elftools.elf.elffile import ELFFile
from unicorn import arm_const as arm

import tinyq
from tinyq.api import export
from tinyq.export.second_stage import BYTES, checksum, image, lines

SSI, FLASH, VECTORS, SRAM = 0x18000000, 0x10000000, 0x10000100, 0x20041F00
VTOR, PAGE = 0xE000ED08, 0x1000
STACK, RESET = 0x20042000, 0x10000210


def reversed_bits(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)


def test_checksum_is_that_of_the_data_sheet() -> None:
    """Against zlib's CRC-32, which is the same but reflected and inverted; and a known value."""
    assert checksum(b"123456789") == 0x0376E6E7  # CRC-32/MPEG-2 of the catalogue of CRCs
    for data in (b"", b"\0", bytes(range(256)), image()[:252]):
        mirrored = bytes(reversed_bits(byte, 8) for byte in data)
        assert checksum(data) == reversed_bits(zlib.crc32(mirrored) ^ 0xFFFFFFFF, 32)
    assert struct.unpack_from("<I", image(), 252) == (checksum(image()[:252]),)
    assert len(image()) == BYTES


@pytest.mark.qemu
def test_listing_assembles_to_its_encoding(tmp_path: Path) -> None:
    """The assembler takes nothing but what a Cortex-M0+ has."""
    source = ".syntax unified\n.cpu cortex-m0plus\n.thumb\n"
    (tmp_path / "a.s").write_text(source + "\n".join(line.assembly for line in lines()) + "\n")
    run("arm-none-eabi-as", "-o", "a.o", "a.s", cwd=tmp_path)
    run("arm-none-eabi-objcopy", "-O", "binary", "a.o", "a.bin", cwd=tmp_path)
    code = b"".join(line.code for line in lines())
    assert (tmp_path / "a.bin").read_bytes() == code
    assert len(code) <= 252


def test_it_sets_up_the_ssi_and_starts_the_program() -> None:
    """As the ROM leaves it: copied to the end of SRAM, anything in the registers."""
    engine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
    engine.ctl_set_cpu_model(arm.UC_CPU_ARM_CORTEX_M0)
    ssi = {0x08: 1}  # on, as the ROM used it
    writes: list[int] = []
    tables: list[int] = []

    def write(_: object, offset: int, size: int, value: int, user: object) -> None:
        assert size == 4
        if offset != 0x08:
            assert ssi[0x08] == 0, "registers of the SSI are only written while it is off"
        ssi[offset] = value
        writes.append(offset)

    def read_flash(_: object, kind: int, address: int, size: int, value: int, user: object) -> None:
        assert ssi[0x08] == 1, "flash is read before the SSI is on"
        assert address in (VECTORS, VECTORS + 4)

    def write_system(_: object, offset: int, size: int, value: int, user: object) -> None:
        assert offset == VTOR % PAGE
        tables.append(value)

    engine.mem_map(FLASH, PAGE)
    engine.mem_write(VECTORS, struct.pack("<2I", STACK, RESET | 1))
    engine.mem_map(SRAM & -PAGE, PAGE)
    engine.mem_write(SRAM, image())
    engine.mmio_map(SSI, PAGE, None, None, write, None)
    engine.mmio_map(VTOR & -PAGE, PAGE, None, None, write_system, None)
    engine.hook_add(unicorn.UC_HOOK_MEM_READ, read_flash, begin=FLASH, end=FLASH + PAGE)
    for register in (arm.UC_ARM_REG_R0, arm.UC_ARM_REG_R1, arm.UC_ARM_REG_R2, arm.UC_ARM_REG_R3):
        engine.reg_write(register, 0xDEADBEEF)
    engine.reg_write(arm.UC_ARM_REG_SP, SRAM)
    engine.emu_start(SRAM | 1, RESET, count=100)
    assert engine.reg_read(arm.UC_ARM_REG_PC) == RESET
    assert engine.reg_read(arm.UC_ARM_REG_SP) == STACK
    assert tables == [VECTORS]
    assert (writes[0], writes[-1], writes.count(0x08)) == (0x08, 0x08, 2)
    # Fields as in the list of registers: what goes over the wire for each word that is read.
    control, spi = ssi[0x00], ssi[0xF4]
    assert (control >> 21 & 3, (control >> 16 & 31) + 1, control >> 8 & 3) == (0, 32, 3)
    assert control & ~(3 << 21 | 31 << 16 | 3 << 8) == 0  # mode 0, no loop, no toggling
    assert (spi >> 24, spi >> 8 & 3, 4 * (spi >> 2 & 15), spi >> 11 & 31, spi & 3) == (
        0x03, 2, 24, 0, 0,
    )  # fmt: skip
    assert (ssi[0x04], ssi[0x10]) == (0, 1)
    assert ssi[0x14] % 2 == 0  # an odd divisor is rounded down
    assert 133e6 / ssi[0x14] < 50e6  # what 03h allows on the slowest of the usual chips


@pytest.mark.qemu
def test_firmware_lies_behind_it(tmp_path: Path) -> None:
    onnx.save(export_models.small(), tmp_path / "small.onnx")
    tinyq.compile(tmp_path / "small.onnx", output=tmp_path / "net", target="cortex-m0plus")
    package = export(tmp_path / "net", "bare", tmp_path / "pico", board="raspberry-pi-pico")
    run("make", "-s", cwd=package)
    elf, flat = package / "build" / "firmware.elf", package / "build" / "firmware.bin"
    contents = flat.read_bytes()
    assert contents[:BYTES] == image()
    stack, reset = struct.unpack_from("<2I", contents, BYTES)
    with elf.open("rb") as stream:
        parsed = ELFFile(stream)
        section = parsed.get_section_by_name(".boot2")
        assert (section["sh_addr"], section["sh_size"]) == (FLASH, BYTES)
        assert parsed.get_section_by_name(".text")["sh_addr"] == VECTORS
        (handler,) = parsed.get_section_by_name(".symtab").get_symbol_by_name("Reset_Handler")
    assert reset == handler["st_value"] | 1
    assert stack == 0x20000000 + 264 * 1024
    readme = (package / "README.md").read_text()
    assert "RPI-RP2" in readme
    # A second stage of another size does not link.
    boot = package / "board" / "boot.c"
    boot.write_text(boot.read_text().replace("second_stage[64]", "second_stage[]").replace(
        f"0x{struct.unpack('<I', image()[-4:])[0]:08X}u,", ""))  # fmt: skip
    done = subprocess.run(["make", "-s"], cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "exactly 256 bytes" in done.stderr
