"""From a float model and limits to a quantized model within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from tinyq.errors import TinyqError, error
from tinyq.fit.front import Point, front
from tinyq.fit.measure import (
    FORMS,
    Candidates,
    Lowered,
    assigned,
    cycles,
    forms_of,
    integer_graph,
    measure,
    quantize_forms,
)
from tinyq.fit.problem import Budget, Prediction, Problem
from tinyq.fit.solve import QUANTITIES, Quantity, least, solve
from tinyq.plan import plan_shared
from tinyq.plan.price import flash_estimate
from tinyq.ptq import CalibrationData, PtqConfig
from tinyq.ptq.emit import emit
from tinyq.ptq.observe import Progress
from tinyq.ptq.pipeline import prepare_model
from tinyq.ptq.quality import OutputQuality, finite
from tinyq.quant.coarse import KEPT
from tinyq.select import Goal, select
from tinyq.target import Core

CyclesOf = Callable[[onnx.ModelProto, Goal], int]

_TRIALS = 8
"""Corrections of what the additive prediction leaves out, before the limits count as infeasible."""


@dataclass(frozen=True)
class Reached:
    """An assignment as compiled: the compiler's figures of it, and its measured output."""

    forms: Mapping[str, str]
    predicted: Prediction
    flash_bytes: int
    arena_bytes: int
    cycles: int
    quality: OutputQuality


@dataclass(frozen=True, eq=False)
class FitResult:
    """What was chosen, for which goal of kernel selection, and the front that it was chosen from.

    front: points of the prediction (squared error and flash), each with its measured quality.
    before: the quality of int8 everywhere. signal: mean square of the float output, to which
    predicted errors are relative.
    """

    model: onnx.ModelProto
    goal: Goal
    problem: Problem
    chosen: Reached
    front: tuple[tuple[Point, OutputQuality], ...]
    before: OutputQuality
    signal: float
    samples: int

    def sqnr_db(self, point: Prediction) -> float:
        """Signal to noise at the output that a prediction stands for."""
        noise = self.before.rms_error**2 + point.error
        return 10.0 * math.log10(self.signal / noise) if noise > 0 < self.signal else math.inf

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object: the choice, the options, and the front, predicted and measured."""
        rows = [
            {
                "forms": self.problem.forms(point.choice),
                "predicted": {
                    **asdict(point.prediction),
                    "sqnr_db": self.sqnr_db(point.prediction),
                },
                "measured": asdict(quality),
            }
            for point, quality in self.front
        ]
        found: dict[str, Any] = {
            "goal": self.goal.value,
            "samples": self.samples,
            "int8": asdict(self.before),
            "layers": [asdict(layer) for layer in self.problem.layers],
            "chosen": asdict(self.chosen),
            "front": rows,
        }
        return {name: finite(value) for name, value in found.items()}


def fit(
    model: str | Path | onnx.ModelProto,
    calibration: CalibrationData,
    core: Core,
    budget: Budget,
    *,
    goal: Goal = Goal.BALANCED,
    forms: Sequence[str] = FORMS,
    config: PtqConfig | None = None,
    points: int = 10,
    jobs: int = 1,
    cycles_of: CyclesOf | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Choose the form of every layer's weights: the least error within ``budget``.

    Kernels are those of ``goal``; those of the other goals where it cannot keep the budget.
    ``forms`` are forms or groups of :mod:`tinyq.fit.measure`. ``cycles_of`` measures the cycles of
    a model, to which estimates are scaled, and which the chosen model has to keep; without it the
    estimate decides (instructions).

    Raises:
        TinyqError: as :func:`tinyq.ptq.quantize` and compiling; TQ804 when no choice keeps the
            limits, with the least that can be reached; TQ613 without OR-tools or joblib.
    """
    chosen_forms = forms_of(forms)
    prepared = prepare_model(model, calibration, config or PtqConfig(), progress)
    candidates = quantize_forms(prepared, chosen_forms, jobs, progress)
    lowered = Lowered.of(candidates, progress)
    goals = (goal, *(g for g in (Goal.BALANCED, Goal.SPEED, Goal.SIZE) if g is not goal))
    problems = {}
    for chosen_goal in goals:
        costs = lowered.costs(core, chosen_goal)
        if cycles_of is not None and budget.cycles is not None:
            costs = _calibrated(candidates, costs, chosen_goal, cycles_of)
        costs = costs.undominated(measured=False)
        problem = measure(candidates, costs, jobs, progress).undominated()
        problems[chosen_goal] = problem
        reached = _reach(candidates, problem, core, chosen_goal, budget, cycles_of, progress)
        if reached is not None:
            break
    else:
        raise _infeasible([*problems.values()], budget)
    model_chosen, result = reached
    return FitResult(
        model_chosen, chosen_goal, problem, result,
        _measured_front(candidates, problem, budget, points, progress),
        candidates.quality, _signal(candidates), prepared.data.count,
    )  # fmt: skip


