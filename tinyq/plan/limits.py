"""Limits on memory: met by what costs least, or refused with what is in the way.

Kernels with less scratch, the kernels of a smaller goal and every remedy (stripes of rows) compete:
whatever needs few enough bytes is priced as the goal does, and placed in the order of the prices
until a placement keeps the limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from tinyq.errors import TinyqError, error
from tinyq.ir import Graph
from tinyq.plan.exchange import Exchange, Peaks
from tinyq.plan.memory import MemoryPlan, plan, plan_exactly, plan_shared
from tinyq.plan.order import order_layers
from tinyq.plan.packed import Packing
from tinyq.plan.price import Cost, flash_estimate, price, price_within
from tinyq.plan.refusal import flash_problem, ram_problem
from tinyq.plan.remedies import Proposal, Remedy
from tinyq.plan.solve import available
from tinyq.plan.stripes import Stripes
from tinyq.select import Goal, Libraries, Schedule, select
from tinyq.target import Core

Advice = Callable[[int, int], str]
"""Told the least bytes of arena and of flash that were found."""

_LITTLE = 1.1
"""Times the instructions that packed activations may take where they are asked for."""

_PLACEMENTS = 8
"""Schedules that are placed at most to meet limits, of the asked goal and again of all."""

_MOST_FLASH = 0.03
"""Part of the flash that a remedy may cost where no limit asks for it."""

_NO_SOLVER = "OR-tools is not installed: pip install 'tinyq[solver]'"

_SMALLER = (Goal.SPEED, Goal.BALANCED, Goal.SIZE)
"""Each goal gives less flash than the one before."""


@dataclass(frozen=True)
class Limits:
    """Most bytes that the network may take, None without limit.

    ram: the arena; the stack, some hundred bytes that a verification measures, comes on top.
    flash: constants and the estimate of the code.
    """

    ram: int | None = None
    flash: int | None = None

    def allow(self, memory: MemoryPlan, flash: int) -> bool:
        """Whether both limits are kept."""
        return (self.ram is None or memory.arena_bytes <= self.ram) and (
            self.flash is None or flash <= self.flash
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was chosen, and a note on everything that moved the choice.

    ``general`` are the notes that hold with other kernels too, ``exchanged`` is that on kernels,
    ``placed`` that on the solver.
    """

    schedule: Schedule
    plan: MemoryPlan
    general: tuple[str, ...] = ()
    exchanged: str = ""
    placed: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Every note."""
        return (*self.general, *(note for note in (self.exchanged, self.placed) if note))


def parse_bytes(text: str) -> int:
    """Bytes from ``32K``, ``1M`` or ``4096``; K is 1024. Raises TQ303."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KM]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise error("TQ303", f"'{text}' is no size", "Write bytes as 32768, 32K or 1M.")
    return int(float(found[1]) * {"": 1, "K": 1024, "M": 1024**2}[found[2].upper()])


def fit(
    graph: Graph, core: Core, goal: Goal, limits: Limits, libraries: Libraries | None = None,
    family: str = "", advise: Advice | None = None, packing: str = "auto",
) -> Fitted:  # fmt: skip
    """Select and plan within ``limits``.

    Where the choice without limits does not keep them, the cheapest one that does is taken, of all
    combinations of kernels with less scratch and remedies; then the smaller goals' kernels compete
    too. ``packing`` says whether activations of few values may be packed: where that costs least
    (``auto``), ``never``, or ``always`` where it makes the arena smaller at little cost. What is
    chosen is placed by the solver (:mod:`tinyq.plan.solve`) if the heuristic leaves something to
    find, and so is what was tried before a limit is refused.

    ``libraries`` and ``family`` are those of :func:`tinyq.select.select`. ``advise`` adds to the
    remedies what else would help.

    Raises one TinyqError with TQ801 (RAM) and TQ802 (flash) for the limits that nothing meets.
    """

    def selected(attempt: Goal) -> Fitted:
        return _ordered(select(graph, core, attempt, libraries=libraries, family=family))

    usual = selected(goal)
    remedies: tuple[Remedy, ...] = (Stripes(usual.schedule.graph, core, libraries, family),)
    packed = Packing(usual.schedule.graph, core, libraries, family)
    if packing != "never":
        remedies = (*remedies, packed)
    found = _cheapest(usual, remedies if goal is Goal.SIZE else ())
    if packing == "always":
        found = _smallest(found, usual, packed)
    if limits.allow(found.plan, flash_estimate(found.schedule)):
        return _solved(found)
    search = _Search(usual, limits, remedies)
    search.tried.append(found)
    met = search.run([usual])
    if met is None:
        smaller = _SMALLER[_SMALLER.index(goal) + 1 :]
        others = [
            replace(found, general=(_moved(goal, attempt), *found.general))
            for attempt, found in ((a, selected(a)) for a in smaller)
        ]
        met = search.run(others) if others else None
    met = met or search.solved()
    if met is not None:
        return _solved(met)
    tried = [(found.schedule, found.plan) for found in search.tried]
    problems = [*ram_problem(tried, limits.ram), *flash_problem(tried, limits.flash)]
    arena = min(memory.arena_bytes for _, memory in tried)
    more = advise(arena, min(flash_estimate(s) for s, _ in tried)) if advise is not None else ""
    if search.placeable() and not available():
        more = f"A better placement may keep the limit, but {_NO_SOLVER}. {more}"
    raise TinyqError([replace(p, remedy=f"{p.remedy} {more}".strip()) for p in problems])


