"""The front of output error against flash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tinyq.fit.problem import Budget, Choice, Prediction, Problem
from tinyq.fit.solve import least, solve


@dataclass(frozen=True)
class Point:
    """An assignment that no other beats in both error and flash, within the other limits."""

    choice: Choice
    prediction: Prediction


def front(
    problem: Problem,
    budget: Budget,
    points: int | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> tuple[Point, ...]:
    """Points from the least error to the least flash; the budget's limit of flash is not applied.

    All of them, or at most ``points``, at limits of flash that are evenly apart. Empty if the other
    limits cannot be kept. ``tell`` is called with points done, and to do at most.
    """
    free = replace(budget, flash=None)
    smallest = least(problem, "flash", free)
    if smallest is None:
        return ()
    found = [_point(problem, free)]
    largest = found[0].prediction.flash_bytes
    while (flash := found[-1].prediction.flash_bytes) > smallest:
        limit = flash - 1
        if points is not None:
            # The next of the even limits that the last point does not keep.
            step = (largest - smallest) / max(1, points - 1)
            limit = min(limit, max(smallest, int(largest - step * ((largest - flash) // step + 1))))
        found.append(_point(problem, replace(free, flash=limit)))
        if tell is not None:
            tell(len(found), points or len(found) + 1)
    return tuple(found)


def _point(problem: Problem, budget: Budget) -> Point:
    choice = solve(problem, budget)
    assert choice is not None  # the least flash is within every limit that is asked for
    return Point(choice, problem.predict(choice))
