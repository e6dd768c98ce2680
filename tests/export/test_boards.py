"""Every board's firmware is built and measured; where QEMU has a model of the board, it runs."""

from __future__ import annotations

import functools
import json
import re
import struct
import subprocess
import threading
from pathlib import Path

import export_models
import onnx
import pytest
from builds import STRICT, outer_make_forgotten, run
from elftools.elf.elffile import ELFFile
from typer.testing import CliRunner

import tinyq
from tinyq.api import check_board, export
from tinyq.build.fit import START_FLASH, START_STACK, enough
from tinyq.cli import app
from tinyq.errors import TinyqError
from tinyq.export.uart import has_uart
from tinyq.target import Board, board_names, load_board
from tinyq.verification.verify import VerifyOptions

pytestmark = pytest.mark.qemu


@functools.cache
def machines() -> frozenset[str]:
    listed = run("qemu-system-arm", "-M", "help", cwd=Path())
    return frozenset(line.split()[0] for line in listed.splitlines()[1:])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory):
    """Compiled folders of the small network, one a core."""
    place = tmp_path_factory.mktemp("compiled")
    onnx.save(export_models.small(), place / "small.onnx")

    @functools.cache
    def folder(target: str) -> Path:
        tinyq.compile(place / "small.onnx", output=place / target, target=target)
        return place / target

    return folder