def _ordered(schedule: Schedule) -> Fitted:
    """The plan with layers in the best order."""
    first = plan_shared(schedule)
    ordered = order_layers(schedule)
    if ordered is not schedule:
        other = plan_shared(ordered)
        if other[1].arena_bytes < first[1].arena_bytes:
            note = (
                f"layers run in another order: {other[1].arena_bytes:,} bytes of arena, not "
                f"{first[1].arena_bytes:,}"
            )
            return Fitted(*other, (note,))
    return Fitted(*first)


def _solved(found: Fitted) -> Fitted:
    """As the solver places it, with a note where the bytes that are needed were not reached."""
    before, memory = found.plan, plan_exactly(found.schedule, found.plan)
    if found.placed or before.arena_bytes == before.live_bytes:
        return found
    note = f"{memory.arena_bytes:,} bytes of arena"
    if memory.arena_bytes < before.arena_bytes:
        note = f"placed by the solver: {note}, not {before.arena_bytes:,}"
    else:
        note = f"placed by the heuristic: {note}, at least {memory.live_bytes:,} are needed"
    if memory.method == "solver, proved least":
        note += "; the solver has proved that no placement takes fewer"
    elif not available():
        note += f"; {_NO_SOLVER} to search for fewer"
    return replace(found, plan=memory, placed=note)


def _cheapest(usual: Fitted, remedies: Sequence[Remedy]) -> Fitted:
    """What costs the goal least without limits: kernels exchanged as far as it pays for the bytes
    of arena that are saved, in the whole network or in a proposal."""
    goal = usual.schedule.goal
    if goal is Goal.SPEED:
        return usual
    reference = Cost.of(usual.schedule, usual.plan.arena_bytes)
    whole = Peaks(usual.schedule)
    options = [_Option(usual, None, whole, exchange) for exchange in whole.exchanges()]
    least = options[-1].exchange.needed
    most = flash_estimate(usual.schedule) * (1 + _MOST_FLASH)
    for proposal in (p for r in remedies for p in r.proposals(usual.schedule, least - 1)):
        peaks = Peaks(proposal.schedule)
        options += [
            _Option(usual, proposal, peaks, exchange)
            for exchange in peaks.exchanges()
            if flash_estimate(exchange.schedule) <= most
        ]

    def rank(option: _Option) -> tuple[float, float]:
        cost = Cost.of(option.exchange.schedule, option.exchange.needed)
        return price(goal, cost, reference), cost.time

    best, highest = usual, price(goal, reference, reference)
    ranked = sorted(((rank(option), k) for k, option in enumerate(options)))
    for (bound, _), k in ranked[:_PLACEMENTS]:
        if bound >= highest:
            break
        found = options[k].place()
        reached = price(goal, Cost.of(found.schedule, found.plan.arena_bytes), reference)
        if reached < highest:
            best, highest = found, reached
    return best


def _smallest(found: Fitted, usual: Fitted, remedy: Remedy) -> Fitted:
    """What the remedy makes smallest at little cost, if it is smaller than what was found."""
    most = max(Peaks(found.schedule).needed.values(), default=0) - 1
    slowest = _LITTLE * found.schedule.instructions
    options = []
    for proposal in remedy.proposals(usual.schedule, most):
        peaks = Peaks(proposal.schedule)
        little = [e for e in peaks.exchanges() if e.schedule.instructions <= slowest]
        if little:
            options.append(_Option(usual, proposal, peaks, little[-1]))
    for option in sorted(options, key=lambda option: option.exchange.needed)[:_PLACEMENTS]:
        other = option.place()
        if other.plan.arena_bytes < found.plan.arena_bytes:
            found = other
    return found


