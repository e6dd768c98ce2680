"""Calibrators against closed forms, brute force and onnxruntime's own calibrators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    create_calibrator,
)
from ptq_models import Builder, samples, small_cnn

from tinyq.errors import TinyqError
from tinyq.ptq.calibrate import entropy_range, mse_range, percentile_range, tensor_range
from tinyq.ptq.data import CalibrationData
from tinyq.ptq.observe import HALF_BINS, Histogram, observe
from tinyq.ptq.params import activation_params, round_weights, weight_scales


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: np.ndarray) -> None:
        self.batches = iter([{"x": x}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def _onnxruntime_range(
    x: np.ndarray, method: str, tmp_path: Path, **options: object
) -> list[float]:
    """Range that onnxruntime gives to the output of a Relu on ``x``."""
    b = Builder()
    model = b.model(b.op("Relu", "x"), [*x.shape])
    path = tmp_path / "relu.onnx"
    onnx.save(model, path)
    calibrator = create_calibrator(
        path, ["Relu"], str(tmp_path / "augmented.onnx"), CalibrationMethod[method],
        extra_options=options,
    )  # fmt: skip
    calibrator.set_execution_providers(["CPUExecutionProvider"])
    calibrator.collect_data(_Reader(x))
    data = calibrator.compute_data().data[model.graph.output[0].name]
    return [float(v) for v in np.ravel(data.range_value)]


def _histogram(x: np.ndarray, parts: int = 1) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(x, parts):
        histogram.add(part.astype(np.float32))
    return histogram


def _outliers() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = np.maximum(rng.laplace(0, 1, (1, 20000)), 0)
    x[0, :5] = 40.0
    return x.astype(np.float32)


def test_max_is_onnxruntimes_minmax(tmp_path: Path) -> None:
    x = samples(1, 4000)
    expected = _onnxruntime_range(x, "MinMax", tmp_path)
    found = tensor_range(_histogram(np.maximum(x, 0)), "max", 99.99, "int8", False)
    assert list(found) == expected


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
@pytest.mark.parametrize("parts", [1, 7])
def test_percentile_is_the_quantile(percentile: float, parts: int) -> None:
    """To the width of one bin, against numpy's sorted samples."""
    x = np.random.default_rng(3).laplace(0, 1, 50000).astype(np.float32)
    histogram = _histogram(x, parts)
    width = histogram.limit / HALF_BINS
    found = percentile_range(histogram, percentile, symmetric=False)
    cut = round(len(x) * (100 - percentile) / 200)
    assert _beside(found[1], np.sort(x), len(x) - cut, width)
    assert _beside(found[0], np.sort(x), cut, width)
    low, high = percentile_range(histogram, percentile, symmetric=True)
    assert _beside(high, np.sort(np.abs(x)), len(x) - 2 * cut, width)
    assert low == -high


def _beside(found: float, ordered: np.ndarray, position: int, width: float) -> bool:
    """Within a bin of the order statistic there; float rounding may shift that by one."""
    return bool(ordered[position - 2] - width <= found <= ordered[position + 1] + width)


def test_percentile_is_onnxruntimes(tmp_path: Path) -> None:
    x = _outliers()
    expected = _onnxruntime_range(
        x, "Percentile", tmp_path, percentile=99.9, num_bins=2048, symmetric=False
    )
    found = tensor_range(_histogram(x), "percentile", 99.9, "int8", False)
    assert found[0] == expected[0] == 0
    assert abs(found[1] - expected[1]) <= 2 * 40 / 1024  # two of its bins


def test_entropy_cuts_outliers_no_worse_than_onnxruntimes(tmp_path: Path) -> None:
    """onnxruntime truncates the candidate's counts to integers, and so cuts further: at 5.04."""
    x = _outliers()
    expected = _onnxruntime_range(x, "Entropy", tmp_path, num_bins=2048, num_quantized_bins=128)
    low, high = entropy_range(_histogram(x))
    assert low == 0
    assert expected[1] == pytest.approx(5.04, abs=0.01)
    assert expected[1] < high < 10
    inliers = x[x < 40]
    assert _error(inliers, high) < _error(inliers, expected[1])
    assert _error(inliers, high) < _error(inliers, 40.0)


def _error(x: np.ndarray, high: float) -> float:
    """Mean squared error of rounding to 255 steps of [0, high], written out."""
    step = high / 255
    return float(np.square(np.clip(np.round(x / step), 0, 255) * step - x).mean())


