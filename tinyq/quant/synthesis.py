"""Synthesis of requantization parameters from a staircase.

Each channel's exact (multiplier, addend) pairs form a polygon (tinyq.quant.feasible). Where it is
empty, or holds no integer point, float32 has moved a threshold off the straight line; then single
accumulators are given up, as few as a search finds, and become the layer's fixes. Where they are
many, a guard leaves all accumulators near a threshold to the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from tinyq.quant.feasible import Bool, Float64, Polygons, Steps, integer_points, solve
from tinyq.quant.requantize import (
    FIX_LIMIT,
    GUARD_BITS,
    Guard,
    Requant,
    RequantProof,
    Ties,
    achieved_thresholds,
    check_ranges,
    find_fixes,
    guarded_accumulators,
)
from tinyq.quant.staircase import Int64, Oracle, Staircase

FEW_FIXES = 32
"""With no more fixes than this, the plainest form of requantization stays."""

_BEAM = 12
"""Variants of a channel kept at each number of accumulators given up."""

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Plan:
    """A form of requantization to try, and how many accumulators may be given up for it."""

    ties: Ties = "up"
    fixes: int = FEW_FIXES


_PLANS = (_Plan(), _Plan(ties="even"), _Plan(ties="odd"))
_LAST = _Plan(fixes=FIX_LIMIT)
"""In order of preference; a later one must leave fewer accumulators to fix, and few once one is
exact. The last is tried where there is no oracle to leave them to."""


@dataclass(frozen=True, eq=False)
class _Choice:
    """Integers for N rows at one pre_shift: post, multiplier, addend int64[N], found bool[N].

    ``post`` is the same for all rows.
    """

    pre: int
    post: Int64
    multiplier: Int64
    addend: Int64
    found: Bool


def synthesize(stair: Staircase, scale_hint: Float64, *, oracle: Oracle | None = None) -> Requant:
    """Find parameters that equal a staircase at every reachable accumulator.

    scale_hint: float64[C], output units per accumulator, right to within a tenth. oracle: what
    kernels can compute themselves, at some cost, and what the staircase was made from.
    Prefers the plain form while it needs few fixes, then other ties; then the plain form with a
    guard, which is always exact, or without an oracle with more fixes. Within a form it prefers the
    fewest accumulators that differ, then the smallest pre_shift. Raises ValueError if the
    accumulators do not fit int32. If more than FIX_LIMIT accumulators differ without an oracle, the
    result carries no fixes and is marked inexact.
    """
    hint = np.broadcast_to(np.asarray(scale_hint, np.float64), (stair.channels,))
    if np.any(~np.isfinite(hint) | (hint <= 0)):
        raise ValueError("scales must be positive and finite")
    best = _synthesize(stair, hint, _PLANS[0])
    for plan in (*_PLANS[1:], *(() if oracle else (_LAST,))):
        if best.proof.mismatches <= FEW_FIXES:
            return best
        requant = _synthesize(stair, hint, plan)
        allowed = FEW_FIXES if best.proof.exact else best.proof.mismatches - 1
        if requant.proof.mismatches <= allowed:
            best = requant
    if oracle is None or best.proof.mismatches <= FEW_FIXES:
        return best
    return with_guard(stair, hint, oracle)


def with_guard(stair: Staircase, hint: Float64, oracle: Oracle) -> Requant:
    """The form nearest to the staircase, its addends raised until no step comes late.

    Steps that come early are the oracle's to decide, within the smallest window that holds all.
    """
    curved = _curved(stair)
    steps = Steps.of(stair, hint).rows(curved)
    rough = solve(steps, np.full(len(curved), 31))
    pre = _largest_pre_shift(stair)
    least = int(len(curved) < stair.channels)
    post = np.maximum(_largest_post_shift(steps, rough, pre).min(), least)
    choice = _nearest(rough, pre, np.full(len(curved), post))
    late, early = _distances(steps, choice)
    raised = replace(choice, addend=choice.addend + late)
    window = int((early + late).max()) + 1
    bits = min(GUARD_BITS, max(0, int(post) - (window - 1).bit_length()))
    bare = _finish(stair, curved, raised, "up")
    ends = achieved_thresholds(bare, stair, 1 << (bare.post_shift - bits))
    guarded = guarded_accumulators(stair, achieved_thresholds(bare, stair), ends)
    proof = replace(bare.proof, exact=True, guarded=guarded)
    return replace(bare, fixes=(), proof=proof, guard=Guard(bits, oracle))


def _distances(steps: Steps, choice: _Choice) -> tuple[Int64, Int64]:
    """How far t lies below a level where it must have reached it, and above where it must not.

    Both int64[N], in units of the addend, the largest of each row.
    """
    level = steps.level << choice.post[:, None]

    def above(acc: Int64) -> Int64:
        product = (acc << choice.pre) * choice.multiplier[:, None]
        distance: Int64 = (product >> 32) + choice.addend[:, None] - level
        return distance

    nothing = np.iinfo(np.int64).min
    late = np.where(steps.lower_on, -above(steps.above), nothing).max(axis=1)
    early = np.where(steps.upper_on, above(steps.below), nothing).max(axis=1)
    return late, early


def _curved(stair: Staircase) -> Int64:
    """Indices of the channels with more than one output."""
    inside = (stair.thresholds > stair.lo[:, None]) & (stair.thresholds <= stair.hi[:, None])
    return np.flatnonzero(inside.any(axis=1))


def _synthesize(stair: Staircase, hint: Float64, plan: _Plan) -> Requant:
    curved = _curved(stair)
    pre_max = _largest_pre_shift(stair)
    if not len(curved):
        nothing = _Choice(0, _NONE, _NONE, _NONE, _NONE.astype(np.bool_))
        return _finish(stair, curved, nothing, "up")
    flat = len(curved) < stair.channels
    search = _Search(plan, least_post=int(flat) if plan.ties == "up" else 3)
    steps = Steps.of(stair, hint, ties=plan.ties).rows(curved)
    rough = solve(steps, np.full(len(curved), 31))
    best = search.at(steps, rough, pre_max)
    failing = np.flatnonzero(~best.found)
    if 0 < len(failing) <= plan.fixes:
        steps = _relax_rows(steps, failing, pre_max, best.post, plan.fixes)
        rough = solve(steps, np.full(len(curved), 31))
        best = search.at(steps, rough, pre_max)
    for pre in range(pre_max):
        choice = search.at(steps, rough, pre)
        if choice.found.sum() > best.found.sum() or choice.found.all():
            best = choice
        if choice.found.all():
            break
    return _finish(stair, curved, best, plan.ties)


def synthesize_alike(
    stairs: Sequence[Staircase], hints: Sequence[Float64], found: Sequence[Requant]
) -> tuple[Requant, ...]:
    """Give layers the same shifts where none loses by it, so that they can share their code.

    ``found`` is what :func:`synthesize` gave each staircase. Layers of the plain form are tried
    with the largest post_shift that all allow, at the smallest pre_shift that suits the most of
    them; a layer that would have more accumulators differ keeps its own shifts, and such layers are
    tried among themselves. What stays alone stays as it was.
    """
    result = list(found)
    waiting = [
        _Member(k, stair, hint)
        for k, (stair, hint, requant) in enumerate(zip(stairs, hints, found, strict=True))
        if requant.ties == "up" and requant.guard is None
    ]
    waiting = [member for member in waiting if len(member.curved)]
    if not waiting:
        return tuple(result)
    most = min(_largest_pre_shift(member.stair) for member in waiting)
    waiting.sort(key=lambda member: member.largest_post_shift(most))
    while len(waiting) > 1:
        joined = _largest_company(waiting, found, most)
        if len(joined) > 1:
            for index, requant in joined.items():
                result[index] = requant
        seed = waiting[0].index
        waiting = [m for m in waiting if m.index not in joined and m.index != seed]
    return tuple(result)


def _largest_company(
    waiting: Sequence[_Member], found: Sequence[Requant], most: int
) -> dict[int, Requant]:
    """The most members that fit the first one's post_shift at one pre_shift, by index."""
    best: dict[int, Requant] = {}
    least = max(found[member.index].pre_shift for member in waiting)
    for pre in range(min(least, most), most + 1):
        post = waiting[0].largest_post_shift(pre)
        made = {m.index: m.at(pre, post, found[m.index]) for m in waiting}
        joined = {index: requant for index, requant in made.items() if requant is not None}
        if len(joined) > len(best):
            best = joined
        if len(best) == len(waiting):
            break
    return best


