"""Requantization with integers alone: parameters, reference and proof.

A linear operator's raw accumulator becomes its output by

    y = clamp((mulhi(acc << pre_shift, M[c]) + a[c]) >> post_shift, qmin, qmax)

with ``mulhi(p, q) = (p * q) >> 32`` and arithmetic shifts, which floor. Synthesis finds M and a for
which that equals an oracle at every reachable accumulator; where no pair does, it lists the
accumulators to correct. :func:`prove` checks a result again by another way.

Where a scale is a power of two (or 1 over an even number), accumulators fall on exact halves, which
float32 rounds to even before the zero point is added: no straight line does. Such a layer has
``ties`` "even" (or "odd" if its zero point is odd), and ``t = mulhi(acc << pre_shift, M) + a`` is
lessened before the last shift by ``(t >> (post_shift - 1)) & 2`` (or ``~(...) & 2``): a level
that loses ties then needs two units of the addend more. Two, so that a tie can lie one unit above
its level, where a multiplier that is not exact to the last bit leaves it on the right side.

Where no form is exact, the nearest one is given a :class:`Guard`: the accumulators for which t lies
just above a step are left to the oracle's own rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinyq.quant.staircase import Int64, Oracle, Staircase, build_staircase, frozen

Int32 = NDArray[np.int32]

Ties = Literal["up", "even", "odd"]

FIX_LIMIT = 64
"""Most corrections that a requantization may carry; without a guard one that needs more is not
exact."""

GUARD_BITS = 8
"""Most leading bits of the fraction that a guard looks at: what one TST instruction can."""


@dataclass(frozen=True, order=True)
class Fix:
    """At this raw accumulator of this channel, ``delta`` is added before the clamp."""

    channel: int
    accumulator: int
    delta: int


@dataclass(frozen=True, eq=False)
class Guard:
    """Accumulators near a step are left to the oracle.

    The form decides where any of the ``bits`` highest bits of t's fraction (those below post_shift)
    is 1; where all are 0, ``oracle`` gives the output. bits: 0..:data:`GUARD_BITS`; with 0 the
    oracle gives all.
    """

    bits: int
    oracle: Oracle

    def mask(self, post_shift: int) -> int:
        """The bits of t that are looked at."""
        return ((1 << self.bits) - 1) << (post_shift - self.bits)


@dataclass(frozen=True)
class RequantProof:
    """What is known about a requantization, over every reachable accumulator of every channel.

    reachable: accumulators, summed over the channels. exact_channels: channels that agree with the
    oracle without fixes and guard. mismatches, max_abs: accumulators that differ without them, and
    by how much at most. exact: with them, nothing differs. guarded: accumulators between the lowest
    and the highest output (or at a step to one of them) that the guard leaves to the oracle.
    """

    reachable: int
    channels: int
    exact_channels: int
    mismatches: int
    max_abs: int
    exact: bool
    guarded: int = 0


@dataclass(frozen=True, eq=False)
class Requant:
    """Parameters of one layer's requantization.

    multiplier: int32[C], 1..2**31-1. addend: int32[C]. pre_shift: 0..30, post_shift: 0..31.
    ties: which outputs win exact halves; "up" is the plain form, the higher one.
    guard: there are no fixes and ties go "up" then.
    """

    multiplier: Int32
    addend: Int32
    pre_shift: int
    post_shift: int
    qmin: int
    qmax: int
    fixes: tuple[Fix, ...]
    proof: RequantProof
    ties: Ties = "up"
    guard: Guard | None = None

    def __post_init__(self) -> None:
        if np.any(self.multiplier < 1):
            raise ValueError("multipliers must be positive")
        if self.guard is not None and (self.fixes or self.ties != "up"):
            raise ValueError("a guard leaves nothing to fixes and ties")
        for name in ("multiplier", "addend"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    @property
    def exact(self) -> bool:
        """Whether the result, fixes and guard applied, equals the oracle everywhere."""
        return self.proof.exact


def late_levels(levels: Int64, ties: Ties) -> Int64:
    """2 at the levels that lose ties and so begin two units of the addend later, else 0."""
    if ties == "up":
        return np.zeros_like(levels)
    return ((levels & 1) ^ (ties == "odd")) << 1


def _sums(requant: Requant, acc: Int64) -> Int64:
    """t before anything is taken away for ties, int64[..., C]."""
    product = (np.asarray(acc, np.int64) << requant.pre_shift) * requant.multiplier.astype(np.int64)
    total: Int64 = (product >> 32) + requant.addend
    return total


def raw_levels(requant: Requant, acc: Int64) -> Int64:
    """Outputs before fixes, guard and clamp, int64[..., C], of raw accumulators int64[..., C]."""
    total = _sums(requant, acc)
    total -= late_levels(total >> requant.post_shift, requant.ties)
    return total >> requant.post_shift


def apply(requant: Requant, acc: Int64) -> NDArray[np.signedinteger]:
    """Requantize raw accumulators int64[..., C]: the reference that generated C must equal.

    Returns int8[..., C], or int16 where [qmin, qmax] needs it.
    """
    levels = raw_levels(requant, acc)
    for fix in requant.fixes:
        at = np.asarray(acc)[..., fix.channel] == fix.accumulator
        levels[..., fix.channel] += fix.delta * at
    narrow = requant.qmin >= -128 and requant.qmax <= 127
    clamped = np.clip(levels, requant.qmin, requant.qmax)
    if requant.guard is not None:
        near = (_sums(requant, acc) & requant.guard.mask(requant.post_shift)) == 0
        rows = np.asarray(acc, np.int64).reshape(-1, clamped.shape[-1])
        clamped = np.where(near, requant.guard.oracle(rows.T).T.reshape(clamped.shape), clamped)
    return clamped.astype(np.int8 if narrow else np.int16)


def find_fixes(
    stair: Staircase, achieved: Int64, requant: Requant
) -> tuple[tuple[Fix, ...], RequantProof]:
    """List every accumulator where thresholds int64[C, K] differ from the staircase's.

    Returns (fixes, proof); no fixes if they would be more than :data:`FIX_LIMIT`.
    """
    differs = (achieved != stair.thresholds).any(axis=1)
    strides = np.asarray(stair.stride)
    fixes: list[Fix] = []
    mismatches = max_abs = 0
    for c in np.flatnonzero(differs).tolist():
        wanted, got = stair.thresholds[c], achieved[c]
        mismatches += _count_between(wanted, got) // int(strides[c])
        max_abs = max(max_abs, _largest_gap(wanted, got))
        if mismatches <= FIX_LIMIT:
            fixes += _channel_fixes(c, stair, got, requant)
    exact = mismatches <= FIX_LIMIT
    proof = RequantProof(
        reachable=stair.reachable,
        channels=stair.channels,
        exact_channels=int(np.sum(~differs)),
        mismatches=mismatches,
        max_abs=max_abs,
        exact=exact,
    )
    return (tuple(sorted(fixes)) if exact else ()), proof


def _channel_fixes(channel: int, stair: Staircase, achieved: Int64, requant: Requant) -> list[Fix]:
    wanted = stair.thresholds[channel]
    start, end = np.minimum(wanted, achieved), np.maximum(wanted, achieved)
    stride = int(np.asarray(stair.stride)[channel])
    spans = [np.arange(s, e, stride) for s, e in zip(start, end, strict=True) if s < e]
    wrong = np.unique(np.concatenate(spans))
    grid = np.zeros((len(wrong), stair.channels), np.int64)
    grid[:, channel] = wrong
    delta = stair.output(channel, wrong) - raw_levels(requant, grid)[:, channel]
    return [Fix(channel, int(acc), int(d)) for acc, d in zip(wrong, delta, strict=True)]


def _count_between(wanted: Int64, got: Int64) -> int:
    """Length of the spans in which two rows of thresholds int64[K] disagree (their union)."""
    start, end = np.minimum(wanted, got), np.maximum(wanted, got)
    start[1:] = np.maximum(start[1:], end[:-1])
    return int(np.sum(np.maximum(end - start, 0)))


def _largest_gap(wanted: Int64, got: Int64) -> int:
    """Largest difference in levels; it begins at some threshold of either row."""
    at = np.concatenate([wanted, got])
    levels = [np.searchsorted(row, at, side="right") for row in (wanted, got)]
    inside = at < max(int(wanted[-1]), int(got[-1]))
    return int(np.max(np.abs(levels[0] - levels[1]) * inside, initial=0))


def achieved_thresholds(requant: Requant, stair: Staircase, window: int = 0) -> Int64:
    """Thresholds int64[C, K] of the parameters without fixes, by exact integer division.

    With a ``window`` where t lies so far above the levels.

    The output is at least v if and only if ``acc * 2**pre * M >= (v * 2**post - a) * 2**32``.
    """
    level = np.arange(stair.qmin + 1, stair.qmax + 1, dtype=np.int64)
    late = late_levels(level, requant.ties)
    need = (level << requant.post_shift) + late + window - requant.addend.astype(np.int64)[:, None]
    # Beyond the top words that reachable accumulators give, a threshold is outside anyway.
    numerator = np.clip(need, -(2**31) + 1, 2**31 - 1) << 32
    divisor = (requant.multiplier.astype(np.int64) << requant.pre_shift)[:, None]
    lo, hi, stride = (np.asarray(v)[:, None] for v in (stair.lo, stair.hi, stair.stride))
    thresholds: Int64 = np.clip(-(-numerator // divisor), lo, hi + 1)
    snapped: Int64 = lo - (lo - thresholds) // stride * stride
    return snapped


def check_ranges(requant: Requant, stair: Staircase) -> None:
    """Prove that nothing overflows int32 at any reachable accumulator; ValueError if it does."""
    ends = np.stack([stair.lo, stair.hi])
    shifted = ends << requant.pre_shift
    total = ((shifted * requant.multiplier.astype(np.int64)) >> 32) + requant.addend
    for values in (shifted, total, total - 2 * (requant.ties != "up")):
        if values.min() < -(2**31) or values.max() > 2**31 - 1:
            raise ValueError("an intermediate value of the requantization does not fit int32")


def prove(requant: Requant, stair: Staircase) -> RequantProof:
    """Check a requantization against its staircase without using how it was synthesised.

    Bisects :func:`apply` for the thresholds that it really has, demands that the fixes are exactly
    the accumulators that then differ, that each fix gives the wanted output, and that no
    intermediate overflows. Of a guard it demands that every wanted threshold lies where the guard
    begins, where it ends, or between. Raises ValueError if anything is not as ``requant.proof``
    says.
    """
    check_ranges(requant, stair)
    bare = replace(requant, fixes=(), guard=None)
    begin = _bisected(stair, lambda acc: apply(bare, acc).astype(np.int64))
    fixes, proof = find_fixes(stair, begin, bare)
    if requant.guard is not None:
        window = 1 << (requant.post_shift - requant.guard.bits)
        end = _bisected(stair, lambda acc: _sums(bare, acc) - window >> bare.post_shift)
        inside = (begin <= stair.thresholds) & (stair.thresholds <= end)
        exact = requant.guard.bits == 0 or bool(inside.all())
        fixes, proof = (
            (),
            replace(proof, exact=exact, guarded=guarded_accumulators(stair, begin, end)),
        )
    if proof != requant.proof or fixes != requant.fixes:
        raise ValueError(f"the requantization is not what it says: {proof} but {requant.proof}")
    for fix in fixes:
        at = np.full(stair.channels, fix.accumulator, np.int64)
        want = stair.output(fix.channel, np.array([fix.accumulator]))[0]
        if apply(requant, at)[fix.channel] != want:
            raise ValueError(f"{fix} does not give the wanted output {want}")
    return proof


def guarded_accumulators(stair: Staircase, begin: Int64, end: Int64) -> int:
    """How many reachable accumulators lie between thresholds, both int64[C, K]."""
    return int(np.sum((end - begin) // np.asarray(stair.stride)[:, None]))


def _bisected(stair: Staircase, levels: Callable[[Int64], Int64]) -> Int64:
    """The thresholds int64[C, K] of what gives levels [n, C] for accumulators int64[n, C]."""
    limits = (stair.qmin, stair.qmax)
    found = build_staircase(
        lambda acc: np.clip(levels(acc.T), *limits).T, stair.lo, stair.hi, *limits, stair.stride
    )
    return found.thresholds
