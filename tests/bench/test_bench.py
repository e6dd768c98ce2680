"""No figure of the reference networks may get worse by more than a hundredth."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import pytest
from bench.__main__ import report
from bench.measure import (
    CORES,
    GOALS,
    MODELS,
    NETWORKS,
    REFERENCE,
    Figures,
    compiler,
    key_of,
    measure,
    read_recorded,
    worse,
)
from bench.smallest import ALLOWED, flash

REFERENCE_CORE = json.loads(REFERENCE.read_text(encoding="utf-8"))["core"]

WHOLE = ("cortex-m0", "cortex-m55")
"""Cores without SIMD and with Helium: every network for speed. Elsewhere two networks do."""

CASES = [
    (network, core, goal)
    for core in CORES
    for network in NETWORKS
    for goal in GOALS
    if core == "cortex-m4"
    or (goal == "speed" and core in WHOLE)
    or (goal == "speed" and core != "cortex-m0plus" and network in ("kws", "vww"))
]


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize(("network", "core", "goal"), CASES)
def test_not_worse_than_recorded(network: str, core: str, goal: str) -> None:
    recorded: Any = read_recorded()
    if not MODELS.is_dir() or not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("needs ../shared/models and arm-none-eabi-gcc")
    if recorded["compiler"] != compiler():
        pytest.skip(f"figures are recorded for gcc {recorded['compiler']}, this is {compiler()}")
    before = recorded["figures"].get(key_of(network, core, goal))
    if before is None:
        pytest.skip("not recorded")
    # Counting cycles takes a second build: for the core whose cycles have targets.
    cycles = core == REFERENCE_CORE and goal == "speed"
    found = measure(network, core, goal, cycles=cycles)
    assert found.equal
    assert set(found.compared) <= set(before)
    assert worse(found, before) == []


@pytest.mark.parametrize(
    ("figure", "field"),
    [
        ("instructions", "instructions"),
        ("cycles", "cycles"),
        ("flash", "code"),
        ("flash", "constants"),
        ("arena", "arena"),
        ("stack", "stack"),
    ],
)
@pytest.mark.parametrize(("now", "grown"), [(1000, 0), (1010, 0), (1011, 1), (900, 0), (2000, 1)])
def test_a_hundredth_more_is_allowed(figure: str, field: str, now: int, grown: int) -> None:
    """Each figure for itself: RAM is in the figures of arena and stack, too."""
    one = {"code": 0, "constants": 0, "arena": 0, "data": 0, "stack": 0, "instructions": 0}
    found = Figures("kws", "cortex-m4", "speed", **{**one, "arena_bound": 0, "macs": 1}, equal=True)
    found = dataclasses.replace(found, **{field: now})
    before = {name: 1000 if name in (figure, "ram") else 0 for name in found.compared}
    problems = [problem for problem in worse(found, before) if f": {figure} " in problem]
    assert len(problems) == grown


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("network", ["kws", "sww"])
def test_size_takes_little_more_than_the_portable_kernels(network: str, core: str) -> None:
    """Also vww, ic and ad: `python -m bench.smallest`."""
    if not MODELS.is_dir() or not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("needs ../shared/models and arm-none-eabi-gcc")
    assert flash(network, core).ratio <= ALLOWED


@pytest.mark.parametrize(("instructions", "met"), [(3_800_000, "yes"), (3_800_001, "no")])
def test_the_report_stands_beside_the_reference(instructions: int, met: str) -> None:
    """Every figure of the reference has a row, and no other has."""
    one = Figures(
        "kws", REFERENCE_CORE, "speed", code=1000, constants=20, arena=300, arena_bound=300,
        data=4, stack=50, instructions=instructions, macs=1, equal=True, cycles=5_000_000,
    )  # fmt: skip
    rows = [r.split(" | ") for r in report([one], []).splitlines() if r.startswith("| kws | speed")]
    entry = json.loads(REFERENCE.read_text(encoding="utf-8"))["networks"]["kws"]
    assert [row[2] for row in rows] == list(entry["tflm"])
    found = {row[2]: (row[3], row[-1].rstrip(" |")) for row in rows}
    assert found["instructions"] == (f"{instructions:,}", met)
    assert found["cycles"] == ("5,000,000", "no")
    assert found["flash"] == ("1,020", "yes")
    assert found["ram"] == ("354", "yes")