def test_entropy_keeps_a_range_without_outliers() -> None:
    x = np.random.default_rng(1).uniform(-1, 1, 100000)
    low, high = entropy_range(_histogram(x))
    assert high > 0.97
    assert low < -0.97


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_beats_max_and_percentile_on_its_own_measure(dtype: str, symmetric: bool) -> None:
    x = _outliers() - np.float32(0.5)
    histogram = _histogram(x)
    error = {}
    for name in ("max", "percentile", "mse"):
        low, high = tensor_range(histogram, name, 99.99, dtype, symmetric)
        params = activation_params(low, high, dtype, symmetric)
        y = (params.quantize(x) - params.zero_point) * np.float32(params.scale)
        error[name] = float(np.square(y - x).mean())
    assert error["mse"] <= min(error.values()) * 1.01


def test_mse_of_integers_is_exact() -> None:
    """Pixel values 0 to 255 have no error at scale 1, and the search finds that."""
    x = np.random.default_rng(2).integers(0, 256, 40000).astype(np.float32)
    low, high = mse_range(_histogram(x), "uint8", False)
    assert activation_params(low, high, "uint8", False).scale == pytest.approx(1.0, abs=1e-3)


def test_histogram_in_parts_counts_everything() -> None:
    """Growing limits lose no count, and keep the extremes exact."""
    x = np.random.default_rng(5).normal(0, 1, 10000) * np.geomspace(1e-3, 1e3, 10000)
    x[::10] = 0
    histogram = _histogram(x, parts=13)
    assert histogram.counts.sum() + histogram.zeros == len(x)
    assert histogram.zeros == 1000
    assert histogram.low == np.float32(x.min())
    assert histogram.high == np.float32(x.max())
    expected, _ = np.histogram(x[x != 0].astype(np.float32), histogram.edges)
    # Values beside an edge may fall on either side of it, by float rounding.
    assert np.abs(histogram.counts - expected).sum() <= 4


def test_observe_exposes_every_tensor() -> None:
    model = small_cnn()
    names = [n.output[0] for n in model.graph.node]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    for name in names:
        exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    found = observe(exposed, CalibrationData({"x": samples(20, 3, 12, 12)}), 8)
    assert set(found) == {"x", *names}
    assert all(h.total > 0 for h in found.values())


def test_observe_refuses_nan() -> None:
    b = Builder()
    model = b.model(b.op("Sqrt", "x"), ["n", 4])
    with pytest.raises(TinyqError, match="TQ604"):
        observe(model, CalibrationData({"x": -np.ones((4, 4), np.float32)}), 8)


PARAMS = [
    # low, high, dtype, symmetric, scale, zero point
    (0.0, 255.0, "uint8", False, 1.0, 0),
    (0.0, 255.0, "int8", False, 1.0, -128),
    (-128.0, 127.0, "int8", False, 1.0, 0),
    (-1.0, 127.0, "int8", True, 1.0, 0),
    (5.0, 255.0, "int8", False, 1.0, -128),
    (-255.0, -5.0, "int8", False, 1.0, 127),
    (-1.0, 32767.0, "int16", False, 1.0, 0),
    (0.0, 0.0, "int8", False, 1.0, 0),
    (0.0, 255.0, "uint8", True, 1.0, 0),
    (-127.0, 100.0, "uint8", True, 1.0, 128),
]


@pytest.mark.parametrize(("low", "high", "dtype", "symmetric", "scale", "zero"), PARAMS)
def test_activation_params(
    low: float, high: float, dtype: str, symmetric: bool, scale: float, zero: int
) -> None:
    params = activation_params(low, high, dtype, symmetric)
    assert (params.scale, params.zero_point) == (scale, zero)


def test_smallest_range_has_a_normal_scale() -> None:
    params = activation_params(0.0, 1e-44, "int8", False)
    assert params.scale >= np.finfo(np.float32).tiny


def test_weight_steps() -> None:
    weight = np.array([[1.27, -0.5], [0.0, 0.0], [-12.7, 1.0]], np.float32)
    steps = weight_scales(weight, 8, per_channel=True, search=False)
    assert steps == pytest.approx([0.01, 1.0, 0.1])
    assert weight_scales(weight, 8, per_channel=False, search=False) == pytest.approx([0.1] * 3)
    assert round_weights(weight, steps, 8).tolist() == [[127, -50], [0, 0], [-127, 10]]


def test_searched_steps_are_no_worse() -> None:
    weight = np.random.default_rng(0).laplace(0, 1, (8, 64)).astype(np.float32)
    error = []
    for search in (False, True):
        steps = weight_scales(weight, 4, True, search)
        y = round_weights(weight, steps, 4) * steps[:, None]
        error.append(np.square(y - weight).sum(axis=1))
    assert (error[1] <= error[0]).all()
    assert error[1].sum() < 0.95 * error[0].sum()
