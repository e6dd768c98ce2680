"""Unicorn beside QEMU: the same firmware, outputs, layers, counts and stack."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_network import SOURCE, asm_loop, write_fake
from numpy.typing import NDArray

from tinyq.build import build_firmware
from tinyq.build.arm import TOOLCHAINS, arm_toolchain
from tinyq.build.elf import read_elf
from tinyq.build.stack import frame_and_calls
from tinyq.emulate import (
    NetworkRun,
    QemuRunner,
    RunOptions,
    UnicornRunner,
    run_everywhere,
    run_network,
)
from tinyq.emulate.counting import count_instructions
from tinyq.emulate.unicorn import MODELS
from tinyq.errors import TinyqError
from tinyq.target import core_names, load_board, load_core

pytestmark = pytest.mark.qemu

Pair = list[NDArray[np.generic]]


def draw(count: int) -> Pair:
    rng = np.random.default_rng(20)
    return [rng.integers(-128, 128, (count, size), dtype=np.int8) for size in (8, 4)]


def both(folder: Path, target: str, toolchain: str, body: str = "") -> tuple[NetworkRun, ...]:
    network = dataclasses.replace(write_fake(folder, body), target=target)
    options = RunOptions(emulator="qemu,unicorn", toolchain=toolchain, layers=True)
    return run_everywhere(network, draw(5), options)


def test_every_core_without_helium_has_a_model() -> None:
    assert set(core_names()) - set(MODELS) == {"cortex-m55", "cortex-m85"}


# zig builds its run-time library for a core when it first links for it, which takes seconds.
BUILDS = [
    *((target, name) for target in MODELS for name in TOOLCHAINS if name != "zig"),
    *((target, "zig") for target in ("cortex-m0", "cortex-m4")),
]


@pytest.mark.parametrize(("target", "toolchain"), BUILDS)
def test_unicorn_counts_what_qemu_counts(tmp_path: Path, target: str, toolchain: str) -> None:
    qemu, unicorn = (run.trace for run in both(tmp_path, target, toolchain, asm_loop(9, 4)))
    assert (qemu.emulator, unicorn.emulator) == ("qemu", "unicorn")
    assert np.array_equal(qemu.outputs[0], unicorn.outputs[0])
    assert unicorn.instructions_per_inference is not None
    assert qemu.instructions_per_inference == unicorn.instructions_per_inference
    assert qemu.stack_bytes == unicorn.stack_bytes
    assert qemu.layer_instructions == unicorn.layer_instructions
    assert min(unicorn.layer_instructions["xor"]) > 9 * (4 + 2)
    assert qemu.layers is not None
    assert unicorn.layers is not None
    for name in ("add", "xor"):
        assert np.array_equal(qemu.layers[name], unicorn.layers[name])


@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4"])
def test_absolute_count_of_a_known_invoke(tmp_path: Path, target: str) -> None:
    source = SOURCE[: SOURCE.index("int fake_invoke")] + (
        "__attribute__((naked)) int fake_invoke(__attribute__((unused)) fake_t *net)\n"
        '{ __asm volatile(".syntax unified\\n\\t.rept 1001\\n\\tnop\\n\\t.endr\\n\\t'
        'movs r0, #0\\n\\tbx lr"); }\n'
    )
    network = dataclasses.replace(write_fake(tmp_path, source=source), target=target)
    options = RunOptions(emulator="unicorn", toolchain="zig")
    assert run_network(network, draw(3), options).trace.instructions_per_inference == (1003,) * 3


@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4"])
def test_executions_of_every_instruction_are_the_plugins(tmp_path: Path, target: str) -> None:
    network = write_fake(tmp_path / "net", asm_loop(7, 3))
    core = load_core(target)
    board = load_board(core.board)
    artifact = build_firmware(network, core, board, tmp_path / "out", profile=True)
    symbols = {s.name: s.address & ~1 for s in read_elf(artifact.executable).symbols}
    marks = [symbols["tinyq_layer_begin"], symbols["tinyq_layer_end"]]
    qemu, unicorn = (
        count_instructions(artifact, draw(1), marks, emulator=name) for name in ("qemu", "unicorn")
    )
    assert len(qemu) == len(unicorn) == 7  # reset, empty layer, then two hooks a layer
    for phase, (wanted, got) in enumerate(zip(qemu[1:-1], unicorn[1:-1], strict=True)):
        assert got, phase
        assert wanted == got, phase


def test_cycles_are_estimated_without_qemu(tmp_path: Path) -> None:
    network = dataclasses.replace(write_fake(tmp_path, asm_loop(7, 3)), target="cortex-m4")
    runs = run_everywhere(
        network, draw(1), RunOptions(emulator="qemu,unicorn", layers=True, costs=True)
    )
    assert runs[0].costs is not None
    assert runs[0].costs == runs[1].costs


@pytest.mark.parametrize(("target", "toolchain"), BUILDS)
def test_capstone_reads_what_objdump_reads(tmp_path: Path, target: str, toolchain: str) -> None:
    """Addresses, targets of branches, and the frames and calls that follow from the code."""
    core = load_core(target)
    network = write_fake(tmp_path / "net", asm_loop(7, 3))
    board = load_board(core.board)
    built = build_firmware(network, core, board, tmp_path / "out", toolchain=toolchain)
    ours = arm_toolchain("zig").functions(built.executable, core)
    theirs = arm_toolchain("gcc").functions(built.executable, core)
    assert {"main", "fake_invoke", "Reset_Handler"} <= set(ours)
    everything = {one.address: one for body in theirs.values() for one in body}
    labels = 0
    for name, body in ours.items():
        wanted = [everything[one.address] for one in body]
        for one, other in zip(body, wanted, strict=True):
            if "<" in one.operands:  # a function may have several names, but has one address
                labels += 1
                assert one.operands.split("<")[0].split()[-1] in other.operands, (name, one)
        (frame, calls), (as_read, called) = (frame_and_calls(name, x) for x in (body, wanted))
        assert (frame, len(calls)) == (as_read, len(called)), name
    assert labels > 20


# target, C that fails at run time, what the message says
FAILURES = [
    ("cortex-m0", "return -3;", "invoke returned an error"),
    ("cortex-m0", '__asm volatile("udf #0");', "fault at 0x"),
    ("cortex-m4", "*(volatile uint32_t *)0xF0000000u = 1;", "fault at 0x"),
    ("cortex-m33", "*(volatile uint32_t *)(uintptr_t)fake_init = 1;", "fault at 0x"),
]


@pytest.mark.parametrize(("target", "body", "found"), FAILURES)
def test_failing_firmware(tmp_path: Path, target: str, body: str, found: str) -> None:
    network = dataclasses.replace(write_fake(tmp_path, body), target=target)
    with pytest.raises(TinyqError, match="TQ404") as caught:
        run_network(network, draw(1), RunOptions(emulator="unicorn"))
    assert found in str(caught.value)


def test_endless_firmware_is_ended(tmp_path: Path) -> None:
    network = write_fake(tmp_path, 'for (;;) { __asm volatile("nop"); }')
    with pytest.raises(TinyqError, match=r"not finished after 0\.5 s"):
        run_network(network, draw(1), RunOptions(emulator="unicorn", timeout=0.5))


def test_memory_map_of_any_board(tmp_path: Path) -> None:
    """A board that QEMU has no model of runs with its own flash and RAM, and is counted."""
    network = write_fake(tmp_path, asm_loop(9, 4))
    options = RunOptions(emulator="unicorn", board="nucleo-f446re")
    run = run_network(network, draw(2), options)
    assert run.artifact.board is not None
    assert run.artifact.board.flash.base == 0x08000000
    mps2 = run_network(network, draw(2), RunOptions(emulator="unicorn"))
    assert run.trace.instructions_per_inference == mps2.trace.instructions_per_inference
    assert np.array_equal(run.trace.outputs[0], mps2.trace.outputs[0])


def test_cores_without_a_model_are_refused(tmp_path: Path) -> None:
    network = dataclasses.replace(write_fake(tmp_path), target="cortex-m55")
    with pytest.raises(TinyqError, match="TQ409") as caught:
        UnicornRunner().run(
            build_firmware(
                network, load_core("cortex-m55"), load_board("qemu-mps3-an547"), tmp_path / "out"
            ),
            draw(1),
        )
    assert "--emulator qemu" in str(caught.value)
    with pytest.raises(TinyqError, match="TQ409"):
        run_network(network, draw(1), RunOptions(emulator="unicorn"))
    with pytest.raises(TinyqError, match="FPU"):
        run_network(
            write_fake(tmp_path / "f"), draw(1), RunOptions(emulator="unicorn", allow_float=True)
        )


@pytest.mark.parametrize("board", ["netduinoplus2", "microbit-v1", "qemu-mps2-an386"])
def test_real_boards_count_in_both(tmp_path: Path, board: str) -> None:
    """The board's own memory map and timer, in QEMU's model of it and in unicorn."""
    target = load_board(board).mcu.core
    network = dataclasses.replace(write_fake(tmp_path, asm_loop(200, 30)), target=target)
    options = RunOptions(emulator="qemu,unicorn", board=board)
    qemu, unicorn = (run.trace for run in run_everywhere(network, draw(2), options))
    assert qemu.instructions_per_inference is not None
    assert min(qemu.instructions_per_inference) > 200 * 32
    assert qemu.instructions_per_inference == unicorn.instructions_per_inference
    assert qemu.stack_bytes == unicorn.stack_bytes
    assert np.array_equal(qemu.outputs[0], unicorn.outputs[0])


def test_stack_is_measured_without_a_timer(tmp_path: Path) -> None:
    network = dataclasses.replace(write_fake(tmp_path), target="cortex-m3")
    trace = run_network(
        network, draw(1), RunOptions(emulator="qemu", board="stm32vldiscovery")
    ).trace
    assert trace.instructions_per_inference is None
    assert trace.stack_bytes is not None


def test_a_machine_that_this_qemu_lacks(tmp_path: Path) -> None:
    board = load_board("netduinoplus2")
    assert board.qemu is not None
    newer = dataclasses.replace(board, qemu=dataclasses.replace(board.qemu, machine="newer"))
    artifact = build_firmware(
        write_fake(tmp_path / "net"), load_core("cortex-m4"), newer, tmp_path / "out"
    )
    with pytest.raises(TinyqError, match="TQ409") as caught:
        QemuRunner().run(artifact, draw(1))
    assert "newer QEMU" in str(caught.value)
