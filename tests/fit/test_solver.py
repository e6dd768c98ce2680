"""The solver against every assignment of small problems, tried one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyq.fit.front import front
from tinyq.fit.problem import Budget, Choice, Layer, Option, Prediction, Problem
from tinyq.fit.solve import QUANTITIES, integer_errors, least, solve

pytest.importorskip("ortools")

CODES = ("plain", "packed", "sums", "shared")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to four layers of up to four options; functions are shared between layers."""
    layers = []
    for i in range(draw(st.integers(1, 4))):
        options = tuple(
            Option(
                f"form{k}",
                draw(st.integers(0, 60)) / 64,
                draw(st.integers(0, 60)),
                draw(st.sampled_from(CODES)),
                draw(st.integers(0, 60)),
                draw(st.integers(0, 60)),
            )
            for k in range(draw(st.integers(1, 4)))
        )
        layers.append(Layer(f"layer{i}", "conv2d", options))
    sizes = {code: draw(st.integers(0, 60)) for code in CODES}
    others = frozenset(draw(st.sets(st.sampled_from(CODES), max_size=1)))
    return Problem(tuple(layers), sizes, 11, 13, 17, others)


def assignments(problem: Problem) -> Iterator[tuple[Choice, Prediction]]:
    """Every choice, with sums made here, from the definition."""
    for choice in itertools.product(*(range(len(layer.options)) for layer in problem.layers)):
        options = [layer.options[k] for layer, k in zip(problem.layers, choice, strict=True)]
        paid = {o.code for o in options if o.code not in problem.other_codes}
        flash = problem.other_flash
        for option in options:
            flash += option.constant_bytes
        for code in paid:
            flash += problem.code_bytes[code]
        arena = problem.other_arena
        for option in options:
            arena = max(arena, option.arena_bytes)
        cycles = problem.other_cycles + sum(o.cycles for o in options)
        yield choice, Prediction(sum(o.error for o in options), flash, arena, cycles)


limits = st.none() | st.integers(20, 240)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), flash=limits, ram=limits, cycles=limits)
def test_best_of_all_assignments(
    problem: Problem, flash: int | None, ram: int | None, cycles: int | None
) -> None:
    budget = Budget(flash, ram, cycles)
    every = list(assignments(problem))
    for choice, sums in every:
        assert problem.predict(choice) == sums
    allowed = [
        p
        for _, p in every
        if (flash is None or p.flash_bytes <= flash)
        and (ram is None or p.arena_bytes <= ram)
        and (cycles is None or p.cycles <= cycles)
    ]
    found = solve(problem, budget)
    if not allowed:
        assert found is None
        for what in QUANTITIES:
            assert least(problem, what, budget) is None
        return
    assert found is not None
    # Options that others replace are no loss.
    fewer = problem.undominated()
    kept = solve(fewer, budget)
    assert kept is not None
    reached = fewer.predict(kept)
    best = problem.predict(found)
    assert (reached.error, reached.flash_bytes) == (best.error, best.flash_bytes)
    for what in QUANTITIES:
        assert least(fewer, what, budget) == least(problem, what, budget)
    assert best.within(budget)
    assert (best.error, best.flash_bytes) == min((p.error, p.flash_bytes) for p in allowed)
    assert least(problem, "flash", budget) == min(p.flash_bytes for p in allowed)
    assert least(problem, "ram", budget) == min(p.arena_bytes for p in allowed)
    assert least(problem, "cycles", budget) == min(p.cycles for p in allowed)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), ram=limits, cycles=limits)
def test_front_is_every_point_that_nothing_beats(
    problem: Problem, ram: int | None, cycles: int | None
) -> None:
    budget = Budget(None, ram, cycles)
    pairs = {(p.error, p.flash_bytes) for _, p in assignments(problem) if p.within(budget)}
    best = {
        (e, f)
        for e, f in pairs
        if not any(a <= e and b <= f and (a, b) != (e, f) for a, b in pairs)
    }
    found = front(problem, budget)
    assert [(p.prediction.error, p.prediction.flash_bytes) for p in found] == sorted(best)
    few = front(problem, budget, points=4)
    assert len(few) <= 4
    # Options that are the same in everything can be exchanged, so that predictions are compared.
    all_points, few_points = ([p.prediction for p in points] for points in (found, few))
    assert set(few_points) <= set(all_points)
    assert few_points[:1] == all_points[:1]
    assert few_points[-1:] == all_points[-1:]


def test_options_that_others_replace() -> None:
    def option(form: str, *figures: float) -> Option:
        error, constants, cycles = figures
        return Option(form, error, int(constants), form, int(cycles), 0)

    options = (
        option("int8", 0, 100, 10),
        option("same", 0, 100, 10),  # its function would have to be paid
        option("worse", 0.5, 120, 10),
        option("small", 0.5, 40, 12),
        option("larger", 0.5, 55, 12),
        option("smaller", 0.5, 39, 12),  # as long as it is alone its function costs more
    )
    sizes = {o.code: 10 for o in options}
    problem = Problem((Layer("a", "conv2d", options),), sizes)
    kept = [o.form for o in problem.undominated().layers[0].options]
    assert kept == ["int8", "same", "small", "smaller"]
    unmeasured = [o.form for o in problem.undominated(measured=False).layers[0].options]
    assert unmeasured == ["int8", "same", "small", "larger", "smaller"]
    assert [o.form for o in problem.restricted({"int8", "small"}).layers[0].options] == [
        "int8", "small",
    ]  # fmt: skip


def test_errors_keep_their_order_as_integers() -> None:
    options = tuple(Option(str(k), 1e-7 * 3**-k, 10 * k, "c", 0, 0) for k in range(12))
    problem = Problem((Layer("a", "conv2d", options), Layer("b", "dense", options)), {"c": 0})
    values = integer_errors(problem)[0]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert 5e8 < sum(row[0] for row in integer_errors(problem)) <= 1e9


def test_same_answer_twice() -> None:
    option = Option("same", 0.0, 5, "c", 1, 1)
    problem = Problem((Layer("a", "conv2d", (option,) * 4),) * 4, {"c": 3})
    assert len({solve(problem, Budget(flash=23)) for _ in range(3)}) == 1
    assert solve(problem, Budget(flash=22)) is None