class _Member:
    """A layer that may share its shifts with others."""

    def __init__(self, index: int, stair: Staircase, hint: Float64) -> None:
        self.index, self.stair = index, stair
        self.curved = _curved(stair)
        scale = np.broadcast_to(np.asarray(hint, np.float64), (stair.channels,))
        self.steps = Steps.of(stair, scale).rows(self.curved)
        self.rough = solve(self.steps, np.full(len(self.curved), 31)) if len(self.curved) else None

    def largest_post_shift(self, pre: int) -> int:
        assert self.rough is not None
        return int(_largest_post_shift(self.steps, self.rough, pre).min())

    def at(self, pre: int, post: int, found: Requant) -> Requant | None:
        """At these shifts, or None where more accumulators would differ than ``found`` leaves."""
        flat = len(self.curved) < self.stair.channels
        if post < int(flat) or post > self.largest_post_shift(pre):
            return None
        assert self.rough is not None
        shifts = np.full(len(self.curved), post, np.int64)
        steps, choice = self.steps, _integers(self.steps, self.rough, pre, shifts)
        failing, budget = np.flatnonzero(~choice.found), found.proof.mismatches
        if len(failing) > budget:
            return None
        if len(failing):
            steps = _relax_rows(steps, failing, pre, shifts, budget)
            rough = solve(steps, np.full(len(self.curved), 31))
            choice = _integers(steps, rough, pre, shifts)
        made = _finish(self.stair, self.curved, choice, "up")
        return made if made.proof.mismatches <= found.proof.mismatches else None


