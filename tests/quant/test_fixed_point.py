"""Fixed-point oracles against the definitions, in Python's own integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tinyq.quant import FixedPointLinear, Rounding
from tinyq.quant.fixed_point import (
    high_multiply,
    mean_multiplier,
    multiply,
    quantize_multiplier,
    rounded_mean,
    rounding_shift,
)

REALS = [1e-9, 3.1e-5, 0.00231, 0.25, 0.5, 0.999999999999, 1.0, 1.5, 77.25]
EDGES = [-(2**31), -(2**31) + 1, -65536, -3, -2, -1, 0, 1, 2, 3, 65535, 2**31 - 1]


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


@pytest.mark.parametrize("real", REALS)
def test_multipliers_are_within_half_a_unit(real: float) -> None:
    multiplier, shift = quantize_multiplier(real)
    unit = Fraction(2) ** (shift - 31)
    assert 2**30 <= multiplier < 2**31
    assert abs(multiplier * unit - Fraction(real)) <= unit / 2


def test_multipliers_that_are_too_small_vanish() -> None:
    assert quantize_multiplier(0.0) == (0, 0)
    assert quantize_multiplier(2.0**-40) == (0, 0)
    assert quantize_multiplier(2.0**-32) == (2**30, -31)


@pytest.mark.parametrize("multiplier", [2**30, 2**30 + 1, 1518500250, 2**31 - 1])
def test_high_multiply_rounds_half_up(multiplier: int) -> None:
    got = high_multiply(np.array(EDGES), multiplier)
    assert got.tolist() == [half_up(Fraction(x * multiplier, 2**31)) for x in EDGES]


@pytest.mark.parametrize("exponent", [0, 1, 2, 7, 30, 31])
def test_shifts_round_half_away_from_zero(exponent: int) -> None:
    values = [*EDGES, 2**exponent // 2, -(2**exponent // 2), 3 * 2**exponent // 2]
    got = rounding_shift(np.array(values), exponent)
    assert got.tolist() == [half_away(Fraction(x, 2**exponent)) for x in values]


@pytest.mark.parametrize("shift", [-12, -1, 0, 3])
def test_once_and_twice(shift: int) -> None:
    rng = np.random.default_rng(0)
    multiplier, values = 1234567891, [*rng.integers(-(2**20), 2**20, 500).tolist(), 0, 1, -1]
    exact = [Fraction(v * multiplier, 2**31) * Fraction(2) ** shift for v in values]
    once = multiply(np.array(values), multiplier, shift, Rounding.ONCE)
    assert once.tolist() == [half_up(x) for x in exact]
    twice = multiply(np.array(values), multiplier, shift, Rounding.TWICE)
    left, right = max(shift, 0), max(-shift, 0)
    high = [half_up(Fraction((v << left) * multiplier, 2**31)) for v in values]
    assert twice.tolist() == [half_away(Fraction(h, 2**right)) for h in high]


@pytest.mark.parametrize(("qmin", "zero_point"), [(-128, -128), (5, 5), (-128, 5)])
def test_a_linear_layer_is_monotone_and_clamped(qmin: int, zero_point: int) -> None:
    bias, offset = np.array([100, -7]), np.array([0, 3000])
    layer = FixedPointLinear.of_scales(
        np.array([0.0031, 0.017]), bias, offset, zero_point, Rounding.TWICE, qmin
    )
    acc = np.tile(np.arange(-60000, 60000, 7), (2, 1))
    got = layer(acc)
    assert (np.diff(got, axis=1) >= 0).all()
    assert (got.min(), got.max()) == (qmin, 127)
    real = (acc + (bias + offset)[:, None]) * np.array([[0.0031], [0.017]]) + zero_point
    assert np.abs(np.clip(real, qmin, 127) - got).max() <= 0.52


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 64])
def test_means_round_half_away_from_zero(count: int) -> None:
    total = np.arange(-128 * count, 127 * count + 1)
    wanted = [half_away(Fraction(int(t), count)) for t in total]
    assert rounded_mean(total, count).tolist() == wanted


@pytest.mark.parametrize("count", [1, 6, 35, 49, 1024])
@pytest.mark.parametrize("scales", [(0.05, 0.05), (0.05, 0.031), (0.02, 0.07)])
def test_multipliers_of_means(count: int, scales: tuple[float, float]) -> None:
    multiplier, shift = mean_multiplier(*scales, count)
    assert 0 < multiplier < 2**31
    wanted = scales[0] / scales[1] / count
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(wanted, rel=2e-9)
