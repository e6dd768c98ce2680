"""Cores, microcontrollers and boards read from TOML."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tinyq.errors import TinyqError
from tinyq.resources import data_dir
from tinyq.target import (
    RegisterStep,
    board_names,
    core_names,
    load_board,
    load_core,
    load_mcu,
    mcu_names,
    read_board,
    read_core,
    read_mcu,
)

CORES = (
    "cortex-m0",
    "cortex-m0plus",
    "cortex-m3",
    "cortex-m4",
    "cortex-m7",
    "cortex-m33",
    "cortex-m55",
    "cortex-m85",
)


def test_all_cores_are_listed_smallest_first() -> None:
    assert core_names() == CORES


# target, core, isa, MULS cycles, architecture, machine that stands for it
TARGETS = [
    ("cortex-m0", "cortex-m0", "scalar", 1, "armv6-m", "microbit"),
    ("cortex-m0+mul32", "cortex-m0", "scalar", 32, "armv6-m", "microbit"),
    ("cortex-m0+scalar", "cortex-m0", "scalar", 1, "armv6-m", "microbit"),
    ("cortex-m0+", "cortex-m0plus", "scalar", 1, "armv6-m", "microbit"),
    ("cortex-m0++mul32", "cortex-m0plus", "scalar", 32, "armv6-m", "microbit"),
    ("cortex-m0plus", "cortex-m0plus", "scalar", 1, "armv6-m", "microbit"),
    ("Cortex-M3", "cortex-m3", "scalar", 1, "armv7-m", "mps2-an385"),
    ("cortex-m4", "cortex-m4", "dsp", 1, "armv7e-m", "mps2-an386"),
    ("cortex-m4+scalar", "cortex-m4", "scalar", 1, "armv7e-m", "mps2-an386"),
    ("m7", "cortex-m7", "dsp", 1, "armv7e-m", "mps2-an500"),
    ("cortex-m33", "cortex-m33", "dsp", 1, "armv8-m.main", "mps2-an505"),
    ("cortex-m55", "cortex-m55", "mve", 1, "armv8.1-m.main", "mps3-an547"),
    ("cortex-m55+dsp", "cortex-m55", "dsp", 1, "armv8.1-m.main", "mps3-an547"),
    ("m85", "cortex-m85", "mve", 1, "armv8.1-m.main", "mps3-an547"),
]


@pytest.mark.parametrize(("target", "name", "isa", "mul", "arch", "machine"), TARGETS)
def test_target_string(target: str, name: str, isa: str, mul: int, arch: str, machine: str) -> None:
    core = load_core(target)
    assert (core.name, core.isa, core.mul_cycles, core.architecture) == (name, isa, mul, arch)
    assert (core.dsp, core.mve) == (isa != "scalar", isa == "mve")
    assert load_core(core.target) == core
    board = load_board(core.board)
    assert board.qemu is not None
    assert board.qemu.machine == machine


@pytest.mark.parametrize("name", CORES)
def test_emulated_board_carries_the_core(name: str) -> None:
    carried = load_board(load_core(name).board).mcu.core
    # QEMU has no Cortex-M0+, whose instructions are the Cortex-M0's, and no Cortex-M85, for which
    # the Cortex-M55's code is compiled.
    stand_ins = {"cortex-m0plus": "cortex-m0", "cortex-m85": "cortex-m55"}
    assert carried == stand_ins.get(name, name)


UNKNOWN = [
    ("cortex-m5", "cortex-m"),
    ("", "tinyq targets"),
    ("cortex-m4+helium", "helium"),
    ("cortex-m3+dsp", "scalar"),
    ("cortex-m4+mul32", "1"),
    ("cortex-m4+mul", "mul"),
]


@pytest.mark.parametrize(("target", "hint"), UNKNOWN)
def test_unknown_target_is_refused(target: str, hint: str) -> None:
    with pytest.raises(TinyqError, match="TQ301") as caught:
        load_core(target)
    assert hint in str(caught.value)
    assert caught.value.exit_status == 5


@pytest.mark.parametrize("load", [load_board, load_mcu])
def test_unknown_board_is_refused(load: object) -> None:
    with pytest.raises(TinyqError, match="TQ301"):
        load("nucleo-x")  # type: ignore[operator]


# board, core, first address and KiB of flash for programs, the same of RAM: from the makers' sheets
BOARDS = [
    ("stm32f4-discovery", "cortex-m4", 0x08000000, 1024, 0x20000000, 128),
    ("nucleo-l4r5zi", "cortex-m4", 0x08000000, 2048, 0x20000000, 640),
    ("nucleo-f446re", "cortex-m4", 0x08000000, 512, 0x20000000, 128),
    ("nucleo-h743zi", "cortex-m7", 0x08000000, 2048, 0x24000000, 512),
    ("nucleo-f767zi", "cortex-m7", 0x08000000, 2048, 0x20000000, 512),
    ("nucleo-l552ze-q", "cortex-m33", 0x08000000, 512, 0x20000000, 256),
    ("nucleo-u575zi-q", "cortex-m33", 0x08000000, 2048, 0x20000000, 768),
    ("b-l475e-iot01a", "cortex-m4", 0x08000000, 1024, 0x20000000, 96),
    ("nrf52840-dk", "cortex-m4", 0x00000000, 1024, 0x20000000, 256),
    ("arduino-nano-33-ble", "cortex-m4", 0x00010000, 960, 0x20000000, 256),
    ("microbit-v1", "cortex-m0", 0x00000000, 256, 0x20000000, 16),
    ("microbit-v2", "cortex-m4", 0x00000000, 512, 0x20000000, 128),
    ("raspberry-pi-pico", "cortex-m0plus", 0x10000100, 2047, 0x20000000, 264),
    ("raspberry-pi-pico-2", "cortex-m33", 0x10000000, 4096, 0x20000000, 520),
    ("seeed-xiao-samd21", "cortex-m0plus", 0x00002000, 248, 0x20000000, 32),
    ("seeed-xiao-nrf52840", "cortex-m4", 0x00027000, 868, 0x20000000, 256),
    ("teensy-4.1", "cortex-m7", 0x60002000, 7928, 0x20200000, 512),
    ("apollo4p-evb", "cortex-m4", 0x00018000, 1952, 0x10000000, 2816),
    ("netduinoplus2", "cortex-m4", 0x08000000, 1024, 0x20000000, 128),
    ("olimex-stm32-h405", "cortex-m4", 0x08000000, 1024, 0x20000000, 128),
    ("stm32vldiscovery", "cortex-m3", 0x08000000, 128, 0x20000000, 8),
    ("ek-ra8m1", "cortex-m85", 0x02000000, 2016, 0x22000000, 896),
    ("alif-ensemble-e7", "cortex-m55", 0x80000000, 5632, 0x20000000, 1024),
    ("qemu-mps3-an547", "cortex-m55", 0x10000000, 512, 0x31000000, 2048),
]


@pytest.mark.parametrize(("name", "core", "flash", "flash_kib", "ram", "ram_kib"), BOARDS)
def test_board_memories(
    name: str, core: str, flash: int, flash_kib: int, ram: int, ram_kib: int
) -> None:
    board = load_board(name)
    assert board.mcu.core == core
    assert (board.flash.base, board.flash.size // 1024) == (flash, flash_kib)
    assert (board.ram.base, board.ram.size) == (ram, ram_kib * 1024)


def test_every_file_is_valid_and_every_number_has_a_source() -> None:
    for board in map(load_board, board_names()):
        assert board.mcu.core in CORES
        assert board.source
    for mcu in map(load_mcu, mcu_names()):
        assert all(memory.source for memory in mcu.memories)


# folder, file, text to replace, replacement, what the message says
BAD = [
    ("cores", "cortex-m4", "architecture =", "architektur =", "'architecture' is missing"),
    ("cores", "cortex-m4", "load = 2", "load = -2", "negative"),
    ("cores", "cortex-m4", "load = 2", 'load = "2"', "not of type float"),
    ("cores", "cortex-m4", "default_isa", "x = 1\ndefault_isa", "unknown field 'x'"),
    ("cores", "cortex-m4", 'fpu = "single"', 'fpu = "half"', "not one of none, single, double"),
    ("cores", "cortex-m4", 'name = "cortex-m4"', 'name = "cortex-m5"', "not the file's name"),
    ("cores", "cortex-m4", "[features]", "[features", "cannot be read"),
    ("mcus", "mps2-an386", 'kind = "ram"', 'kind = "flash"', "no memory of kind 'ram'"),
    ("mcus", "mps2-an386", 'kind = "ram"', 'kind = "rom"', "not one of flash, ram"),
    ("mcus", "mps2-an386", "base = 0x20000000", "base = 0x00010000", "overlap"),
    ("mcus", "mps2-an386", "size = 0x400000", "size = 0", "below 1"),
    ("boards", "qemu-mps2-an386", "[qemu.timer]", "[qemu.clock]", "unknown field 'clock'"),
    (
        "boards",
        "arduino-nano-33-ble",
        "flash_offset = 0x10000",
        "flash_offset = 0x100000",
        "beyond",
    ),
    ("boards", "qemu-mps2-an386", "args = []", "args = [1]", "not a list of strings"),
    ("boards", "nucleo-f446re", "0x40023830", "0x40023831", "no register of 32 bits"),
    ("boards", "nucleo-f446re", "set = 0x7700", "bits = 8, set = 0x7700", "wider than 8 bits"),
    ("boards", "nucleo-f446re", "set = 0x7700", "wait = 1", "either 'wait'"),
    ("boards", "nucleo-f446re", "set = 0x7700", "write = 1", "either 'wait'"),
    ("boards", "nucleo-f446re", "verified =", "# verified =", "needs 'verified'"),
]


@pytest.mark.parametrize(("folder", "name", "old", "new", "found"), BAD)
def test_bad_file_is_refused(
    tmp_path: Path, folder: str, name: str, old: str, new: str, found: str
) -> None:
    text = (data_dir("targets") / folder / f"{name}.toml").read_text()
    assert old in text
    file = tmp_path / f"{name}.toml"
    file.write_text(text.replace(old, new))
    read = {
        "cores": read_core,
        "mcus": read_mcu,
        "boards": functools.partial(read_board, find_mcu=load_mcu),
    }
    with pytest.raises(TinyqError, match="TQ302") as caught:
        read[folder](file)
    assert found in str(caught.value)


def test_real_board_with_probe_and_console(tmp_path: Path) -> None:
    file = tmp_path / "some-board.toml"
    file.write_text(
        """
        name = "some-board"
        title = "A board"
        mcu = "mps2-an386"
        source = "its user manual"
        clock_hz = 80_000_000
        [console]
        driver = "stm32-usart"
        base = 0x40004400
        source = "reference manual"
        clock_hz = 16_000_000
        core_hz = 8_000_000
        tx = "PA2"
        rx = "PA3"
        verified = "never run on hardware"
        setup = [
          { what = "a write", address = 0x40000002, bits = 16, write = 0 },
          { what = "a change", address = 0x40000004, clear = 6, set = 1 },
          { what = "a wait", address = 0x40000009, bits = 8, wait = 0x80 },
        ]
        [flasher]
        probe = "st-link"
        command = ["st-flash", "write", "{file}", "0x8000000"]
        source = "user manual"
        """
    )
    board = read_board(file, load_mcu)
    assert board.clock_hz == 80_000_000
    assert board.console is not None
    assert board.console.ready
    assert (board.console.tx, board.console.rx, board.console.core_hz) == ("PA2", "PA3", 8_000_000)
    assert board.console.setup == (
        RegisterStep("a write", 0x40000002, bits=16, write=True),
        RegisterStep("a change", 0x40000004, clear=6, set=1),
        RegisterStep("a wait", 0x40000009, bits=8, wait=0x80),
    )
    assert board.flasher is not None
    assert board.flasher.command[0] == "st-flash"
    assert board.qemu is None
