"""Executed instructions and estimated cycles, against QEMU's timer and closed forms."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_network import asm_loop, write_fake
from numpy.typing import NDArray

from tinyq.build.disassembly import Instruction
from tinyq.emulate import RunOptions, run_network
from tinyq.emulate.cycles import Cost, cost_by_function
from tinyq.emulate.network import NetworkRun
from tinyq.errors import TinyqError
from tinyq.target import core_names, load_core

SAMPLE: list[NDArray[np.generic]] = [
    np.arange(8, dtype=np.int8).reshape(1, 8), np.zeros((1, 4), np.int8),
]  # fmt: skip


def counted(folder: Path, target: str, body: str) -> NetworkRun:
    network = dataclasses.replace(write_fake(folder, body), target=target)
    return run_network(network, SAMPLE, RunOptions(layers=True, costs=True))


@pytest.mark.qemu
@pytest.mark.parametrize("target", core_names())
def test_two_ways_of_counting_agree(tmp_path: Path, target: str) -> None:
    run = counted(tmp_path, target, asm_loop(7, 3))
    assert run.costs is not None
    for name, (instructions,) in run.trace.layer_instructions.items():
        # The branch to the second hook is counted here, and calibrated away there.
        assert run.costs.layer(name).instructions == instructions + 1


@pytest.mark.qemu
def test_a_loop_costs_its_closed_form(tmp_path: Path) -> None:
    rounds, nops = 40, 5
    with_loop = counted(tmp_path / "a", "cortex-m4", asm_loop(rounds, nops)).costs
    without = counted(tmp_path / "b", "cortex-m4", "").costs
    assert with_loop is not None
    assert without is not None
    more = with_loop.layer("xor").instructions - without.layer("xor").instructions
    assert more == 1 + rounds * (nops + 2)
    # MOVS, then NOPs and SUBS of one cycle; BNE is taken all times but the last.
    cycles = with_loop.layer("xor").cycles - without.layer("xor").cycles
    assert cycles == 1 + rounds * (nops + 1) + (rounds - 1) * 3 + 1
    assert with_loop.layer("add") == without.layer("add")
    assert with_loop.total.instructions - without.total.instructions == more
    assert list(with_loop.functions) == ["fake_invoke"]


M4 = load_core("cortex-m4").timing
SUBS, BNE = Instruction(2, "subs", "r0, #1"), Instruction(4, "bne.n", "0x0")


@pytest.mark.parametrize(
    ("body", "counts", "cycles"),
    [
        ([Instruction(0, "ldr.w", "r0, [r1]"), Instruction(2, "ldr", "r2, [r1]")], (5, 5), 15),
        ([Instruction(0, "ldr", "r0, [r1]"), SUBS], (5, 5), 15),
        ([Instruction(0, "ldmia.w", "r1!, {r0, r2, r4-r6}")], (2,), 12),
        ([Instruction(0, "pop", "{r4, pc}")], (1,), 5),
        ([Instruction(0, "strd", "r0, r1, [r2]")], (3,), 9),
        ([Instruction(0, "smlad", "r0, r1, r2, r0"), SUBS, BNE], (10, 10, 10), 50),
        ([BNE, SUBS], (10, 4), 6 * 3 + 4 + 4),
        ([Instruction(0, "sdiv", "r0, r1, r2")], (2,), 14),
        ([Instruction(0, "bl", "0x100")], (2,), 6),
    ],
)
def test_cycles_of_each_class(
    body: list[Instruction], counts: tuple[int, ...], cycles: float
) -> None:
    at = [dataclasses.replace(i, address=2 * k) for k, i in enumerate(body)]
    executed = {2 * k: n for k, n in enumerate(counts)}
    assert cost_by_function({"f": at}, executed, M4) == {"f": Cost(sum(counts), cycles)}


def test_a_slow_multiplier_is_in_the_cycles() -> None:
    body = {"f": [Instruction(0, "muls", "r0, r1")]}
    for target, cycles in (("cortex-m0", 3), ("cortex-m0+mul32", 96)):
        assert cost_by_function(body, {0: 3}, load_core(target).timing)["f"].cycles == cycles


def test_peak_of_each_instruction_set() -> None:
    # SMLAD: two products in a cycle; MULS and ADDS: one in two; VMLADAVA.S8: 16 in two cycles of
    # its unit, or in the table's 1.5 where there is no model of the pipeline.
    peaks = {name: load_core(name).peak_macs_per_cycle for name in core_names()}
    assert peaks["cortex-m4"] == 2
    assert peaks["cortex-m0"] == 0.5
    assert peaks["cortex-m55"] == 8
    assert peaks["cortex-m85"] == pytest.approx(16 / 1.5)
    assert load_core("cortex-m0+mul32").peak_macs_per_cycle == 1 / 33


@pytest.mark.qemu
def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYQ_CC", "no-such-compiler")
    with pytest.raises(TinyqError) as problem:
        counted(tmp_path, "cortex-m4", "")
    assert [d.code for d in problem.value.diagnostics] == ["TQ410"]
    assert "no-such-compiler" in str(problem.value)
