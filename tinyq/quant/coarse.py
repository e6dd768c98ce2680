"""Weights to the nearest of few levels, without training: what ``tinyq compile --weights`` does.

Every output channel gets its own step, of least squared error; a codebook is shared by the layer,
since kernels hold one table of levels a layer.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from tinyq.errors import error
from tinyq.quant import levels
from tinyq.quant.levels import LevelSet, Values

FORMATS = (
    "binary", "ternary", "int2", "int3", "int4", "int5", "pot3", "pot4", "apot2", "apot3",
    "apot4", "apot5", "lut2", "lut3", "lut4", "lut5",
)  # fmt: skip
"""Names of the options; ``lut`` is a codebook of k-means. Powers of two of 2 bits are ternary."""

KEPT = "int8"
"""Leaves a layer as it is."""

_CANDIDATES = np.geomspace(0.05, 1.25, 64)
"""Steps tried, as parts of the one at which the largest weight is the largest level."""

_FINEST_UNIT = 8
"""Small level sets are multiplied by a power of two up to this: biases are whole accumulators."""

_ROUNDS = 2

_ONE_LEVEL = 2.0
"""Weights nearer to one another than this, of 127, give no two integer centroids."""


def check_format(text: str, option: str) -> str:
    """``text`` if it names a format (or ``int8``). Raises TQ303."""
    if text not in (*FORMATS, KEPT):
        raise error("TQ303", f"--{option} {text}", f"Accepted: {', '.join((*FORMATS, KEPT))}.")
    return text


def format_bits(form: str) -> int:
    """Bits of a weight in a format."""
    return {"binary": 1, "ternary": 2}.get(form) or int(form[-1])


def approximate(
    weights: npt.NDArray[np.floating], form: str
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers int8 [C, K] and steps float32 [C] of real weights [C, K] in a format.

    As :func:`fitted_levels` finds them. Raises TQ653 for weights that are not finite.
    """
    level_set, steps = fitted_levels(weights, form)
    return nearest_levels(weights, level_set, steps), steps


def fitted_levels(
    weights: npt.NDArray[np.floating], form: str
) -> tuple[LevelSet, npt.NDArray[np.float32]]:
    """Levels of a format for real weights [C, K], and steps float32 [C] of least squared error.

    A channel of zeros has the layer's mean step; where no level is zero (binary, codebooks) its
    step is 2^-16 of that. Raises TQ653 for weights that are not finite.
    """
    real = np.asarray(weights, np.float64)
    if not np.isfinite(real).all():
        raise error("TQ653", "weights hold NaN or infinity")
    found = re.fullmatch(r"([a-z]+)(\d?)", form)
    assert found is not None, form
    kind, bits = found[1], int(found[2] or 0)
    largest = np.abs(real).max(axis=1, initial=0.0)
    alive = largest > 0
    if not alive.any():
        level_set = LevelSet("zero", (-1, 0, 1)) if kind == "lut" else _fixed(kind, bits)
        return level_set, np.ones(len(real), np.float32)
    if kind == "lut":
        level_set, steps = _codebook(real[alive], largest[alive], bits)
    else:
        level_set = _fixed(kind, bits)
        steps = _steps(real[alive], level_set)
    scale = np.full(len(real), steps.mean() * (2.0**-16 if 0 not in level_set.integers else 1.0))
    scale[alive] = steps
    return level_set, scale.astype(np.float32)


def nearest_levels(
    weights: npt.NDArray[np.floating], level_set: LevelSet, steps: npt.NDArray[np.float32]
) -> npt.NDArray[np.int8]:
    """The levels nearest to real weights [C, K] at steps [C]."""
    real = np.asarray(weights, np.float64)
    return _nearest(real / steps[:, None].astype(np.float64), level_set)


def _fixed(kind: str, bits: int) -> LevelSet:
    """A level set that does not depend on the data."""
    if kind == "int":
        found = levels.uniform(bits, narrow=False)
    else:
        sets = {"pot": levels.pot, "apot": levels.apot}
        plain = {"binary": levels.binary, "ternary": levels.ternary}
        found = sets[kind](bits) if kind in sets else plain[kind]()
    unit = 1
    while 2 * unit * found.largest <= _FINEST_UNIT:
        unit *= 2
    return LevelSet(found.name, tuple(unit * level for level in found.integers))


def _codebook(real: Values, largest: Values, bits: int) -> tuple[LevelSet, Values]:
    """Centroids of the channels' weights in units of their steps, and the steps."""
    steps = largest / levels.CODEBOOK_MAX
    for _ in range(_ROUNDS):
        scaled = real / steps[:, None]
        if np.ptp(scaled) < _ONE_LEVEL:
            level_set = LevelSet("kmeans", (-levels.CODEBOOK_MAX, levels.CODEBOOK_MAX))
        else:
            level_set, _ = levels.kmeans(scaled, bits)
        steps = _steps(real, level_set)
    return level_set, steps


def _steps(real: Values, level_set: LevelSet) -> Values:
    """The step of least squared error of every channel [C, K] among the candidates, refined."""
    whole = np.abs(real).max(axis=1) / level_set.largest
    best, least = whole, np.full(len(real), np.inf)
    for part in _CANDIDATES:
        steps = whole * part
        for _ in range(1 + _ROUNDS):
            chosen = _nearest(real / steps[:, None], level_set).astype(np.float64)
            wrong = np.square(real - chosen * steps[:, None]).sum(axis=1)
            best, least = np.where(wrong < least, steps, best), np.minimum(wrong, least)
            power = np.square(chosen).sum(axis=1)
            fitted = (real * chosen).sum(axis=1) / np.maximum(power, 1.0)
            steps = np.where((power > 0) & (fitted > 0), fitted, steps)
    return np.asarray(best, np.float64)


def _nearest(scaled: Values, level_set: LevelSet) -> npt.NDArray[np.int8]:
    table = np.asarray(level_set.integers)
    nearest = table[np.searchsorted((table[1:] + table[:-1]) / 2, scaled)]
    return np.asarray(nearest, np.int8)
