"""`tinyq flash`: which program is called with what, and UF2 files."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest
from emulated_board import Boards
from typer.testing import CliRunner

from tinyq.cli import app
from tinyq.device.flash import plan_flashing
from tinyq.device.uf2 import elf_segments, uf2_image
from tinyq.errors import TinyqError
from tinyq.target import board_names, load_board

pytestmark = pytest.mark.qemu
# Names that `pyocd list --targets` of pyOCD 0.46 lists as built in.
PYOCD = {
    "microbit-v1": "nrf51", "microbit-v2": "nrf52833", "nrf52840-dk": "nrf52840",
    "seeed-xiao-nrf52840": "nrf52840", "raspberry-pi-pico": "rp2040",
    "raspberry-pi-pico-2": "rp2350", "nucleo-f767zi": "stm32f767zi",
    "nucleo-h743zi": "stm32h743xx", "b-l475e-iot01a": "stm32l475xg",
}  # fmt: skip


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Boards:
    return Boards(tmp_path_factory.mktemp("flash"))


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the PATH; programs that :func:`fake` puts there note their arguments."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def fake(tools: Path, name: str, status: int = 0) -> Path:
    noted = tools / f"{name}.json"
    program = tools / name
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"json.dump(sys.argv[1:], open({str(noted)!r}, 'w'))\n"
        f"print('{name} was here')\nsys.exit({status})\n"
    )
    program.chmod(0o755)
    return noted


def flash(boards: Boards, place: Path, board: str, *options: str) -> tuple[int, dict[str, object]]:
    folder = boards.folder(load_board(board).mcu.core)
    command = ["flash", str(folder), "--board", board, "-o", str(place / "package"), "--json"]
    done = CliRunner().invoke(app, [*command, *options])
    return done.exit_code, json.loads(done.stdout)


def test_pyocd_writes_where_it_knows_the_board(boards: Boards, tools: Path, tmp_path: Path) -> None:
    noted = fake(tools, "pyocd")
    status, report = flash(boards, tmp_path, "nrf52840-dk")
    elf = tmp_path / "package" / "build-device" / "firmware.elf"
    assert status == 0
    assert elf.is_file()
    assert json.loads(noted.read_text()) == ["flash", "--target", "nrf52840", str(elf)]
    assert (report["by"], report["written"]) == ("pyocd", True)


def test_dry_run_builds_and_writes_nothing(boards: Boards, tools: Path, tmp_path: Path) -> None:
    noted = fake(tools, "pyocd")
    status, report = flash(boards, tmp_path, "nrf52840-dk", "--dry-run")
    assert status == 0
    assert not noted.exists()
    assert Path(str(report["image"])).is_file()
    assert report["written"] is False
    assert report["command"][1:3] == ["flash", "--target"]  # type: ignore[index]


def test_the_boards_own_tool_where_pyocd_does_not_know_it(
    boards: Boards, tools: Path, tmp_path: Path
) -> None:
    fake(tools, "pyocd")
    noted = fake(tools, "openocd")
    status, report = flash(boards, tmp_path, "nucleo-f446re", "--firmware", "test")
    assert status == 0
    assert report["by"] == "tool"
    elf = tmp_path / "package" / "build" / "firmware.elf"
    assert json.loads(noted.read_text()) == [
        "-f", "interface/stlink.cfg", "-f", "target/stm32f4x.cfg", "-c",
        f"program {elf} verify reset exit",
    ]  # fmt: skip


def test_a_loader_needs_its_port(boards: Boards, tools: Path, tmp_path: Path) -> None:
    noted = fake(tools, "bossac")
    status, report = flash(boards, tmp_path, "seeed-xiao-samd21")
    assert (status, report["errors"][0]["code"]) == (5, "TQ303")  # type: ignore[index]
    assert not noted.exists()
    status, _ = flash(boards, tmp_path, "seeed-xiao-samd21", "--port", "/dev/ttyACM3")
    image = tmp_path / "package" / "build-device" / "firmware.bin"
    assert status == 0
    assert json.loads(noted.read_text()) == [
        "--port=/dev/ttyACM3", "--erase", "--write", "--verify", "--offset=0x2000", str(image),
        "--reset",
    ]  # fmt: skip


def test_a_tool_that_fails(boards: Boards, tools: Path, tmp_path: Path) -> None:
    fake(tools, "openocd", status=3)
    status, report = flash(boards, tmp_path, "nucleo-f446re")
    problem = report["errors"][0]  # type: ignore[index]
    assert (status, problem["code"]) == (11, "TQ909")
    assert "status 3" in problem["found"]
    assert "openocd was here" in problem["found"]


def test_without_the_tool_the_command_is_printed(boards: Boards, tmp_path: Path) -> None:
    status, report = flash(boards, tmp_path, "teensy-4.1")
    problem = report["errors"][0]  # type: ignore[index]
    assert (status, problem["code"]) == (11, "TQ908")
    image = tmp_path / "package" / "build-device" / "firmware.hex"
    assert image.is_file()
    assert f"teensy_loader_cli --mcu=TEENSY41 -w {image}" in problem["found"]


REFUSED = [
    ("alif-ensemble-e7", (), "TQ908", "--firmware test"),
    ("nrf52840-dk", ("--baud", "7"), "TQ303", "7 baud"),
    ("nucleo-f446re", ("--drive", "."), "TQ908", "no UF2"),
    ("nucleo-h743zi", ("--board", "nothing"), "TQ301", "nothing"),
]


@pytest.mark.parametrize(("board", "options", "code", "text"), REFUSED)
def test_refused(
    boards: Boards, tmp_path: Path, board: str, options: tuple[str, ...], code: str, text: str
) -> None:
    status, report = flash(boards, tmp_path, board, *options)
    problem = report["errors"][0]  # type: ignore[index]
    assert status in (5, 11)
    assert problem["code"] == code
    assert text in problem["found"] + problem["remedy"]


def test_names_are_those_of_pyocd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {
        board.name: board.flasher.pyocd
        for board in map(load_board, board_names())
        if board.flasher is not None and board.flasher.pyocd
    }
    assert named == PYOCD
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in named:
        how = plan_flashing(load_board(name), tmp_path, "PORT")
        assert (how.by, how.available) == ("tool", False)


def parsed(image: bytes, family: int) -> dict[int, int]:
    """Bytes by address of a UF2 file, every block checked."""
    found: dict[int, int] = {}
    blocks = [image[at : at + 512] for at in range(0, len(image), 512)]
    for number, block in enumerate(blocks):
        start = struct.unpack_from("<8I", block)
        assert start[:3] == (0x0A324655, 0x9E5D5157, 0x2000)
        assert start[4:] == (256, number, len(blocks), family)
        assert struct.unpack_from("<I", block, 508)[0] == 0x0AB16F30
        assert start[3] % 256 == 0
        assert not any(block[32 + 256 : 508])
        found.update(enumerate(block[32 : 32 + 256], start[3]))
    return found


UF2 = [board.name for board in map(load_board, board_names()) if board.uf2 is not None]


@pytest.mark.parametrize("name", UF2)
def test_uf2_holds_the_elf(boards: Boards, tmp_path: Path, name: str) -> None:
    (tmp_path / "INFO_UF2.TXT").write_text("UF2 Bootloader\n")
    status, report = flash(boards, tmp_path, name, "--drive", str(tmp_path))
    assert (status, report["by"]) == (0, "uf2")
    board = load_board(name)
    assert board.uf2 is not None
    found = parsed((tmp_path / "firmware.uf2").read_bytes(), board.uf2.family)
    wanted = {
        address + offset: byte
        for address, data in elf_segments(Path(str(report["image"])).with_suffix(".elf"))
        for offset, byte in enumerate(data)
    }
    assert wanted.items() <= found.items()
    assert set(found.values()) > {0xFF}
    assert {found[a] for a in found.keys() - wanted.keys()} <= {0xFF}
    assert board.mcu.memory("flash").base <= min(found)
    assert max(found) < board.flash.end


def test_uf2_of_segments_that_share_a_page() -> None:
    image = uf2_image([(0x1010, b"\1" * 16), (0x1080, b"\2" * 300)], 7)
    found = parsed(image, 7)
    assert sorted(found) == list(range(0x1000, 0x1200))
    assert [found[a] for a in (0x100F, 0x1010, 0x101F, 0x1020, 0x1080, 0x11AB, 0x11AC)] == [
        0xFF, 1, 1, 0xFF, 2, 2, 0xFF,
    ]  # fmt: skip


def test_a_folder_that_is_no_boards_drive(boards: Boards, tmp_path: Path) -> None:
    status, report = flash(boards, tmp_path, "raspberry-pi-pico-2", "--drive", str(tmp_path))
    assert (status, report["errors"][0]["code"]) == (11, "TQ909")  # type: ignore[index]
    with pytest.raises(TinyqError, match="TQ908"):
        plan_flashing(load_board("qemu-mps2-an386"), tmp_path, "PORT")
