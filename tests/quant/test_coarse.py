"""Weights rounded to few levels: the levels are the format's, each the nearest, steps the best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyq.errors import TinyqError
from tinyq.quant.coarse import FORMATS, approximate, check_format
from tinyq.quant.encodings import recognise
from tinyq.quant.levels import sqnr_db

MAGNITUDES = {
    "pot3": {0, 1, 2, 4}, "pot4": {0, 1, 2, 4, 8, 16, 32, 64}, "apot2": {0, 1},
    "apot3": {0, 1, 2, 4}, "apot4": {0, 1, 2, 3, 4, 6, 8, 10},
    "apot5": {0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48},
    "binary": {1}, "ternary": {0, 1},
}  # fmt: skip


def levels_of(form: str, integers: np.ndarray) -> set[int]:
    """The levels that a format allows, in the unit of ``integers``."""
    unit = 1 if form in ("pot4", "apot4", "apot5") else {"pot3": 2, "apot3": 2}.get(form, 8)
    if form in MAGNITUDES:
        return {s * unit * m for m in MAGNITUDES[form] for s in (-1, 1)}
    if form.startswith("int"):
        half = 2 ** (int(form[3]) - 1)
        unit = max(1, 8 // half)
        return {unit * level for level in range(-half, half)}
    return {int(v) for v in np.unique(integers)}


@pytest.mark.parametrize("form", FORMATS)
def test_integers_are_levels_and_the_nearest(form: str) -> None:
    real = np.random.default_rng(1).laplace(0, 1, (7, 90)) * np.arange(1, 8)[:, None]
    integers, scale = approximate(real, form)
    allowed = levels_of(form, integers)
    if form.startswith("lut"):
        assert len(allowed) <= 2 ** int(form[3])
    assert set(np.unique(integers)) <= allowed
    table = np.array(sorted(allowed))
    for row, chosen, step in zip(real, integers, scale, strict=True):
        distance = np.abs(row[:, None] - table * np.float64(step))
        taken = np.abs(row - chosen * np.float64(step))
        assert np.allclose(taken, distance.min(axis=1), rtol=1e-12, atol=0)
    encoding = recognise(integers)
    assert encoding is not None
    bits = 2 if form == "ternary" else 1 if form == "binary" else int(form[-1])
    assert encoding.bits <= bits


@pytest.mark.parametrize("form", FORMATS)
def test_no_other_step_is_better(form: str) -> None:
    """Against a fine search over steps, with the levels that were found."""
    real = np.random.default_rng(2).normal(0, 0.3, (4, 60))
    integers, scale = approximate(real, form)
    table = np.array(sorted(levels_of(form, integers)), np.float64)
    for row, chosen, step in zip(real, integers, scale, strict=True):
        error = np.square(row - chosen * np.float64(step)).sum()
        steps = np.abs(row).max() / np.abs(table).max() * np.linspace(0.02, 1.3, 1500)
        grid = np.abs(row[None, :, None] - table * steps[:, None, None]).min(axis=2)
        assert error <= np.square(grid).sum(axis=1).min() * 1.02


@pytest.mark.parametrize(
    ("form", "decibels"),
    [("int4", 19.15), ("pot3", 13.2), ("pot4", 14.2), ("apot4", 19.1),
     ("apot5", 22.2), ("lut3", 14.6), ("lut4", 20.2), ("lut5", 26.0), ("binary", 4.4),
     ("ternary", 7.1)],
)  # fmt: skip
def test_noise_on_a_normal_distribution(form: str, decibels: float) -> None:
    """Known ratios for the best step of each set (binary: -10 log10(1 - 2 / pi)).

    int4 lies between the best of 15 levels around zero (18.9) and of 16 around a half (19.4).
    """
    real = np.random.default_rng(3).normal(size=(1, 60_000))
    integers, scale = approximate(real, form)
    assert sqnr_db(real, integers * scale[:, None].astype(float)) == pytest.approx(
        decibels, abs=0.25
    )


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    channels=st.integers(1, 5),
    inputs=st.integers(1, 9),
    exponent=st.integers(-30, 20),
    zeros=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    form: str, channels: int, inputs: int, exponent: int, zeros: list[bool], seed: int
) -> None:
    real = np.random.default_rng(seed).normal(size=(channels, inputs)) * 2.0**exponent
    dead = np.array(zeros[:channels])
    real[dead] = 0
    integers, scale = approximate(real, form)
    assert np.all(scale > 0)
    assert np.all(np.isfinite(scale))
    if form not in ("binary", "lut2", "lut3", "lut4", "lut5"):
        assert not integers[dead].any()
        made = integers * scale[:, None].astype(np.float64)
        assert np.all(np.square(real - made).sum(axis=1) <= np.square(real).sum(axis=1) * 1.0001)


def test_bad_input() -> None:
    for value, form in itertools.product((np.nan, np.inf), ("int4", "lut3")):
        with pytest.raises(TinyqError, match="NaN or infinity"):
            approximate(np.array([[1.0, value]]), form)
    with pytest.raises(TinyqError, match=r"pot9.*|Accepted"):
        check_format("pot9", "weights")
    assert check_format("int8", "weights") == "int8"
