"""Kernels and remedies compete: the cheapest that keeps the limit, against every combination."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from codegen.fakes import FakeOperator, copy_call, schedule_of, tensor
from qdq import Qdq

from tinyq.api import CompileOptions, compile_model
from tinyq.errors import TinyqError
from tinyq.plan import limits as module
from tinyq.plan.exchange import Peaks
from tinyq.plan.limits import Limits, fit
from tinyq.plan.memory import Problem
from tinyq.plan.placement import lower_bound
from tinyq.plan.remedies import Proposal
from tinyq.select import Goal, Layer, Schedule, select
from tinyq.target import load_core


def drawn(seed: int) -> Schedule:
    """A chain of three layers, each with up to four kernels that differ in all they cost."""
    rng = np.random.default_rng(seed)
    values = [tensor(f"v{k}", 16 * int(rng.integers(1, 12))) for k in range(4)]
    operators, layers = [], list[Layer]()
    core = load_core("cortex-m4")
    for k in range(3):
        calls = [
            copy_call(
                1, instructions=int(rng.integers(10, 99)), code_bytes=100,
                scratch_bytes=16 * int(rng.integers(0, 20)),
                in_place=(0,) if rng.integers(0, 3) == 0 else (),
                overlap=int(rng.integers(-9, 9)) * 8 if rng.integers(0, 3) == 0 else None,
            )
            for _ in range(int(rng.integers(1, 5)))
        ]  # fmt: skip
        operators.append(FakeOperator("fake", *((f"k{n}", c) for n, c in enumerate(calls))))
        step = schedule_of(
            [values[k]], [values[k + 1]], [(calls[0], values[k : k + 1], values[k + 1 : k + 2])]
        )
        chosen = select(step.graph, core, Goal.SPEED, operators={"fake": operators[k]}).layers[0]
        layers.append(replace(chosen, index=k))
    whole = schedule_of(values[:1], values[3:], [(la.call, la.inputs, la.outputs) for la in layers])
    return replace(whole, layers=tuple(layers))


def bound(schedule: Schedule) -> int:
    """Bytes that every placement needs."""
    problem = Problem(schedule)
    return lower_bound(problem.spans, problem.handovers)


@pytest.mark.parametrize("seed", range(20))
def test_no_combination_of_kernels_is_cheaper(seed: int) -> None:
    """The bounds of all say what the peaks have said, and none within a limit is cheaper."""
    schedule = drawn(seed)
    found = []
    for calls in product(*([c.call for c in la.candidates] for la in schedule.layers)):
        layers = [replace(la, call=c) for la, c in zip(schedule.layers, calls, strict=True) if c]
        other = replace(schedule, layers=tuple(layers))
        found.append((bound(other), other.instructions))
    peaks = Peaks(schedule)
    for limit in sorted({needed for needed, _ in found}):
        exchange = peaks.within(limit)
        assert exchange is not None
        assert exchange.needed <= limit
        assert bound(exchange.schedule) == exchange.needed
        assert exchange.schedule.instructions == min(t for needed, t in found if needed <= limit)
    assert peaks.within(min(needed for needed, _ in found) - 1) is None


class Fixed:
    """A remedy with one proposal: the schedule with other calls."""

    def __init__(self, arena: int, instructions: int) -> None:
        self.arena, self.instructions = arena, instructions

    def proposals(self, whole: Schedule, limit: int) -> list[Proposal]:
        call = copy_call(64, instructions=self.instructions, scratch_bytes=self.arena - 128)
        layers = tuple(replace(la, call=call, candidates=()) for la in whole.layers)
        return [Proposal(replace(whole, layers=layers), "something else runs", "nothing more")]


@pytest.mark.parametrize(
    ("ram", "arena", "instructions"),
    [(768, 768, 100), (767, 256, 150), (255, 192, 300), (191, 128, 900), (127, 0, 0)],
)
def test_the_cheapest_of_kernels_and_remedies(
    ram: int, arena: int, instructions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels: 100 instructions in 768 bytes, 300 in 192, 900 in 128; a remedy: 150 in 256."""
    kernels = [(640, 100), (64, 300), (0, 900)]
    calls = [copy_call(64, instructions=i, scratch_bytes=s) for s, i in kernels]
    operator = FakeOperator("fake", *((f"k{n}", c) for n, c in enumerate(calls)))
    x, y = tensor("x", 64), tensor("y", 64)
    graph = schedule_of([x], [y], [(calls[0], [x], [y])]).graph
    monkeypatch.setattr(
        module,
        "select",
        lambda g, core, goal, **_: select(g, core, goal, operators={"fake": operator}),
    )
    monkeypatch.setattr(module, "Stripes", lambda *_: Fixed(256, 150))
    if not arena:
        with pytest.raises(TinyqError):
            fit(graph, load_core("cortex-m4"), Goal.SPEED, Limits(ram=ram))
        return
    found = fit(graph, load_core("cortex-m4"), Goal.SPEED, Limits(ram=ram))
    assert (found.plan.arena_bytes, found.schedule.instructions) == (arena, instructions)
    remedied = [note for note in found.notes if "something else runs" in note]
    assert bool(remedied) == (arena == 256)
    if remedied:
        assert remedied[0] == (
            "something else runs: 256 bytes of arena, not 768, +50.0% instructions (estimate); "
            "nothing more"
        )


def test_the_smallest_code_takes_stripes_that_save_more_than_they_cost(tmp_path: Path) -> None:
    """A large first tensor, and weights beside which their code is little: stripes come by
    themselves for size, not for speed."""
    b, rng = Qdq(), np.random.default_rng(3)
    x = b.op("Transpose", b.x((1, 32, 16, 2), 0.05, 3), perm=[0, 3, 1, 2])
    for inputs, outputs, stride in ((2, 8, 1), (8, 8, 2), (8, 8, 2)):
        weights = b.weights(rng.integers(-99, 99, (outputs, inputs, 3, 3)), 0.002)
        x = b.qdq(b.op("Conv", x, weights, strides=[stride] * 2, pads=[1] * 4), 0.07, 0)
    x = b.qdq(b.op("GlobalAveragePool", x), 0.05, 3)
    for inputs, outputs in ((8, 256), (256, 256)):
        weights = b.weights(rng.integers(-99, 99, (outputs, inputs, 1, 1)), 0.002)
        x = b.qdq(b.op("Conv", x, weights), 0.07, 0)
    onnx.save(b.end(b.op("Flatten", x), 0.07, 0).model(), tmp_path / "net.onnx")
    arenas = {}
    for goal in ("speed", "size"):
        options = CompileOptions("cortex-m4", optimize=goal)
        compiled = compile_model(tmp_path / "net.onnx", options)
        arenas[goal] = compiled.plan.arena_bytes
        assert any("stripes" in note for note in compiled.notes) == (goal == "size")
    assert arenas["size"] < arenas["speed"] / 2
