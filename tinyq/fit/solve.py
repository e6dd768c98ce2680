"""The exact solver: an integer program in OR-tools' CP-SAT, the optional extra ``solver``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tinyq.errors import error
from tinyq.fit.problem import Budget, Choice, Problem

_UNITS = 10**9
"""Errors become integers in units of a part of the largest sum: what is beyond is a tie."""

Quantity = Literal["flash", "ram", "cycles"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


def solve(problem: Problem, budget: Budget) -> Choice | None:
    """The assignment of least error within the budget, of least flash among these; None if none is.

    Raises TQ613 without OR-tools.
    """
    program = _Program(problem, budget)
    found = program.minimise(program.error)
    if found is None:
        return None
    program.model.add(program.error == found.objective)
    best = program.minimise(program.flash)
    assert best is not None
    return best.choice


def least(problem: Problem, what: Quantity, budget: Budget) -> int | None:
    """The least flash (bytes), arena (bytes) or cycles within the budget; None if nothing is."""
    program = _Program(problem, budget)
    found = program.minimise(getattr(program, what))
    return None if found is None else found.objective


def integer_errors(problem: Problem) -> list[list[int]]:
    """Errors of every layer's options, whole numbers whose largest sum is 0.5e9 to 1e9.

    The unit is a power of two, so that sums of few binary places that are equal stay equal.
    """
    total = sum(max(abs(o.error) for o in layer.options) for layer in problem.layers)
    unit = 2.0 ** math.ceil(math.log2(total / _UNITS)) if total > 0 else 1.0
    return [[round(o.error / unit) for o in layer.options] for layer in problem.layers]


@dataclass(frozen=True)
class _Found:
    objective: int
    choice: Choice


class _Program:
    """One variable an option, one a function that may be needed, one for the arena."""

    def __init__(self, problem: Problem, budget: Budget) -> None:
        cp_model = _cp_model()
        self.cp, self.model, self.problem = cp_model, cp_model.CpModel(), problem
        model = self.model
        self.takes = [
            [model.new_bool_var(f"{i}_{k}") for k in range(len(layer.options))]
            for i, layer in enumerate(problem.layers)
        ]
        for row in self.takes:
            model.add_exactly_one(row)
        pairs = [
            (option, variable)
            for layer, row in zip(problem.layers, self.takes, strict=True)
            for option, variable in zip(layer.options, row, strict=True)
        ]
        codes = sorted({o.code for o, _ in pairs} - problem.other_codes)
        needed = {code: model.new_bool_var(f"code {n}") for n, code in enumerate(codes)}
        largest = max([problem.other_arena, *(o.arena_bytes for o, _ in pairs)])
        self.ram = model.new_int_var(problem.other_arena, largest, "arena")
        for option, variable in pairs:
            if option.code in needed:
                model.add_implication(variable, needed[option.code])
            model.add(self.ram >= option.arena_bytes).only_enforce_if(variable)
        self.error = sum(
            value * variable
            for values, row in zip(integer_errors(problem), self.takes, strict=True)
            for value, variable in zip(values, row, strict=True)
        )
        self.flash = (
            problem.other_flash
            + sum(o.constant_bytes * v for o, v in pairs)
            + sum(problem.code_bytes[c] * v for c, v in needed.items())
        )
        self.cycles = problem.other_cycles + sum(o.cycles * v for o, v in pairs)
        for expression, limit in (
            (self.flash, budget.flash), (self.ram, budget.ram), (self.cycles, budget.cycles),
        ):  # fmt: skip
            if limit is not None:
                model.add(expression <= limit)

    def minimise(self, expression: Any) -> _Found | None:
        """The least value and an assignment that has it; proved, or an error of ours."""
        self.model.minimize(expression)
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1  # more than one need not give the same answer twice
        status = solver.solve(self.model)
        if status == self.cp.INFEASIBLE:
            return None
        if status != self.cp.OPTIMAL:
            raise RuntimeError(f"the solver ended with {solver.status_name(status)}")
        choice = tuple(next(k for k, v in enumerate(r) if solver.value(v)) for r in self.takes)
        return _Found(round(solver.objective_value), choice)


def _cp_model() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise error("TQ613", "OR-tools is not installed") from None
    return cp_model
