"""The runner for Renode: firmware over a UART in QEMU, scripts, counts, and what can go wrong.

Renode cannot be installed from a registry of packages: ``fake_renode.py`` stands in for it, and the
last test runs the real one where it is on the PATH.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zlib
from pathlib import Path

import fake_renode
import numpy as np
import pytest
from fake_network import MASK, asm_loop, write_fake
from numpy.typing import NDArray
from typer.testing import CliRunner

import tinyq
from tinyq.build import Artifact, build_firmware
from tinyq.build.process import Completed, run_until
from tinyq.cli import app
from tinyq.emulate import NetworkRun, RunOptions, choose, renode, run_everywhere, run_network
from tinyq.emulate.renode_platform import CPUS, SAMPLES, SAMPLES_ROOM, SHIPPED, UART, platform
from tinyq.emulate.trace import read_outputs
from tinyq.emulate.unicorn import TIMER
from tinyq.errors import TinyqError
from tinyq.target import board_names, core_names, load_board, load_core

pytestmark = pytest.mark.qemu

Pair = list[NDArray[np.generic]]


def draw(count: int) -> Pair:
    rng = np.random.default_rng(20)
    return [rng.integers(-128, 128, (count, size), dtype=np.int8) for size in (8, 4)]


def expected(samples: Pair) -> NDArray[np.int8]:
    first, second = (array.astype(np.int16) for array in samples)
    return (first + np.tile(second, 2)).astype(np.int8) ^ np.array(MASK, np.uint8).view(np.int8)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``renode`` that is named by the variable."""
    program = tmp_path / "renode"
    program.write_text(f'#!/bin/sh\n{sys.executable} {fake_renode.__file__} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("RENODE", str(program))
    return program


def firmware(folder: Path, board: str, body: str = "", *, profile: bool = False) -> Artifact:
    found = load_board(board)
    network = write_fake(folder / "net", body)
    return build_firmware(
        network, load_core(found.mcu.core), found, folder / "out", profile=profile,
        uart=platform(found).port,
    )  # fmt: skip


def on_qemu(artifact: Artifact, samples: Pair, folder: Path) -> bytes:
    """What the UART of QEMU's machine received from the firmware that is made for Renode."""
    assert artifact.board is not None
    assert artifact.board.qemu is not None
    (folder / "samples.bin").write_bytes(renode.samples_memory(artifact, samples))
    sent = folder / "uart.txt"
    command = [
        os.environ.get("TINYQ_QEMU") or "qemu-system-arm", "-M", artifact.board.qemu.machine,
        "-display", "none", "-monitor", "none", "-nodefaults", "-serial", f"file:{sent}",
        "-device", f"loader,file={folder / 'samples.bin'},addr={SAMPLES:#x},force-raw=on",
        "-kernel", str(artifact.executable),
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            while not (sent.exists() and b"\nEXIT " in sent.read_bytes()[:-9]):
                assert time.monotonic() < end, sent.read_bytes()
                time.sleep(0.02)
        finally:
            process.kill()
    return sent.read_bytes()


@pytest.mark.parametrize("board", ["qemu-mps2-an385", "qemu-mps2-an386"])
@pytest.mark.parametrize("profile", [False, True])
def test_qemu_runs_the_very_elf(tmp_path: Path, board: str, profile: bool) -> None:
    """The firmware's side: samples from memory, lines, lengths, CRC, and its end."""
    artifact, samples = firmware(tmp_path, board, profile=profile), draw(9)
    lines = on_qemu(artifact, samples, tmp_path).decode("ascii").splitlines()
    assert lines[-3].startswith("END ")
    assert lines[-2:] == ["PASS", "EXIT 00000000"]
    trace = read_outputs(renode.outputs_of(lines), artifact, "qemu", 0.0, None)
    assert trace.samples == 9
    assert np.array_equal(trace.outputs[0], expected(samples))
    assert (trace.layers is not None) == profile
    assert (trace.stack_bytes is None) == profile


def test_firmware_that_finds_other_samples_says_so(tmp_path: Path) -> None:
    artifact, samples = firmware(tmp_path, "qemu-mps2-an386"), draw(2)
    whole = renode.samples_memory(artifact, samples)
    for number, contents in enumerate((b"", whole[:-1], whole[:20] + b"?" + whole[21:])):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(renode, "samples_memory", lambda *_, made=contents: made)
            lines = on_qemu(artifact, samples, folder).decode("ascii").splitlines()
        assert lines == ["FAIL cannot read samples.bin", "EXIT 00000001"]


def beside_qemu(folder: Path, target: str) -> tuple[NetworkRun, ...]:
    network = dataclasses.replace(write_fake(folder, asm_loop(9, 4)), target=target)
    return run_everywhere(network, draw(5), RunOptions(emulator="qemu,renode", layers=True))


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("target", ["cortex-m0plus", "cortex-m4", "cortex-m33"])
def test_counts_are_qemus(tmp_path: Path, target: str) -> None:
    """Marks around empty calls, hooks and inferences give what QEMU's timer gives."""
    qemu, ours = (run.trace for run in beside_qemu(tmp_path / "net", target))
    assert (qemu.emulator, ours.emulator) == ("qemu", "renode")
    assert ours.instructions_per_inference is not None
    assert ours.instructions_per_inference == qemu.instructions_per_inference
    assert ours.layer_instructions == qemu.layer_instructions
    assert ours.stack_bytes == qemu.stack_bytes
    assert np.array_equal(ours.outputs[0], expected(draw(5)))
    assert ours.layers is not None
    assert qemu.layers is not None
    assert all(np.array_equal(ours.layers[name], qemu.layers[name]) for name in ("add", "xor"))


BOARDS = ["stm32f4-discovery", "nucleo-f767zi", "nucleo-h743zi", "nrf52840-dk", "raspberry-pi-pico",
          "apollo4p-evb", "teensy-4.1"]  # fmt: skip


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", BOARDS)
def test_boards_with_their_own_memories_and_uart(tmp_path: Path, name: str) -> None:
    board = load_board(name)
    network = dataclasses.replace(write_fake(tmp_path / "net"), target=board.mcu.core)
    run = run_network(network, draw(3), RunOptions(emulator="renode", board=name))
    assert run.artifact.board == board
    assert run.trace.instructions_per_inference is not None
    assert np.array_equal(run.trace.outputs[0], expected(draw(3)))


def test_platforms() -> None:
    """Renode's own where there is one; the board's UART where Renode has its model."""
    found = {name: platform(load_board(name)) for name in board_names() if _stands_for(name)}
    shipped = {name: where.shipped for name, where in found.items() if where.shipped}
    assert shipped == {name: SHIPPED[name].platform for name in SHIPPED}
    lines = found["stm32f4-discovery"].text().splitlines()
    assert lines[1:] == ['using "platforms/boards/stm32f4_discovery.repl"']
    assert {name for name, where in found.items() if not where.own} >= {
        "nrf52840-dk", "teensy-4.1", "seeed-xiao-samd21", "qemu-microbit",
    }  # fmt: skip
    for name in ("nrf52840-dk", "teensy-4.1"):
        text = found[name].text(5000)
        assert "uart_tinyq: UART.CMSDK_APB_UART @ sysbus 0x58200000" in text
        assert "samples: Memory.MappedMemory @ sysbus 0x21000000\n    size: 0x00001400" in text
    assert not {"qemu-mps3-an547", "ek-ra8m1", "alif-ensemble-e7"} & set(found)


def _stands_for(board: str) -> bool:
    return load_board(board).mcu.core in CPUS


def test_addresses_that_no_board_uses() -> None:
    for board in map(load_board, board_names()):
        bases = [memory.base for memory in board.mcu.memories]
        ends = [memory.end for memory in board.mcu.memories]
        for low, high in ((SAMPLES, SAMPLES + SAMPLES_ROOM), (UART.base, UART.base + 0x1000)):
            assert all(high <= base or end <= low for base, end in zip(bases, ends, strict=True))
        console = board.console
        assert console is None or abs(console.base - UART.base) >= 0x1000
    assert abs(UART.base - TIMER.base) >= 0x1000


@pytest.mark.usefixtures("fake")
def test_more_samples_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, samples = write_fake(tmp_path / "net", asm_loop(9, 4)), draw(3)
    options = RunOptions(emulator="renode", layers=True)
    whole = run_network(network, samples, options).trace
    monkeypatch.setattr(renode, "SAMPLES_ROOM", 20 + 2 * 12)  # two samples at a time
    parts = run_network(network, samples, options).trace
    assert (parts.samples, parts.stack_bytes) == (3, whole.stack_bytes)
    assert np.array_equal(parts.outputs[0], whole.outputs[0])
    assert parts.instructions_per_inference == whole.instructions_per_inference
    assert parts.layer_instructions == whole.layer_instructions
    assert parts.layers is not None
    assert whole.layers is not None
    assert np.array_equal(parts.layers["xor"], whole.layers["xor"])


# what happens, what the message says
FAILURES = [
    ("silent", "ended with status 0 before the firmware did"),
    ("machine LoadPlatformDescription", "There was an error executing command 'machine Load"),
    ("sysbus LoadELF", "Could not do that"),
    ("uart0 CreateFileBackend", "There was an error executing command"),
    ("cpu AddHook", "There was an error executing command 'cpu AddHook"),
    ("short samples", "FAIL cannot read samples.bin"),
    ("truncate", "before the firmware did"),
    ("flip", "did not carry whole lines"),
    ("lose a mark", "counts of instructions are too few"),
]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("mode", "found"), FAILURES)
def test_failures_of_renode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, found: str
) -> None:
    """Its exit status is 0 in all of them, and after an error it waits for commands."""
    monkeypatch.setenv("FAKE_RENODE", mode)
    with pytest.raises(TinyqError, match="TQ404") as caught:
        run_network(
            write_fake(tmp_path / "net"), draw(4), RunOptions(emulator="renode", timeout=300)
        )
    assert found in str(caught.value)