def memory_used(elf: Path) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Address ranges that are loaded, and those that are occupied at run time."""
    with elf.open("rb") as stream:
        segments = [s for s in ELFFile(stream).iter_segments() if s["p_type"] == "PT_LOAD"]
        loaded = [(s["p_paddr"], s["p_paddr"] + s["p_filesz"]) for s in segments if s["p_filesz"]]
        run_time = [(s["p_vaddr"], s["p_vaddr"] + s["p_memsz"]) for s in segments]
    return loaded, run_time


def inside(span: tuple[int, int], board: Board) -> bool:
    return any(m.base <= span[0] and span[1] <= m.end for m in (board.flash, board.ram))


UARTS = tuple(name for name in board_names() if has_uart(load_board(name)))


@pytest.mark.parametrize("name", board_names())
def test_bare_firmware_of_every_board(compiled, tmp_path: Path, name: str) -> None:
    board = load_board(name)
    folder = compiled(board.mcu.core)
    export(folder, "bare", tmp_path, board=name, samples=1)
    run("make", f"CFLAGS=-O2 {' '.join(STRICT)}", cwd=tmp_path)
    elf = tmp_path / "build" / "firmware.elf"
    loaded, run_time = memory_used(elf)
    flash = board.flash
    if board.boot == "rp2040":  # 256 bytes for the boot ROM, in front of the program
        for spans in (loaded, run_time):
            spans.remove((flash.base - 256, flash.base))
    # The vector table is the first thing in the program's flash, and everything has its place.
    assert min(low for low, _ in loaded) == flash.base
    assert all(flash.base <= low and high <= flash.end for low, high in loaded)
    assert all(inside(span, board) for span in run_time)
    # What is predicted of the board holds for the firmware: it may only be more.
    fit = check_board(folder, name)
    image = (tmp_path / "build" / "firmware.bin").stat().st_size
    assert fit.footprint.flash_bytes < image < flash.size
    assert fit.fits
    if board.qemu is not None and board.qemu.machine in machines():
        assert run("make", "-s", "run", cwd=tmp_path).endswith("PASS\n")


@pytest.mark.parametrize("name", UARTS)
def test_report_over_the_uart(compiled, tmp_path: Path, name: str) -> None:
    board = load_board(name)
    export(compiled(board.mcu.core), "bare", tmp_path, board=name, samples=1)
    for choice, build in (("REPORT=uart", "build-uart"), ("FIRMWARE=device", "build-device")):
        run("make", choice, f"CFLAGS=-O2 {' '.join(STRICT)}", cwd=tmp_path)
        elf = tmp_path / build / "firmware.elf"
        assert "bkpt" not in run("arm-none-eabi-objdump", "-d", elf, cwd=tmp_path)
    if board.qemu is None or board.qemu.machine not in machines():
        return
    elf = tmp_path / "build-uart" / "firmware.elf"
    command = ["qemu-system-arm", "-M", board.qemu.machine, *board.qemu.args, "-display", "none",
               "-monitor", "none", "-nic", "none", "-nodefaults", "-serial", "stdio", "-kernel",
               str(elf)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as emulator:
        assert emulator.stdout is not None
        limit = threading.Timer(60, emulator.kill)
        limit.start()
        lines = [emulator.stdout.readline() for _ in range(2)]
        limit.cancel()
        emulator.kill()
    assert lines[0].endswith(b"\r\n")
    assert lines[1] == b"PASS\r\n"


def test_boards_whose_uart_is_not_known_report_through_the_probe(compiled, tmp_path: Path) -> None:
    for name in sorted(set(board_names()) - set(UARTS)):
        folder = tmp_path / name
        export(compiled(load_board(name).mcu.core), "bare", folder, board=name, samples=1)
        assert not (folder / "board" / "uart.c").exists()
        assert not (folder / "device").exists()
        assert "No UART is set up" in (folder / "README.md").read_text()


def test_uarts_are_few_that_are_not_known() -> None:
    assert set(board_names()) - set(UARTS) == {"alif-ensemble-e7"}


def test_an_rp2350_finds_its_image_definition(compiled, tmp_path: Path) -> None:
    """RP2350 data sheet: block markers, a last item, a link to itself."""
    export(compiled("cortex-m33"), "bare", tmp_path, board="raspberry-pi-pico-2", samples=1)
    run("make", "-s", "FIRMWARE=device", cwd=tmp_path)
    image = (tmp_path / "build-device" / "firmware.bin").read_bytes()
    words = [word for (word,) in struct.iter_unpack("<I", image[:4096])]
    assert words.count(0xFFFFDED3) == 1
    at = words.index(0xFFFFDED3)
    kind, last, link, end = words[at + 1 : at + 5]
    # IMAGE_TYPE is item 0x42, of one word; its flags: EXE (1), security S (2), Arm (0), RP2350 (1).
    assert kind == 0x42 | 1 << 8 | (1 | 2 << 4 | 0 << 8 | 1 << 12) << 16
    assert (last, link, end) == (0xFF | 1 << 8, 0, 0xAB123579)


FLASHING = [
    ("nucleo-f446re", "openocd -f interface/stlink.cfg -f target/stm32f4x.cfg -c 'program "
     "build/firmware.elf verify reset exit'"),
    ("microbit-v2", "pyocd flash --target nrf52833 build/firmware.elf"),
    ("seeed-xiao-samd21", "bossac --port=/dev/ttyACM0 --erase --write --verify --offset=0x2000 "
     "build/firmware.bin --reset"),
    ("teensy-4.1", "teensy_loader_cli --mcu=TEENSY41 -w build/firmware.hex"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "command"), FLASHING)
def test_flash_command(compiled, tmp_path: Path, name: str, command: str) -> None:
    export(compiled(load_board(name).mcu.core), "bare", tmp_path, board=name)
    planned = run("make", "-n", "flash", cwd=tmp_path).splitlines()
    assert planned[-1] == command


# board, whether its machine has the timer that counts instructions
MACHINES = [
    ("netduinoplus2", True), ("microbit-v1", True), ("olimex-stm32-h405", True),
    ("stm32vldiscovery", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "counts"), MACHINES)
def test_verified_in_the_boards_own_memory_map(compiled, name: str, counts: bool) -> None:
    board = load_board(name)
    assert board.qemu is not None
    if board.qemu.machine not in machines():
        pytest.skip(f"this QEMU has no {board.qemu.machine}")
    report = tinyq.verify(compiled(board.mcu.core), VerifyOptions(random=3, board=name))
    assert report.equal
    assert (report.instructions_per_inference is not None) == counts


def test_board_implies_target_and_limits(tmp_path: Path) -> None:
    onnx.save(export_models.small(), tmp_path / "small.onnx")
    made = tinyq.compile(tmp_path / "small.onnx", output=tmp_path / "net", board="microbit-v1")
    assert made.program.manifest["target"] == "cortex-m0"
    chosen = tinyq.compile(
        tmp_path / "small.onnx", output=tmp_path / "plain", board="nrf52840-dk",
        target="cortex-m4+scalar",
    )  # fmt: skip
    assert chosen.program.manifest["target"] == "cortex-m4+scalar"
    with pytest.raises(TinyqError, match="TQ304"):
        tinyq.compile(
            tmp_path / "small.onnx", output=tmp_path / "x", board="nrf52840-dk", target="cortex-m7"
        )
    with pytest.raises(TinyqError, match="TQ304"):
        check_board(tmp_path / "net", "nrf52840-dk")


def test_too_small_a_board_says_by_how_much(tmp_path: Path) -> None:
    onnx.save(export_models.large(), tmp_path / "large.onnx")
    with pytest.raises(TinyqError) as caught:
        tinyq.compile(tmp_path / "large.onnx", output=tmp_path / "x", board="stm32vldiscovery")
    ram, flash = caught.value.diagnostics
    arena, constants = 12288 + 16, 12288 * 16
    board = load_board("stm32vldiscovery")
    over = arena - (board.ram.size - START_STACK)
    assert (ram.code, flash.code) == ("TQ801", "TQ802")
    assert f"{arena:,} bytes, {over:,} more than" in ram.found
    assert constants > board.flash.size - START_FLASH
    assert not (tmp_path / "x").exists()
    # No other known board has a Cortex-M3 that is large enough.
    for found in (ram, flash):
        assert "Boards with another core that have enough: " in found.remedy
        named = re.findall(r"([\w.-]+) \(", found.remedy)
        assert named
        for name in named:
            larger = load_board(name)
            assert larger.ram.size >= arena + START_STACK
            assert larger.flash.size >= constants + START_FLASH
    tinyq.compile(tmp_path / "large.onnx", output=tmp_path / "net", target="cortex-m3")
    with pytest.raises(TinyqError) as caught:
        check_board(tmp_path / "net", "stm32vldiscovery")
    assert [d.code for d in caught.value.diagnostics] == ["TQ803", "TQ803"]
    assert all("--optimize size" in d.remedy for d in caught.value.diagnostics)
    assert all("have enough: " in d.remedy for d in caught.value.diagnostics)
    for found in caught.value.diagnostics:
        numbers = [int(n.replace(",", "")) for n in _numbers(found.found)]
        has, needs, *parts, over = numbers
        assert needs - has == over
        assert sum(parts) == needs


def test_boards_that_have_enough() -> None:
    assert enough("cortex-m4", 1, 1).startswith("Boards with the same core")
    assert "nucleo-f446re" in enough("cortex-m4", 128 * 1024, 512 * 1024)
    assert "apollo4p-evb" in enough("cortex-m4", 2000 * 1024, 1)
    assert enough("cortex-m7", 2000 * 1024, 1) == (
        "Boards with another core that have enough: apollo4p-evb (cortex-m4)."
    )
    assert enough("cortex-m4", 1 << 30, 1) == "No board that tinyq knows has enough."


def test_compile_says_what_a_board_has_left(tmp_path: Path) -> None:
    onnx.save(export_models.small(), tmp_path / "small.onnx")
    command = ["compile", str(tmp_path / "small.onnx"), "--board", "microbit-v1"]
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "net")])
    assert done.exit_code == 0
    board = load_board("microbit-v1")
    said = re.search(r"arena of ([\d,]+) of 16,384 bytes of RAM \(([\d,]+) left", done.stdout)
    assert said
    arena, left = (int(text.replace(",", "")) for text in said.groups())
    manifest = json.loads((tmp_path / "net" / "manifest.json").read_text())
    assert arena == manifest["arena_bytes"]
    assert arena + left == board.ram.size


def _numbers(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])\d[\d,]*\d|(?<![\w,-])\d(?![\w,])", text.split("' has ")[1])


def test_make_says_when_it_does_not_fit(compiled, tmp_path: Path) -> None:
    export(compiled("cortex-m3"), "bare", tmp_path, board="stm32vldiscovery")
    script = tmp_path / "board" / "link.ld"
    script.write_text(script.read_text().replace("LENGTH = 0x2000", "LENGTH = 0x100"))
    done = subprocess.run(
        ["make", "-s"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=outer_make_forgotten(),
    )  # fmt: skip
    assert done.returncode != 0
    assert "overflowed" in done.stderr or "will not fit" in done.stderr