def _largest_pre_shift(stair: Staircase) -> int:
    low, high = int(stair.lo.min()), int(stair.hi.max())
    if low < -(2**31) or high > 2**31 - 1:
        raise ValueError(f"accumulators in [{low}, {high}] do not fit int32")
    bits = max(high.bit_length(), (-1 - low).bit_length() if low < 0 else 0)
    return min(30, 31 - bits)


@dataclass(frozen=True)
class _Search:
    """Integers at a pre_shift, within a plan and above a least post_shift."""

    plan: _Plan
    least_post: int

    def at(self, steps: Steps, rough: Polygons, pre: int) -> _Choice:
        """Integers at this pre_shift and the largest post_shift; where none fit, the nearest.

        ``rough`` are the polygons of any post_shift: they give the largest one.
        """
        post = _largest_post_shift(steps, rough, pre)
        post = np.full_like(post, post.min())
        possible = post >= self.least_post
        post = np.maximum(post, self.least_post)
        polygons = solve(steps, post) if steps.ties != "up" else rough
        choice = _integers(steps, polygons, pre, post)
        return replace(choice, found=choice.found & possible)


def _integers(steps: Steps, polygons: Polygons, pre: int, post: Int64) -> _Choice:
    """Integers within the polygons at these shifts; where none fit, the nearest."""
    multiplier, addend, found = integer_points(steps, polygons, pre, post)
    near = _nearest(polygons, pre, post)
    return replace(
        near,
        multiplier=np.where(found, multiplier, near.multiplier),
        addend=np.where(found, addend, near.addend),
        found=found,
    )


def _nearest(polygons: Polygons, pre: int, post: Int64) -> _Choice:
    """The integers nearest to the middle of the polygons, or to that of what limits them."""
    unit = np.exp2(post.astype(np.float64))
    multiplier = np.clip(np.rint(polygons.slope * unit * 2.0 ** (32 - pre)), 1, 2**31 - 1)
    addend = np.clip(np.rint(polygons.offset * unit), -(2**31), 2**31 - 1)
    nothing = np.zeros(len(post), np.bool_)
    return _Choice(pre, post, multiplier.astype(np.int64), addend.astype(np.int64), nothing)


def _largest_post_shift(steps: Steps, polygons: Polygons, pre: int) -> Int64:
    """Largest shifts int64[N] for which M, a and their sum fit int32; negative if none does."""
    ends = np.stack([steps.lo, steps.hi]) * polygons.slope_max
    offset = np.maximum(np.abs(polygons.offset_min), np.abs(polygons.offset_max))
    peak = np.maximum(np.abs(ends).max(axis=0) + offset, np.abs(steps.level).max()) + 2
    for_multiplier = pre - 1 - np.log2(polygons.slope_max) - 1e-9
    for_sum = 31 - np.log2(peak)
    most = np.floor(np.minimum(np.minimum(for_multiplier, for_sum), 31))
    post: Int64 = most.astype(np.int64)
    return post


