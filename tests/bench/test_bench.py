"""No figure of the reference networks may get worse by more than a hundredth."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from bench.measure import (
    CORES,
    GOALS,
    MODELS,
    NETWORKS,
    Figures,
    compiler,
    key_of,
    measure,
    read_recorded,
    worse,
)

CASES = [
    (network, core, goal)
    for core in CORES
    for network in NETWORKS
    for goal in GOALS
    if core == "cortex-m4" or (goal == "speed" and network in ("kws", "vww"))
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
    found = measure(network, core, goal)
    assert found.equal
    assert worse(found, before) == []


@pytest.mark.parametrize(("now", "grown"), [(1000, 0), (1010, 0), (1011, 1), (900, 0), (2000, 1)])
def test_a_hundredth_more_is_allowed(now: int, grown: int) -> None:
    found = Figures("kws", "cortex-m4", "speed", now, 10, 10, 10, 0, 10, 10, 1, True)
    assert len(worse(found, {"instructions": 1000, "flash": 20, "ram": 20})) == grown
