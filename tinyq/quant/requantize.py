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
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinyq.quant.staircase import Int64, Staircase, build_staircase, frozen

Int32 = NDArray[np.int32]

Ties = Literal["up", "even", "odd"]

FIX_LIMIT = 64
"""Most corrections that a layer may carry; a layer that needs more is not exact."""


@dataclass(frozen=True, order=True)
class Fix:
    """At this raw accumulator of this channel, ``delta`` is added before the clamp."""

    channel: int
    accumulator: int
    delta: int


@dataclass(frozen=True)
class RequantProof:
    """What is known about a requantization, over every reachable accumulator of every channel.

    reachable: accumulators, summed over the channels. exact_channels: channels that agree with the
    oracle without fixes. mismatches, max_abs: accumulators that differ without fixes, and by how
    much at most. exact: with the fixes, nothing differs.
    """

    reachable: int
    channels: int
    exact_channels: int
    mismatches: int
    max_abs: int
    exact: bool


@dataclass(frozen=True, eq=False)
class Requant:
    """Parameters of one layer's requantization.

    multiplier: int32[C], 1..2**31-1. addend: int32[C]. pre_shift: 0..30, for all channels.
    post_shift: 0..31, for all channels, or int32[C] where the channels' scales are too far apart.
    ties: which outputs win exact halves; "up" is the plain form, the higher one.
    """

    multiplier: Int32
    addend: Int32
    pre_shift: int
    post_shift: int | Int32
    qmin: int
    qmax: int
    fixes: tuple[Fix, ...]
    proof: RequantProof
    ties: Ties = "up"

    def __post_init__(self) -> None:
        if np.any(self.multiplier < 1):
            raise ValueError("multipliers must be positive")
        for name in ("multiplier", "addend", "post_shift"):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                object.__setattr__(self, name, frozen(value))

    @property
    def uniform_shift(self) -> bool:
        """Whether one post_shift serves all channels."""
        return isinstance(self.post_shift, int)

    @property
    def exact(self) -> bool:
        """Whether the result, fixes applied, equals the oracle everywhere."""
        return self.proof.exact


def late_levels(levels: Int64, ties: Ties) -> Int64:
    """2 at the levels that lose ties and so begin two units of the addend later, else 0."""
    if ties == "up":
        return np.zeros_like(levels)
    return ((levels & 1) ^ (ties == "odd")) << 1


def raw_levels(requant: Requant, acc: Int64) -> Int64:
    """Outputs before fixes and clamp, int64[..., C], of raw accumulators int64[..., C]."""
    product = (np.asarray(acc, np.int64) << requant.pre_shift) * requant.multiplier.astype(np.int64)
    total = (product >> 32) + requant.addend
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


def achieved_thresholds(requant: Requant, stair: Staircase) -> Int64:
    """Thresholds int64[C, K] of the parameters without fixes, by exact integer division.

    The output is at least v if and only if ``acc * 2**pre * M >= (v * 2**post - a) * 2**32``.
    """
    level = np.arange(stair.qmin + 1, stair.qmax + 1, dtype=np.int64)
    post = np.broadcast_to(np.asarray(requant.post_shift, np.int64), (stair.channels,))
    late = late_levels(level, requant.ties)
    need = (level << post[:, None]) + late - requant.addend.astype(np.int64)[:, None]
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
    intermediate overflows. Raises ValueError if anything is not as ``requant.proof`` says.
    """
    check_ranges(requant, stair)
    bare = replace(requant, fixes=())
    found = build_staircase(
        lambda acc: apply(bare, acc.T).T.astype(np.int64),
        stair.lo,
        stair.hi,
        stair.qmin,
        stair.qmax,
        stair.stride,
    )
    fixes, proof = find_fixes(stair, found.thresholds, bare)
    if proof != requant.proof or fixes != requant.fixes:
        raise ValueError(f"the requantization is not what it says: {proof} but {requant.proof}")
    for fix in fixes:
        at = np.full(stair.channels, fix.accumulator, np.int64)
        want = stair.output(fix.channel, np.array([fix.accumulator]))[0]
        if apply(requant, at)[fix.channel] != want:
            raise ValueError(f"{fix} does not give the wanted output {want}")
    return proof