def _relax_rows(steps: Steps, failing: Int64, pre: int, post: Int64, budget: int) -> Steps:
    """Give up accumulators of the failing rows, ``budget`` at most over all of them."""
    below, above = steps.below.copy(), steps.above.copy()
    for row in failing.tolist():
        relaxed, spent = _relax(steps.rows(np.array([row])), pre, post[row], budget)
        below[row], above[row] = relaxed.below[0], relaxed.above[0]
        budget -= spent
        if budget <= 0:
            break
    return replace(steps, below=below, above=above)


def _relax(root: Steps, pre: int, post: np.int64, budget: int) -> tuple[Steps, int]:
    """Give up the fewest accumulators of one row (N = 1) that make it solvable; a beam search.

    The constraints that bound an empty polygon cannot hold together, so one of them must go; each
    variant moves one of them by one accumulator. Returns (row, accumulators given up), with the row
    unchanged if the budget does not suffice.
    """
    beam, shifts = root, np.full(1, post)
    polygons = solve(beam, shifts)
    for spent in range(1, budget + 1):
        beam = _variants(beam, polygons)
        if not len(beam.lo):
            break
        shifts = np.full(len(beam.lo), post)
        polygons = solve(beam, shifts)
        _, _, found = integer_points(beam, polygons, pre, shifts)
        if found.any():
            return beam.rows(np.flatnonzero(found)[:1]), spent
        keep = np.argsort(-polygons.width, kind="stable")[:_BEAM]
        beam, polygons = beam.rows(keep), _rows_of(polygons, keep)
    return root, budget


def _rows_of(polygons: Polygons, index: Int64) -> Polygons:
    return Polygons(*(getattr(polygons, field.name)[index] for field in fields(Polygons)))


def _variants(beam: Steps, polygons: Polygons) -> Steps:
    """Move each constraint that limits each row by one accumulator, once each."""
    seen: dict[bytes, tuple[int, Int64, Int64]] = {}
    for row in range(len(beam.lo)):
        for tight, is_upper in ((polygons.tight_upper, True), (polygons.tight_lower, False)):
            for k in np.unique(tight[row]).tolist():
                below, above = beam.below[row].copy(), beam.above[row].copy()
                if is_upper:
                    below[k] -= beam.stride[row]
                else:
                    above[k] += beam.stride[row]
                seen.setdefault(below.tobytes() + above.tobytes(), (row, below, above))
    rows = beam.rows(np.array([row for row, _, _ in seen.values()], np.int64))
    variants = replace(
        rows,
        below=np.stack([below for _, below, _ in seen.values()]),
        above=np.stack([above for _, _, above in seen.values()]),
    )
    bounded = variants.upper_on.any(axis=1) & variants.lower_on.any(axis=1)
    return variants.rows(np.flatnonzero(bounded))


def _finish(stair: Staircase, curved: Int64, choice: _Choice, ties: Ties) -> Requant:
    """Fill in the channels of constant output, check the ranges, and list what differs."""
    post = int(choice.post.min()) if len(curved) else 8
    constant = np.array([stair.output(c, stair.lo[c : c + 1])[0] for c in range(stair.channels)])
    multiplier = np.ones(stair.channels, np.int64)
    # mulhi(acc, 1) is 0 or -1: half a unit above the level, neither crosses a boundary.
    addend = (constant << post) + (1 << post >> 1)
    multiplier[curved], addend[curved] = choice.multiplier, choice.addend
    bare = Requant(
        multiplier.astype(np.int32),
        addend.astype(np.int32),
        choice.pre,
        post,
        stair.qmin,
        stair.qmax,
        (),
        RequantProof(stair.reachable, stair.channels, 0, 0, 0, False),
        ties,
    )
    check_ranges(bare, stair)
    fixes, proof = find_fixes(stair, achieved_thresholds(bare, stair), bare)
    return replace(bare, fixes=fixes, proof=proof)
