"""Learned rounding of weights: up or down, by what it does to the layer's output.

After Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020): a soft
choice h in [0, 1] for each weight is trained with Adam under a term that drives it to 0 or 1. The
layer's output error is a quadratic form here (see :mod:`tinyq.ptq.moments`), so that a step costs
one matrix product, whatever the number of samples; and after rounding, single weights are flipped
as long as that lowers the error, which Adam alone leaves undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyq.ptq.moments import Doubles, Floats, Moments

_ZETA, _GAMMA = 1.1, -0.1  # the sigmoid is stretched, so that it reaches 0 and 1
_BETA_START, _BETA_END = 20.0, 2.0
_WARM_UP = 0.2  # part of the steps without the rounding term
_SWEEPS = 20
_PAIR_SWEEPS = 4


@dataclass(frozen=True)
class RoundingResult:
    """Integers [O, K] and the mean squared output error before (nearest) and after."""

    integers: npt.NDArray[np.int8]
    error_nearest: float
    error: float


def learn_rounding(
    weight: Floats,
    steps: Floats,
    levels: Sequence[int],
    moments: Moments,
    iterations: int = 500,
) -> RoundingResult:
    """Integers of ``weight`` [O, K] at ``steps`` [O] that keep the layer's output closest.

    Each integer is the level below or above weight / step; ``levels`` ascend.
    """
    groups = len(moments.second)
    table = np.asarray(levels, np.float64)
    w = weight.reshape(groups, -1, weight.shape[-1]).astype(np.float64)
    s = steps.reshape(groups, -1, 1).astype(np.float64)
    target = w @ moments.cross
    below = np.maximum(np.searchsorted(table, w / s, side="right") - 1, 0)
    floor, ceiling = table[below], table[np.minimum(below + 1, len(table) - 1)]
    between = np.where(ceiling > floor, ceiling - floor, 1.0)
    nearest = np.where(w / s - floor < ceiling - w / s, floor, ceiling)
    scaled, low, gap, step, wanted, second = (
        a.astype(np.float32) for a in (w / s, floor, between, s, target, moments.second)
    )
    soft = _relax(scaled, low, gap, step, wanted, second, iterations)
    best, best_error = nearest, np.inf
    for start in (nearest, np.where(soft >= 0.5, ceiling, floor)):
        polished = _flip(start, floor, ceiling, s, target, moments.second)
        polished = _flip_pairs(polished, floor, ceiling, s, target, moments.second)
        error = _error(polished * s, target, moments.second)
        if error.sum() < best_error:
            best, best_error = polished, float(error.sum())
    constant = _constant(w, moments)
    before = float(_error(nearest * s, target, moments.second).sum())
    return RoundingResult(
        best.reshape(weight.shape).astype(np.int8), before + constant, best_error + constant
    )


def _constant(w: Doubles, moments: Moments) -> float:
    """E|W x|^2, taken from the quantized input's moments: a scale for the errors."""
    return float(np.einsum("gok,gkl,gol->", w, moments.second, w))


def _error(q: Doubles, target: Doubles, second: Doubles) -> Doubles:
    """E|q x' - w x|^2 of each output [groups, O], less the part that does not depend on q."""
    error: Doubles = np.einsum("gok,gok->go", q @ second - 2 * target, q)
    return error


def _stretched(v: Floats) -> tuple[Floats, Floats]:
    sigmoid = 1 / (1 + np.exp(-v))
    h = sigmoid * (_ZETA - _GAMMA) + _GAMMA
    slope = np.where((h > 0) & (h < 1), sigmoid * (1 - sigmoid) * (_ZETA - _GAMMA), 0.0)
    return np.clip(h, 0, 1), slope


