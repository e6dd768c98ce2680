"""Thresholds found by bisection against counting over every reachable accumulator."""

from __future__ import annotations

import numpy as np
import pytest

from tinyq.quant import (
    OrtLinear,
    Staircase,
    accumulator_bounds,
    accumulator_strides,
    build_staircase,
)

CASES = {
    "rounds_half_to_even": OrtLinear(np.float32([0.5]), np.array([0]), np.array([0]), 0),
    "steps_of_several_levels": OrtLinear(np.float32([9.7]), np.array([3]), np.array([-40]), 7),
    "fine": OrtLinear(np.float32([0.0123]), np.array([-11]), np.array([5]), -128),
    "relu_at_zero_point": OrtLinear(np.float32([0.04]), np.array([0]), np.array([0]), 5, 5, 127),
    "constant": OrtLinear(np.float32([1e-7]), np.array([0]), np.array([0]), 3),
    "saturated": OrtLinear(np.float32([1.0]), np.array([10**6]), np.array([0]), 0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bounds", [(-3000, 2999), (0, 4095), (-7, -7), (17, 18)])
def test_thresholds_count_every_output(name: str, bounds: tuple[int, int]) -> None:
    oracle = CASES[name]
    lo, hi = np.array([bounds[0]]), np.array([bounds[1]])
    stair = build_staircase(oracle, lo, hi, -128, 127)
    every = np.arange(bounds[0], bounds[1] + 1)
    outputs = oracle(every[None, :])[0]
    wanted = [bounds[0] + int(np.sum(outputs < level)) for level in range(-127, 128)]
    assert stair.thresholds[0].tolist() == wanted
    assert np.array_equal(stair.output(0, every), outputs)
    assert stair.reachable == len(every)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stride", [2, 7, 64, 4032])
def test_only_reachable_accumulators_count(name: str, stride: int) -> None:
    oracle = CASES[name]
    lo, hi = np.array([-5 * stride + 3]), np.array([1000 * stride + 3])
    stair = build_staircase(oracle, lo, hi, -128, 127, np.array([stride]))
    every = np.arange(lo[0], hi[0] + 1, stride)
    outputs = oracle(every[None, :])[0]
    wanted = [int(lo[0]) + stride * int(np.sum(outputs < level)) for level in range(-127, 128)]
    assert stair.thresholds[0].tolist() == wanted
    assert np.array_equal(stair.output(0, every), outputs)
    assert stair.reachable == len(every)


def test_strides_are_common_factors() -> None:
    levels = np.array([[[-1, 0, 1]], [[0, 1, 1]], [[3, -5, 2]], [[4, -6, 10]], [[0, 0, 0]]])
    assert accumulator_strides(levels * 8).tolist() == [8, 8, 8, 16, 1]
    x = np.random.default_rng(3).integers(-128, 128, (3, 500))
    low, _ = accumulator_bounds(levels * 8, -128, 127)
    assert not ((levels[:, 0] @ x * 8 - low[:, None]) % np.array([[8, 8, 8, 16, 1]]).T).any()


def test_range_of_no_whole_strides_is_refused() -> None:
    with pytest.raises(ValueError, match="strides"):
        Staircase(np.array([0]), np.array([9]), 0, 2, np.array([[3, 6]]), 2)


def test_sixteen_bit_outputs() -> None:
    oracle = OrtLinear(np.float32([0.37]), np.array([5]), np.array([0]), 0, -32768, 32767)
    stair = build_staircase(oracle, np.array([-90000]), np.array([90000]), -32768, 32767)
    every = np.arange(-90000, 90001)
    assert np.array_equal(stair.output(0, every), oracle(every[None, :])[0])


def test_accumulator_bounds_are_reached() -> None:
    rng = np.random.default_rng(5)
    w = rng.integers(-127, 128, (7, 3, 3, 4))
    lo, hi = accumulator_bounds(w, -128, 127)
    flat = w.reshape(7, -1)
    assert np.array_equal(hi, np.sum(flat * np.where(flat > 0, 127, -128), axis=1))
    assert np.array_equal(lo, np.sum(flat * np.where(flat > 0, -128, 127), axis=1))


def test_oracle_that_decreases_is_refused() -> None:
    with pytest.raises(ValueError, match="monotone"):
        Staircase(np.array([0]), np.array([9]), 0, 2, np.array([[5, 3]]))
