"""Scripts for Renode: for which boards, what they name, and that Robot Framework reads them.

Renode itself runs only where it is on the PATH.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import export_models
import onnx
import pytest
from builds import run
from elftools.elf.elffile import ELFFile
from robot.api import TestSuite as RobotSuite

import tinyq
from tinyq.api import export
from tinyq.emulate.renode_platform import SHIPPED
from tinyq.export.renode import supported
from tinyq.target import board_names, load_board

BOARDS = [name for name in board_names() if supported(load_board(name))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("renode")
    onnx.save(export_models.small(), place / "small.onnx")
    made = {}
    for name in BOARDS:
        core = load_board(name).mcu.core
        if not (place / core).exists():
            tinyq.compile(place / "small.onnx", output=place / core, target=core)
        made[name] = export(place / core, "bare", place / name, board=name)
    return made


def test_boards_with_scripts() -> None:
    assert {name for name, shipped in SHIPPED.items() if shipped.uart} <= set(BOARDS)
    assert {"qemu-mps2-an386", "stm32f4-discovery", "nucleo-h743zi", "nucleo-f446re"} <= set(BOARDS)
    # Renode's nRF UART hangs on the registers that the firmware writes; its Helium is incomplete.
    assert not {"nrf52840-dk", "qemu-microbit", "qemu-mps3-an547"} & set(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_scripts_are_of_the_board(name: str, folders: dict[str, Path]) -> None:
    board, place = load_board(name), folders[name] / "renode"
    assert board.console is not None
    platform = (place / "platform.repl").read_text()
    uart = SHIPPED[name].uart if name in SHIPPED else "uart0"
    if name in SHIPPED:
        assert platform.splitlines()[1:] == [f'using "{SHIPPED[name].platform}"']
    else:
        bases = {int(x, 16) for x in re.findall(r"^\w+: .* @ sysbus (0x\w+)$", platform, re.M)}
        memories = {board.mcu.memory(kind).base for kind in ("flash", "ram")}
        assert bases == {*memories, board.console.base, 0xE000E000}
        for kind in ("flash", "ram"):
            memory = board.mcu.memory(kind)
            size = re.search(rf"sysbus 0x{memory.base:08X}\n    size: (0x\w+)", platform)
            assert size is not None
            assert memory.size <= int(size[1], 16) < memory.size + 0x400
        for step in board.console.setup:
            if step.wait:  # a bit that is waited for has to read as set
                assert f"<0x{step.address:08X}, " in platform
    script = (place / "run.resc").read_text()
    assert f"{uart} CreateFileBackend @uart.txt true" in script
    assert script.rstrip().endswith("quit")
    lines = [line for line in script.splitlines() if not line.startswith("#")]
    assert lines[-2] == "cpu ExecutedInstructions"
    assert not any(";" in line for line in lines)


@pytest.mark.parametrize("name", BOARDS)
def test_robot_framework_reads_the_test(name: str, folders: dict[str, Path]) -> None:
    suite = RobotSuite.from_file_system(folders[name] / "renode" / "test.robot")
    (test,) = suite.tests
    called = [step.name for step in test.body]
    assert called.count("Execute Command") == 5
    assert called.index("Create Terminal Tester") < called.index("Start Emulation")
    wait = next(step for step in test.body if step.name == "Wait For Line On Uart")
    assert wait.args[0] == "PASS"
    assert [imported.name for imported in suite.resource.imports] == ["${RENODEKEYWORDS}"]


def test_symbols_and_files_that_the_script_names_exist(folders: dict[str, Path]) -> None:
    package = folders["qemu-mps2-an386"]
    run("make", "-s", "REPORT=uart", cwd=package)
    script = (package / "renode" / "run.resc").read_text()
    for path in re.findall(r"@((?:renode|build-uart)/\S+)", script):
        assert (package / path).is_file(), path
    with (package / "build-uart" / "firmware.elf").open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        for symbol in re.findall(r'GetSymbolAddress "(\w+)"', script):
            assert table.get_symbol_by_name(symbol), symbol


@pytest.mark.skipif(shutil.which("renode") is None, reason="renode is not on the PATH")
@pytest.mark.parametrize("name", ["qemu-mps2-an386", "stm32f4-discovery"])
def test_renode_runs_the_golden_samples(name: str, folders: dict[str, Path]) -> None:
    package = folders[name]
    run("make", "-s", "REPORT=uart", cwd=package)
    done = subprocess.run(
        ["renode", "--plain", "--disable-xwt", "renode/run.resc"], cwd=package, timeout=300,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "There was an error executing command" not in done.stdout
    assert (package / "uart.txt").read_text().split()[-1] == "PASS"
