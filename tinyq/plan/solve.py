"""The exact placement: OR-tools' CP-SAT (the extra ``solver``), begun where the heuristic ends.

Offsets are integers in units of the alignment. Each two buffers in use at a common time have a
clause: below, above, or a multiple of a period apart. One worker, a fixed seed and a limit on
counted work, not on seconds: the same version of OR-tools gives the same offsets on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyq.plan.placement import ALIGNMENT, Conflict, Conflicts, Handovers, Span

_EFFORT = 0.5
"""Most work, in the solver's own units: some seconds. The networks of docs/performance.md take less
than a tenth of it."""

_SEED = 1


@dataclass(frozen=True)
class Solved:
    """Offsets, the given ones unless fewer bytes were found; ``proved``: none take fewer."""

    offsets: list[int]
    proved: bool


def available() -> bool:
    """Whether OR-tools is installed."""
    return _cp_model() is not None


def solve(
    spans: Sequence[Span], handovers: Handovers, offsets: list[int], bound: int
) -> Solved | None:
    """The least placement, from the one at ``offsets`` and not below ``bound`` bytes.

    None without OR-tools.
    """
    cp_model = _cp_model()
    if cp_model is None:
        return None
    return _Program(cp_model, spans, Conflicts.of(spans, handovers), offsets, bound).run()


class _Program:
    """One variable an offset, one for the arena, a clause for each two buffers that conflict."""

    def __init__(
        self, cp_model: Any, spans: Sequence[Span], conflicts: Conflicts, start: list[int],
        bound: int,
    ) -> None:  # fmt: skip
        self.cp, self.model, self.start = cp_model, cp_model.CpModel(), start
        model = self.model
        self.size = max(offset + span.bytes for offset, span in zip(start, spans, strict=True))
        arena = model.new_int_var(bound, self.size, "arena")
        self.at = [
            model.new_int_var(0, (self.size - span.bytes) // ALIGNMENT, f"{k}")
            for k, span in enumerate(spans)
        ]
        for span, at, offset in zip(spans, self.at, start, strict=True):
            model.add(arena >= ALIGNMENT * at + span.bytes)
            model.add_hint(at, offset // ALIGNMENT)
        for k, others in enumerate(conflicts.others):
            for conflict in others:
                if conflict.other < k:  # each is there from both sides
                    self._apart(k, conflict)
        model.minimize(arena)

    def _apart(self, k: int, conflict: Conflict) -> None:
        """The clause of two buffers."""
        j = conflict.other
        below, above, shift, period = (
            value // ALIGNMENT
            for value in (conflict.below, conflict.above, conflict.shift, conflict.period)
        )
        distance, now = self.at[k] - self.at[j], (self.start[k] - self.start[j]) // ALIGNMENT
        ways = [(distance <= -below, now <= -below), (distance >= above, now >= above)]
        if period:
            most = (self.size // ALIGNMENT + abs(shift)) // period + 1
            times = self.model.new_int_var(-most, most, "")
            self.model.add_hint(times, (now - shift) // period)
            ways.append((distance == shift + period * times, (now - shift) % period == 0))
        chosen = []
        for way, holds in ways:
            chosen.append(self.model.new_bool_var(""))
            self.model.add_hint(chosen[-1], holds)
            self.model.add(way).only_enforce_if(chosen[-1])
        self.model.add_bool_or(chosen)

    def run(self) -> Solved:
        """The best that was found."""
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = _SEED
        solver.parameters.max_deterministic_time = _EFFORT
        # Simplifying the clauses and relaxing them to a linear program take longer than the search.
        solver.parameters.cp_model_presolve = False
        solver.parameters.linearization_level = 0
        status = solver.solve(self.model)
        if status == self.cp.UNKNOWN:
            return Solved(self.start, False)
        if status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            raise RuntimeError(f"the solver ended with {solver.status_name(status)}")
        fewer = round(solver.objective_value) < self.size
        found = [ALIGNMENT * solver.value(at) for at in self.at] if fewer else self.start
        return Solved(found, status == self.cp.OPTIMAL)


def _cp_model() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    return cp_model