def test_a_program_that_waits_after_an_error_is_ended(tmp_path: Path) -> None:
    waits = "print('so far'); print('There was an error', flush=True); input()"
    command = [sys.executable, "-c", waits]
    done = run_until(command, tmp_path, 600, ["an error"])
    assert done == Completed(-1, "so far\nThere was an error\n")
    # What it started ends with it, though it holds the same pipe.
    command = ["sh", "-c", f'{sys.executable} -c "{waits}"; echo never']
    assert run_until(command, tmp_path, 600, ["an error"]) == done


# C that fails at run time, what the message says
FAULTS = [
    ("return -3;", "FAIL invoke returned an error"),
    ("*(volatile uint32_t *)0xF0000000u = 1;", "CPU abort"),
]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("body", "found"), FAULTS)
def test_failing_firmware(tmp_path: Path, body: str, found: str) -> None:
    with pytest.raises(TinyqError, match="TQ404") as caught:
        run_network(write_fake(tmp_path / "net", body), draw(1), RunOptions(emulator="renode"))
    assert found in str(caught.value)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("mode", ["", "no quit"])
def test_a_run_without_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("FAKE_RENODE", mode)
    body = "" if mode else 'for (;;) { __asm volatile("nop"); }'
    options = RunOptions(emulator="renode", timeout=3)
    with pytest.raises(TinyqError, match="not finished after 3 s"):
        run_network(write_fake(tmp_path / "net", body), draw(1), options)