def _relax(
    scaled: Floats,
    floor: Floats,
    gap: Floats,
    s: Floats,
    target: Floats,
    second: Floats,
    iterations: int,
) -> Floats:
    """Soft choices h [groups, O, K] after Adam.

    In float32, which halves the time: the choices are made hard and polished in float64 later.
    """
    fraction = np.clip((scaled - floor) / gap, 0.0, 1.0)
    v = -np.log((_ZETA - _GAMMA) / (np.clip(fraction, 0.01, 0.99) - _GAMMA) - 1)
    # The error is measured in units of what rounding every weight at random would cost, so that
    # one weight of the rounding term suits all layers.
    diagonal = np.einsum("gkk->gk", second)[:, None, :]
    unit = np.maximum(np.mean((s * gap) ** 2 * diagonal) / 12, 1e-30)
    first_moment, second_moment = np.zeros_like(v), np.zeros_like(v)
    rate, decay1, decay2 = 0.05, 0.9, 0.99
    for i in range(iterations):
        h, slope = _stretched(v)
        gradient = 2 * ((floor + h * gap) * s @ second - target) * s * gap / unit * 0.5
        progress = (i / iterations - _WARM_UP) / (1 - _WARM_UP)
        if progress > 0:
            beta = _BETA_END + (_BETA_START - _BETA_END) * 0.5 * (1 + np.cos(progress * np.pi))
            away = 2 * h - 1
            gradient = gradient - progress * 2 * beta * np.abs(away) ** (beta - 1) * np.sign(away)
        gradient = gradient * slope
        first_moment = decay1 * first_moment + (1 - decay1) * gradient
        second_moment = decay2 * second_moment + (1 - decay2) * gradient**2
        corrected = first_moment / (1 - decay1 ** (i + 1))
        v = v - rate * corrected / (np.sqrt(second_moment / (1 - decay2 ** (i + 1))) + 1e-12)
    return _stretched(v)[0]


def _flip(
    q: Doubles, floor: Doubles, ceiling: Doubles, s: Doubles, target: Doubles, second: Doubles
) -> Doubles:
    """Move weights between floor and ceiling one input at a time while the error falls."""
    q = q.copy()
    gradient = (q * s) @ second - target
    step = s[:, :, 0]
    for _ in range(_SWEEPS):
        moved = 0
        for k in range(q.shape[2]):
            up = q[:, :, k] <= floor[:, :, k]
            other = np.where(up, ceiling[:, :, k], floor[:, :, k])
            delta = (other - q[:, :, k]) * step
            gain = 2 * delta * gradient[:, :, k] + delta**2 * second[:, k, k][:, None]
            delta = np.where(gain < -1e-15, delta, 0.0)
            if not delta.any():
                continue
            moved += int(np.count_nonzero(delta))
            q[:, :, k] = np.where(delta != 0, other, q[:, :, k])
            gradient += delta[:, :, None] * second[:, k, :][:, None, :]
        if not moved:
            break
    return q


def _flip_pairs(
    q: Doubles, floor: Doubles, ceiling: Doubles, s: Doubles, target: Doubles, second: Doubles
) -> Doubles:
    """Flip two weights of an output together where that lowers the error, though neither does.

    Neighbouring inputs are correlated, so that rounding errors of opposite sign cancel.
    """
    q = q.copy()
    gradient = (q * s) @ second - target
    diagonal = np.einsum("gkk->gk", second)[:, None, :]
    delta = np.where(q <= floor, ceiling - q, floor - q) * s
    rows = np.indices(q.shape[:2])
    for _ in range(_PAIR_SWEEPS):
        moved = 0
        for k in range(q.shape[2]):
            single = delta * (2 * gradient + delta * diagonal)
            pair = single[:, :, k, None] + single
            pair += 2 * delta[:, :, k, None] * delta * second[:, k, :][:, None, :]
            pair[:, :, k] = single[:, :, k]
            partner = pair.argmin(axis=2)
            better = np.take_along_axis(pair, partner[:, :, None], axis=2)[:, :, 0] < -1e-12
            if not better.any():
                continue
            moved += int(better.sum())
            # A partner equal to k stands for a single flip.
            both = better & (partner != k)
            for index, active in ((partner, better), (np.full_like(partner, k), both)):
                where = (rows[0][active], rows[1][active], index[active])
                change = delta[where]
                q[where] += np.rint(change / s[where[0], where[1], 0])
                gradient[where[:2]] += change[:, None] * second[where[0], where[2], :]
                delta[where] = -change
        if not moved:
            break
    return q
