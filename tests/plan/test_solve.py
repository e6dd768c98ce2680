"""The exact placement: against every placement of small networks, and never above the heuristic."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
from codegen.fakes import copy_call, schedule_of, tensor

from tinyq.errors import TinyqError
from tinyq.plan import OverlapError, plan, plan_shared, verify_plan
from tinyq.plan import limits as module
from tinyq.plan.limits import Limits, fit
from tinyq.plan.memory import Problem, plan_exactly
from tinyq.plan.placement import aligned
from tinyq.plan.solve import solve
from tinyq.select import Goal, Schedule
from tinyq.target import load_core

pytest.importorskip("ortools")


def drawn(seed: int, layers: int, largest: int, reach: int = 1) -> Schedule:
    """Layers that read one or two of the last ``reach`` tensors, with every kind of handover."""
    rng = np.random.default_rng(seed)
    values = [tensor("v0", int(rng.integers(1, largest)))]
    steps = []
    for k in range(layers):
        reads = values[-reach:]
        while len(reads) > 2:
            reads.pop(int(rng.integers(0, len(reads))))
        result = tensor(f"v{k + 1}", int(rng.integers(1, largest)))
        call = copy_call(
            1, in_place=(0,) if rng.integers(0, 3) == 0 else (),
            scratch_bytes=int(rng.choice([0, 0, 1, largest])),
            overlap=[None, None, -8, 0, 20][int(rng.integers(0, 5))],
            phase=[0, 0, 0, 8, 24][int(rng.integers(0, 5))],
        )  # fmt: skip
        steps.append((call, reads, [result]))
        values.append(result)
    return schedule_of(values[:1], values[-1:], steps)


def some_plan_below(schedule: Schedule, arena: int) -> bool:
    """Whether any offsets at all give a smaller arena that the proof accepts."""
    problem = Problem(schedule)
    choices = [range(0, arena - span.bytes, 16) for span in problem.spans]
    for offsets in product(*choices):
        try:
            verify_plan(schedule, problem.plan(list(offsets)))
        except OverlapError:
            continue
        return True
    return False


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_below_what_is_proved_least(seed: int) -> None:
    """From buffers that all lie apart, with no bound given."""
    schedule = drawn(seed, 2, 40)
    problem = Problem(schedule)
    apart = np.cumsum([0, *(aligned(span.bytes) for span in problem.spans)])[:-1]
    found = solve(problem.spans, problem.handovers, apart.tolist(), 0)
    assert found is not None
    assert found.proved
    solved = problem.plan(found.offsets)
    verify_plan(schedule, solved)
    assert not some_plan_below(schedule, solved.arena_bytes)


def test_never_above_the_heuristic_and_the_same_each_time() -> None:
    smaller = 0
    for seed in range(8):
        schedule = drawn(seed, 24, 900, reach=6)
        before = plan(schedule)
        found = plan_exactly(schedule, before)
        assert before.live_bytes <= found.arena_bytes <= before.arena_bytes
        verify_plan(schedule, found)
        if before.arena_bytes == before.live_bytes:
            assert found is before
        else:
            again = plan_exactly(schedule, before)
            assert (again.offsets, again.scratch) == (found.offsets, found.scratch)
            assert found.method != "heuristic"
            smaller += found.arena_bytes < before.arena_bytes
    assert smaller


MISSED = drawn(2, 24, 900, reach=6)
"""Whose bytes in use the heuristic does not reach."""


def fitted(monkeypatch: pytest.MonkeyPatch, ram: int | None = None) -> module.Fitted:
    monkeypatch.setattr(module, "select", lambda *_, **__: MISSED)
    monkeypatch.setattr(module, "order_layers", lambda schedule: schedule)
    return fit(MISSED.graph, load_core("cortex-m4"), Goal.SPEED, Limits(ram=ram))


def test_what_is_chosen_is_placed_by_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_shared(MISSED)[1].arena_bytes
    found = fitted(monkeypatch)
    assert found.plan.arena_bytes < before
    assert found.plan.method == "solver, proved least"
    assert found.notes == (
        f"placed by the solver: {found.plan.arena_bytes:,} bytes of arena, not {before:,}; the "
        "solver has proved that no placement takes fewer",
    )
    # So is what would be refused as the heuristic places it.
    assert fitted(monkeypatch, before - 1).plan.arena_bytes == found.plan.arena_bytes


def test_without_or_tools_the_heuristic_and_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    before = plan_shared(MISSED)[1]
    found = fitted(monkeypatch)
    assert found.plan.method == "heuristic"
    assert found.plan.offsets == before.offsets
    (note,) = found.notes
    assert note.startswith(f"placed by the heuristic: {before.arena_bytes:,} bytes of arena")
    assert f"at least {before.live_bytes:,} are needed" in note
    assert "pip install 'tinyq[solver]'" in note
    with pytest.raises(TinyqError) as raised:
        fitted(monkeypatch, before.arena_bytes - 1)
    (problem,) = raised.value.diagnostics
    assert problem.code == "TQ801"
    assert "OR-tools is not installed" in problem.remedy