LINES = ["=43" + "00" * 11 + "04" + "00" * 7, "=45" + "00" * 15]
WHOLE = bytes.fromhex("".join(line[1:] for line in LINES))
END = f"END {len(WHOLE):08x} {zlib.crc32(WHOLE):08x}"


def test_lines_of_the_uart() -> None:
    assert renode.outputs_of([*LINES, END, "PASS"]) == WHOLE
    for lines, found in (
        (LINES, "whole lines"),  # cut off before the end
        ([LINES[0], END], "carried 20 bytes"),
        ([LINES[1], LINES[0], END], "with CRC"),
        ([LINES[0][:-1], LINES[1], END], "whole lines"),
        ([*LINES, END[:-3]], "with CRC"),
        ([*LINES, "END"], "whole lines"),
        ([*LINES, END, END], "whole lines"),
    ):
        with pytest.raises(TinyqError, match="TQ404") as caught:
            renode.outputs_of(lines)
        assert found in str(caught.value)


def test_counts_that_do_not_fit() -> None:
    assert renode.with_counts(WHOLE, [5, 9], profiled=False)[8:12] == bytes([4, 0, 0, 0])
    for marks, profiled in (([5], False), ([5, 9, 11], False), ([5, 9, 11], True)):
        with pytest.raises(ValueError, match="counts of instructions"):
            renode.with_counts(WHOLE, marks, profiled=profiled)
    with pytest.raises(ValueError, match="whole records"):
        renode.with_counts(WHOLE[:30], [5, 9], profiled=False)
    with pytest.raises(ValueError, match="whole records"):
        renode.with_counts(WHOLE, [9, 5], profiled=False)