@dataclass(frozen=True, eq=False)
class _Option:
    """``base``, or a proposal in its place, with kernels exchanged; not placed yet."""

    base: Fitted
    proposal: Proposal | None
    peaks: Peaks
    exchange: Exchange

    def place(self) -> Fitted:
        """Placed, with a note on what it changes."""
        schedule, base = self.exchange.schedule, self.base
        # Stripes share memory in any case: apart, each of their joins would copy a buffer.
        schedule, memory = (schedule, plan(schedule)) if schedule.rows else plan_shared(schedule)
        if self.proposal is not None:
            return Fitted(schedule, memory, (*base.general, self._proposed(memory)))
        changed = self.exchange.schedule is not self.peaks.schedule
        return Fitted(
            schedule, memory, base.general,
            _exchanged(base.plan, memory) if changed else base.exchanged,
        )  # fmt: skip

    def _proposed(self, memory: MemoryPlan) -> str:
        assert self.proposal is not None
        before = self.base.schedule.instructions
        more = 100 * (self.exchange.schedule.instructions / max(1, before) - 1)
        changed = self.exchange.schedule is not self.peaks.schedule
        kernels = ", with kernels of less scratch where memory is fullest" if changed else ""
        return (
            f"{self.proposal.what}{kernels}: {memory.arena_bytes:,} bytes of arena, not "
            f"{self.base.plan.arena_bytes:,}, {more:+.1f}% instructions (estimate); "
            f"{self.proposal.cost}"
        )


class _Search:
    """The cheapest schedules that keep limits; ``tried`` are those that were placed."""

    def __init__(self, usual: Fitted, limits: Limits, remedies: Sequence[Remedy]) -> None:
        self.goal, self.limits, self.remedies = usual.schedule.goal, limits, remedies
        self.usual = Cost.of(usual.schedule, usual.plan.arena_bytes)
        self.tried: list[Fitted] = []

    def run(self, bases: Sequence[Fitted]) -> Fitted | None:
        """The cheapest that is derived from ``bases``; None where none keeps the limits."""
        waiting: list[tuple[float, int, _Option]] = []
        hopeless: list[tuple[Fitted, Proposal | None, Peaks]] = []
        limit = self._limit(bases)
        for number, (base, proposal) in enumerate(self._forms(bases)):
            peaks = Peaks(base.schedule if proposal is None else proposal.schedule)
            exchange = peaks.within(limit)
            if exchange is None:
                hopeless.append((base, proposal, peaks))
                continue
            option = _Option(base, proposal, peaks, exchange)
            waiting.append((self._price(exchange), number, option))
        heapify(waiting)
        for _ in range(_PLACEMENTS):
            if not waiting:
                break
            _, number, option = heappop(waiting)
            found = option.place()
            self.tried.append(found)
            if self._allow(found):
                return found
            # Placed it takes more than the least that it needs: the same with smaller peaks.
            smaller = option.peaks.within(option.exchange.needed - 1)
            if found.plan.arena_bytes > limit and smaller is not None:
                entry = self._price(smaller), number, replace(option, exchange=smaller)
                heappush(waiting, entry)
        if hopeless and all(found.plan.arena_bytes > limit for found in self.tried):
            base, proposal, peaks = min(hopeless, key=lambda entry: max(entry[2].needed.values()))
            exchange = peaks.within(peaks.least_beyond(limit))
            assert exchange is not None
            self.tried.append(_Option(base, proposal, peaks, exchange).place())
        return None

    def placeable(self) -> list[int]:
        """Those tried which the heuristic has not placed within the limit, but something may."""
        limit = self.limits.ram
        plans = [found.plan for found in self.tried]
        return [
            k for k, memory in enumerate(plans)
            if limit is not None and memory.live_bytes <= limit < memory.arena_bytes
        ]  # fmt: skip

    def solved(self) -> Fitted | None:
        """The first of those tried that keeps the limits where the solver places it."""
        for k in self.placeable():
            self.tried[k] = _solved(self.tried[k])
            if self._allow(self.tried[k]):
                return self.tried[k]
        return None

    def _allow(self, found: Fitted) -> bool:
        return self.limits.allow(found.plan, flash_estimate(found.schedule))

    def _limit(self, bases: Sequence[Fitted]) -> int:
        """On the arena; where there is none, that of the largest base."""
        if self.limits.ram is not None:
            return self.limits.ram
        return max(base.plan.arena_bytes for base in bases)

    def _forms(self, bases: Sequence[Fitted]) -> Iterator[tuple[Fitted, Proposal | None]]:
        for base in bases:
            yield base, None
            if self.limits.ram is not None and base.plan.arena_bytes > self.limits.ram:
                for remedy in self.remedies:
                    for proposal in remedy.proposals(base.schedule, self.limits.ram):
                        yield base, proposal

    def _price(self, exchange: Exchange) -> float:
        return price_within(self.goal, Cost.of(exchange.schedule, exchange.needed), self.usual)


def _exchanged(before: MemoryPlan, after: MemoryPlan) -> str:
    return (
        f"kernels with less scratch where memory is fullest: {after.arena_bytes:,} bytes of arena, "
        f"not {before.arena_bytes:,}"
    )


def _moved(goal: Goal, attempt: Goal) -> str:
    return f"kernels are chosen for {attempt.value}, not {goal.value}, to keep the memory limits"