def _calibrated(
    candidates: Candidates, problem: Problem, goal: Goal, cycles_of: CyclesOf
) -> Problem:
    """The problem with cycles scaled to those measured of the network with int8 weights."""
    measured = cycles_of(candidates.model(KEPT), goal)
    return problem.scaled(measured / problem.predict((0,) * len(problem.layers)).cycles)


def _reach(
    candidates: Candidates,
    problem: Problem,
    core: Core,
    goal: Goal,
    budget: Budget,
    cycles_of: CyclesOf | None,
    progress: Progress | None,
) -> tuple[onnx.ModelProto, Reached] | None:
    """Solve, compile what was chosen, and tighten the limits by what the prediction left out."""
    inner = budget
    prepared = candidates.prepared
    for trial in range(_TRIALS):
        choice = solve(problem, inner)
        if choice is None:
            return None
        predicted, forms = problem.predict(choice), problem.forms(choice)
        plan = assigned(candidates, forms)
        model = emit(prepared.graph, prepared.units, plan)
        schedule, memory = plan_shared(select(integer_graph(model), core, goal))
        spent = cycles_of(model, goal) if cycles_of and budget.cycles else cycles(schedule)
        real = Prediction(predicted.error, flash_estimate(schedule), memory.arena_bytes, spent)
        if progress is not None:
            progress("choosing", trial + 1, _TRIALS)
        if real.within(budget):
            quality = prepared.evaluate(plan)
            return model, Reached(
                forms, predicted, real.flash_bytes, real.arena_bytes, real.cycles, quality
            )
        inner = Budget(
            _tightened(inner.flash, budget.flash, real.flash_bytes),
            _tightened(inner.ram, budget.ram, real.arena_bytes),
            _tightened(inner.cycles, budget.cycles, real.cycles),
        )
    return None


def _tightened(inner: int | None, limit: int | None, real: int) -> int | None:
    return inner if inner is None or limit is None else inner - max(0, real - limit)


def least_reachable(problem: Problem, what: Quantity, budget: Budget) -> tuple[int, int | None]:
    """The least flash, arena or cycles at all, and within the other limits (None if nothing is)."""
    alone = least(problem, what, Budget())
    assert alone is not None  # without limits everything is allowed
    return alone, least(problem, what, replace(budget, **{what: None}))


def _infeasible(problems: Sequence[Problem], budget: Budget) -> TinyqError:
    """TQ804 with the least that any goal's kernels reach."""
    words = []
    for what in QUANTITIES:
        limit = getattr(budget, what)
        if limit is None:
            continue
        found = [least_reachable(problem, what, budget) for problem in problems]
        within = [value for _, value in found if value is not None]
        text = f"{what} is limited to {limit:,}, the least is {min(v for v, _ in found):,}"
        text += f" ({min(within):,} within the other limits)" if within else ""
        words.append(text)
    return error("TQ804", "; ".join(words))


def _measured_front(
    candidates: Candidates,
    problem: Problem,
    budget: Budget,
    points: int,
    progress: Progress | None,
) -> tuple[tuple[Point, OutputQuality], ...]:
    prepared, found = candidates.prepared, []
    places = front(problem, budget, points)
    for point in places:
        plan = assigned(candidates, problem.forms(point.choice))
        found.append((point, prepared.evaluate(plan)))
        if progress is not None:
            progress("front", len(found), len(places))
    return tuple(found)


def _signal(candidates: Candidates) -> float:
    return float((candidates.prepared.reference.astype("float64") ** 2).mean())
