"""Cycles of cores that pair instructions, against schedules written by hand and closed forms."""

from __future__ import annotations

import pytest

from tinyq.build.disassembly import Instruction
from tinyq.emulate.cycles import Cost, cost_by_function
from tinyq.emulate.pipeline import block_cycles, pipeline_cycles
from tinyq.target import Pipeline, core_names, load_core


def model(core: str) -> Pipeline:
    found = load_core(core).pipeline
    assert found is not None
    return found


M7, M55 = model("cortex-m7"), model("cortex-m55")
MISS = M7.mispredicted


def block(*lines: str, back: bool = False) -> list[Instruction]:
    """Instructions at 4 bytes each, the last one a branch to the first if ``back``."""
    split = [line.split(" ", 1) for line in lines]
    made = [Instruction(4 * k, name, text) for k, (name, text) in enumerate(split)]
    return [*made, Instruction(4 * len(made), "bne.n", "0 <f>")] if back else made


MAC = "smlad r2, r8, r9, r2"
OTHER = "smlad r3, r8, r9, r3"


@pytest.mark.parametrize(
    ("lines", "cycles"),
    [
        (["add r0, r1, r2", "add r3, r4, r5"], 1),  # a pair
        (["add r0, r1, r2", "add r3, r0, r5"], 2),  # the second waits for the first
        (["adds r0, #1", "adds r0, #1"], 2),  # read and written
        ([MAC, OTHER], 2),  # one multiplier
        ([MAC, "ldr r4, [r0]"], 1),
        (["ldr r4, [r0]", "ldr r5, [r1]"], 1),  # two loads
        (["ldrd r4, r5, [r0]", "add r6, r7, r8"], 2),  # nothing beside a load of two words
        (["ldmia.w r0!, {r4, r5, r6}", "add r7, r8, r8"], 3),  # two words a cycle
        (["ldmia.w r0!, {r4-r6}", "add r7, r8, r8"], 3),
        (["ldr r8, [r0]", MAC], 2),  # a load is there in the next cycle
        (["ldrsb.w r8, [r0]", MAC], 3),  # a byte one later
        (["add r0, r0, #4", "ldr r1, [r0]"], 3),  # addresses are read a cycle early
        (["ldr r1, [r0], #4", "ldr r2, [r0], #4"], 2),  # but updated by the address unit
        (["mul r2, r8, r9", "add r0, r2, r2"], 3),
        ([MAC, MAC], 2),  # sums are read a cycle late
        (["smmla r2, r2, r8, r9", "ssat r2, #8, r2, asr #4", "strb.w r2, [r1], #1"], 5),
        (["add r6, r6, r7", "sxtb16 lr, r11", MAC], 2),  # SXTB16 begins a cycle
        (["str r2, [r0]", "str r3, [r1]"], 2),  # one store
        (["sdiv r0, r1, r2", "add r3, r4, r5"], 8),
        (["cmp r0, r1", "itt lt", "movlt r0, r1", "movlt r2, r3"], 2),
    ],
)
def test_a_block_on_the_cortex_m7(lines: list[str], cycles: float) -> None:
    assert block_cycles(block(*lines), M7) == cycles


@pytest.mark.parametrize(
    ("lines", "cycles"),
    [
        ([MAC, OTHER, "ldr r4, [r0]", "ldr r5, [r1]"], 3),  # a load beside the branch
        ([MAC, "ldr r4, [r0]", OTHER], 2),
        (["subs r1, #1"], 1),
        (["ldr r8, [r0], #4", MAC, "subs r1, #1"], 2),
    ],
)
def test_a_loop_settles(lines: list[str], cycles: float) -> None:
    assert block_cycles(block(*lines, back=True), M7) == cycles


@pytest.mark.parametrize(
    ("lines", "cycles"),
    [
        (["vldrb.u8 q0, [r0], #16", "vmlava.s8 r2, q1, q2"], 2),  # different units overlap by one
        (["vldrb.u8 q0, [r0], #16", "vldrb.u8 q1, [r0], #16"], 3),  # one unit, two cycles each
        (["add r0, r1, r2", "add r3, r4, r5"], 2),
        (["ldmia.w r0!, {r4, r5}", "add r7, r8, r8"], 4),
    ],
)
def test_a_block_on_the_cortex_m55(lines: list[str], cycles: float) -> None:
    assert block_cycles(block(*lines), M55) == cycles


def test_functions_are_split_where_they_branch() -> None:
    body = [
        *block("mov.w r1, #40", "mov.w r0, #0"),
        Instruction(8, "add.w", "r0, r0, r1"),
        Instruction(12, "subs", "r1, #1"),
        Instruction(16, "bne.n", "8 <f+0x8>"),
        Instruction(18, "bx", "lr"),
    ]
    counts = [1, 1, 40, 40, 40, 1]
    # A pair, forty turns of two (the sum waits for the counter), the last of them unexpected.
    assert pipeline_cycles(body, counts, M7) == 1 + 40 * 2 + MISS + 1
    executed = {one.address: n for one, n in zip(body, counts, strict=True)}
    timing = load_core("cortex-m7").timing
    wanted = {"f": Cost(123, 1 + 40 * 2 + MISS + 1)}
    assert cost_by_function({"f": body}, executed, timing, M7) == wanted


def test_only_cores_with_a_pipeline_pair() -> None:
    assert [name for name in core_names() if load_core(name).pairs] == ["cortex-m7"]
    assert load_core("cortex-m7+scalar").pairs