def test_script_takes_the_traps_into_account() -> None:
    lines = renode.script(platform(load_board("qemu-mps2-an386"))).splitlines()
    assert lines[-1] == "start"  # no RunFor, in which a hook's quit would wait
    assert not any(";" in line for line in lines)
    assert lines.index("uart0 CreateFileBackend @uart.txt true") < next(
        k for k, line in enumerate(lines) if "AddLineHook" in line
    )  # the line is in the file before the hook ends Renode
    assert "Exit" not in "".join(lines)


def test_renode_is_missing_or_cannot_stand_for_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RENODE", str(tmp_path / "no-renode"))
    network = write_fake(tmp_path / "net")
    with pytest.raises(TinyqError, match="TQ403") as caught:
        run_network(network, draw(1), RunOptions(emulator="qemu,renode"))
    assert "no-renode' is not on the PATH" in str(caught.value)
    assert "https://renode.io" in str(caught.value)
    assert "RENODE" in str(caught.value)
    for core in set(core_names()) - set(CPUS):
        with pytest.raises(TinyqError, match="TQ409") as caught:
            choose("renode", core=core)
        assert "Helium is incomplete" in str(caught.value)
        assert "--emulator qemu" in str(caught.value)


@pytest.mark.usefixtures("fake")
def test_command_line(tmp_path: Path) -> None:
    """One compiled folder, three emulators side by side, and a profile without cycles."""
    model = Path(tinyq.__file__).with_name("demo") / "digits.onnx"
    net = tmp_path / "net"
    tinyq.compile(model, output=net, target="cortex-m4")
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    done = runner.invoke(
        app, ["verify", str(net), "--emulator", "qemu,unicorn,renode", "--random", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [run["emulator"] for run in report["runs"]] == ["qemu", "unicorn", "renode"]
    assert len({run["instructions_per_inference"] for run in report["runs"]}) == 1
    done = runner.invoke(app, ["profile", str(net), "--emulator", "renode"])
    assert done.exit_code == 0, done.output
    assert "Renode does not count single instructions" in done.output


@pytest.mark.skipif(
    shutil.which(os.environ.get("RENODE") or "renode") is None, reason="renode is not on the PATH"
)
@pytest.mark.parametrize("board", ["", "stm32f4-discovery", "nrf52840-dk", "nucleo-h743zi"])
def test_the_real_one(tmp_path: Path, board: str) -> None:
    network = write_fake(tmp_path / "net", asm_loop(9, 4))
    if board:
        network = dataclasses.replace(network, target=load_board(board).mcu.core)
    options = RunOptions(emulator="unicorn,renode", board=board, layers=True, timeout=120)
    unicorn, ours = (run.trace for run in run_everywhere(network, draw(5), options))
    assert np.array_equal(ours.outputs[0], expected(draw(5)))
    assert ours.instructions_per_inference == unicorn.instructions_per_inference
    assert ours.layer_instructions == unicorn.layer_instructions
