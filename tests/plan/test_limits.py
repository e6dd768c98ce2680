"""Limits on RAM and flash: met with other kernels, or refused in numbers."""

from __future__ import annotations

import pytest
from codegen.fakes import FakeOperator, copy_call, schedule_of, tensor

from tinyq.errors import TinyqError
from tinyq.plan import limits as module
from tinyq.plan.limits import Limits, fit, parse_bytes
from tinyq.plan.price import flash_estimate
from tinyq.select import Goal
from tinyq.target import load_core


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("32K", 32768), ("32k", 32768), ("1M", 1 << 20), ("1.5 KiB", 1536)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "K", "-3K", "12G", "0"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(TinyqError) as raised:
        parse_bytes(text)
    assert raised.value.diagnostics[0].code == "TQ303"


def fitted(goal: Goal, limits: Limits, monkeypatch: pytest.MonkeyPatch) -> module.Fitted:
    """A layer with a fast kernel (1,000 bytes of code, 64 of scratch) and a small one."""
    fast = copy_call(64, instructions=10, code_bytes=1000, scratch_bytes=64)
    small = copy_call(64, instructions=100, code_bytes=100)
    operator = FakeOperator("fake", ("fast", fast), ("small", small))
    x, y = tensor("x", 64), tensor("y", 64)
    graph = schedule_of([x], [y], [(fast, [x], [y])]).graph
    original = module.select
    monkeypatch.setattr(
        module,
        "select",
        lambda g, core, goal, **_: original(g, core, goal, operators={"fake": operator}),
    )
    return fit(graph, load_core("cortex-m4"), goal, limits)


@pytest.mark.parametrize(
    ("limits", "flash", "arena"),
    [
        (Limits(), 1000, 192),
        (Limits(ram=192, flash=1000), 1000, 192),
        (Limits(ram=191), 100, 128),
        (Limits(flash=999), 100, 128),
        (Limits(ram=128, flash=100), 100, 128),
    ],
)
def test_the_fastest_that_fits(
    limits: Limits, flash: int, arena: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(Goal.SPEED, limits, monkeypatch)
    assert (flash_estimate(found.schedule), found.plan.arena_bytes) == (flash, arena)
    assert bool(found.notes) == (flash == 100)


@pytest.mark.parametrize(
    ("limits", "codes"),
    [
        (Limits(ram=127), ["TQ801"]),
        (Limits(flash=99), ["TQ802"]),
        (Limits(ram=100, flash=99), ["TQ801", "TQ802"]),
    ],
)
def test_what_cannot_be_met(
    limits: Limits, codes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TinyqError) as raised:
        fitted(Goal.SPEED, limits, monkeypatch)
    assert [d.code for d in raised.value.diagnostics] == codes
    assert all(d.node == "/node/0" for d in raised.value.diagnostics)
