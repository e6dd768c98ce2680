"""Reports, the choice among calibrators, sensitivity and the search, learned rounding."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import pytest
from ptq_models import Builder, run, run_inner, samples, small_cnn

from tinyq.errors import TinyqError
from tinyq.ptq import CALIBRATORS, PtqConfig, from_arrays, inputs_of, quantize, search, sensitivity
from tinyq.ptq.adaround import learn_rounding
from tinyq.ptq.moments import gather_moments, patches

X = samples(80, 3, 12, 12)


def _data(model: onnx.ModelProto, labels: bool = False) -> object:
    y = run(model, X)[0].argmax(axis=1) if labels else None
    return from_arrays(inputs_of(model), {"x": X}, y)


def test_layer_figures_against_numpy() -> None:
    """SQNR, cosine, saturation and unused range recomputed from the exposed tensors."""
    model = small_cnn()
    result = quantize(model, _data(model), PtqConfig(calibrator="percentile", percentile=98.0))  # type: ignore[arg-type]
    for layer in result.report.layers[:-1]:
        a = run_inner(result.float_model, layer.tensor, X).astype(np.float64)
        b = run_inner(result.model, f"{layer.tensor}_dequantized", X).astype(np.float64)
        sqnr = 10 * np.log10(np.square(a).sum() / np.square(a - b).sum())
        cosine = (a * b).sum() / np.sqrt(np.square(a).sum() * np.square(b).sum())
        assert layer.sqnr_db == pytest.approx(sqnr, rel=1e-6)
        assert layer.cosine == pytest.approx(cosine, rel=1e-6)
        q = a / layer.scale + layer.zero_point
        assert layer.saturation == pytest.approx(np.mean((q < -128.5) | (q > 127.5)), abs=1e-6)
        levels = np.unique(np.rint(b / layer.scale))
        assert layer.unused_range == pytest.approx(1 - (np.ptp(levels) + 1) / 256)
        assert sum(layer.histogram) == a.size
        assert (layer.low, layer.high) == pytest.approx((a.min(), a.max()), rel=1e-6)
    assert any("clips" in line for line in result.report.advice)


@pytest.mark.parametrize(("outputs", "classes"), [(16, False), (15, True)])
def test_an_output_like_the_input_has_no_classes(outputs: int, classes: bool) -> None:
    b = Builder()
    y = b.op("Relu", b.op("Gemm", "x", b.weight(16, 4)))
    model = b.model(b.op("Gemm", y, b.weight(4, outputs)), ["n", 16])
    data = from_arrays(inputs_of(model), {"x": samples(40, 16)})
    assert (quantize(model, data).report.output.agreement is not None) == classes


def test_report_is_json() -> None:
    model = small_cnn()
    result = quantize(model, _data(model, labels=True), PtqConfig())  # type: ignore[arg-type]
    found = json.loads(result.report.to_json())
    assert len(found["layers"]) == len(result.report.layers) == 7
    assert found["output"]["accuracy_float"] == 1.0
    assert found["samples"] == 80


@pytest.mark.parametrize("labels", [False, True])
def test_all_keeps_the_best(labels: bool) -> None:
    model = small_cnn()
    result = quantize(model, _data(model, labels), PtqConfig(calibrator="all"))  # type: ignore[arg-type]
    scores = result.report.calibrators
    assert tuple(s.calibrator for s in scores) == CALIBRATORS
    chosen = [s for s in scores if s.chosen]
    assert [s.calibrator for s in chosen] == [result.calibrator]
    if labels:
        assert chosen[0].accuracy == max(s.accuracy or 0 for s in scores)
    else:
        assert chosen[0].rms_error == min(s.rms_error for s in scores)
        assert chosen[0].accuracy is None
    for score in scores:
        alone = quantize(model, _data(model, labels), PtqConfig(calibrator=score.calibrator))  # type: ignore[arg-type]
        assert alone.report.output.rms_error == score.rms_error


def test_progress_is_told() -> None:
    calls: list[tuple[str, int, int]] = []
    model = small_cnn()
    quantize(model, _data(model), PtqConfig(), lambda *call: calls.append(call))  # type: ignore[arg-type]
    assert {stage for stage, _, _ in calls} == {"calibrate", "reconstruct", "compare"}
    assert all(0 < done <= total for _, done, total in calls)


def _two_layers() -> onnx.ModelProto:
    """The second layer has one weight that ruins the scale of all others: it is sensitive."""
    b = Builder()
    y = b.op("Relu", b.op("Gemm", "x", b.weight(16, 8)))
    w = b.rng.normal(0, 0.01, (8, 8))
    w[0, 0] = 40.0
    y = b.op("Relu", b.op("Gemm", y, b.const(w)))
    return b.model(b.op("Gemm", y, b.weight(8, 4)), ["n", 16])


def test_sensitivity_finds_the_bad_layer() -> None:
    model = _two_layers()
    data = from_arrays(inputs_of(model), {"x": samples(64, 16)})
    report = sensitivity(model, data, PtqConfig(weights="int4", edges_int8=False))
    assert len(report.layers) == 3
    errors = [layer.only.rms_error for layer in report.layers]
    assert errors == sorted(errors, reverse=True)
    assert report.all_quantized.rms_error >= min(errors)
    for layer in report.layers:
        assert layer.only.rms_error > 0
        assert layer.all_but.rms_error < 2 * report.all_quantized.rms_error
    assert json.loads(report.to_json())["samples"] == 64


def test_sensitivity_of_one_layer_is_what_a_float_rest_gives() -> None:
    """With every layer float but one, only that layer's weights and edges are quantized."""
    b = Builder()
    hidden = b.op("Gemm", "x", b.weight(16, 8))
    model = b.model(b.op("Gemm", hidden, b.weight(8, 4)), ["n", 16])
    x = samples(64, 16)
    data = from_arrays(inputs_of(model), {"x": x})
    config = PtqConfig(calibrator="max", bias_correction=False)
    report = sensitivity(model, data, config)
    names = {layer.name: layer for layer in report.layers}
    last = names[model.graph.node[1].name]
    # By hand: the hidden tensor and the output at 255 steps, weights at 127 steps a channel.
    (h, y) = run_inner(model, hidden, x), run(model, x)[0]
    w = np.asarray(onnx.numpy_helper.to_array(model.graph.initializer[1]))
    step = np.abs(w).max(axis=0) / 127
    expected = _affine(_affine(h) @ (np.rint(w / step) * step), y)
    rms = np.sqrt(np.square(expected - y).mean())
    assert last.only.rms_error == pytest.approx(rms, rel=0.02)


def _affine(x: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    like = x if like is None else like
    low, high = min(like.min(), 0), max(like.max(), 0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step


def test_search_reaches_its_bound_with_few_layers() -> None:
    b = Builder()
    y = "x"
    for _ in range(4):
        y = b.op("Relu", b.conv(y, 4, 4))
    model = b.model(y, ["n", 4, 8, 8])
    data = from_arrays(inputs_of(model), {"x": samples(32, 4, 8, 8)})
    config = PtqConfig(weights="int4", edges_int8=False)
    found = search(model, data, config, keep_accuracy=0.12)
    assert found.steps[0].loss > 0.12
    assert found.reached
    assert 0 < len(found.raised) < 4
    assert {to for _, to in found.raised} == {"int8 weights"}
    output = found.result.report.output
    assert 10 ** (-output.sqnr_db / 20) == pytest.approx(found.loss)
    assert found.loss <= 0.12
    bits = json.loads(
        {p.key: p.value for p in found.result.model.metadata_props}["tinyq.weight_bits"]
    )
    assert len(bits) == 4 - len(found.raised)


def test_search_goes_on_to_int16_and_float() -> None:
    model = small_cnn()
    found = search(model, _data(model), keep_accuracy=0.0, allow_float=True)  # type: ignore[arg-type]
    tried = {step.to for step in found.steps}
    assert found.loss == min(step.loss for step in found.steps)
    assert found.reached or {"int16 activations", "float"} <= tried


@pytest.mark.parametrize("bound", [-0.1, 1.0])
def test_search_refuses_a_bad_bound(bound: float) -> None:
    with pytest.raises(TinyqError, match="TQ607"):
        search(small_cnn(), _data(small_cnn()), keep_accuracy=bound)  # type: ignore[arg-type]


def test_sensitivity_takes_one_calibrator() -> None:
    with pytest.raises(TinyqError, match="TQ607"):
        sensitivity(small_cnn(), _data(small_cnn()), PtqConfig(calibrator="all"))  # type: ignore[arg-type]


def test_learned_rounding_finds_the_optimum_of_a_small_layer() -> None:
    """Against all 2^8 roundings of each row."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (200, 8)) @ rng.normal(0, 1, (8, 8))
    w = rng.normal(0, 1, (5, 8)).astype(np.float32)
    steps = (np.abs(w).max(axis=1) / 7).astype(np.float32)
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"])
    moments = gather_moments(node, w.shape, [(x.astype(np.float32), x.astype(np.float32))], 0)
    result = learn_rounding(w, steps, range(-7, 8), moments)
    floor = np.floor(w / steps[:, None])
    reached = optimum = nearest = 0.0
    for row in range(5):

        def cost(q: np.ndarray, row: int = row) -> float:
            return float(np.square(x @ (q * steps[row] - w[row])).mean())

        choices = itertools.product(*([f, min(f + 1, 7)] for f in floor[row]))
        optimum += min(cost(np.array(q)) for q in choices)
        reached += cost(result.integers[row].astype(float))
        nearest += cost(np.rint(w[row] / steps[row]))
    assert reached <= 1.2 * optimum
    assert reached < 0.5 * nearest
    assert result.error == pytest.approx(reached, rel=1e-3)
    assert result.error_nearest == pytest.approx(nearest, rel=1e-3)


CONVOLUTIONS = [
    # channels in, out, group, kernel, strides, pads, dilations, auto_pad
    (3, 4, 1, (3, 3), [1, 1], [1, 1, 1, 1], [1, 1], "NOTSET"),
    (4, 4, 4, (3, 3), [2, 2], [0, 0, 1, 1], [1, 1], "NOTSET"),
    (4, 6, 2, (1, 3), [1, 2], [0, 1, 0, 1], [1, 1], "NOTSET"),
    (2, 3, 1, (3, 3), [1, 1], [2, 2, 2, 2], [2, 2], "NOTSET"),
    (2, 3, 1, (2, 2), [2, 2], None, [1, 1], "SAME_UPPER"),
    (2, 3, 1, (4, 4), [3, 3], None, [1, 1], "SAME_LOWER"),
    (2, 3, 1, (3, 3), [1, 1], None, [1, 1], "VALID"),
]


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_patches_are_what_a_convolution_multiplies(case: tuple) -> None:  # type: ignore[type-arg]
    cin, cout, group, kernel, strides, pads, dilations, auto = case
    b = Builder()
    w = b.rng.normal(0, 1, (cout, cin // group, *kernel)).astype(np.float32)
    attrs = {"strides": strides, "dilations": dilations, "group": group, "auto_pad": auto}
    if pads is not None:
        attrs["pads"] = pads
    model = b.model(b.op("Conv", "x", b.const(w), **attrs), ["n", cin, 7, 8])
    x = samples(2, cin, 7, 8)
    (rows,) = patches(model.graph.node[0], w.shape, (x,), np.random.default_rng(0), 1000)
    flat = w.reshape(group, cout // group, -1)
    found = np.einsum("rgk,gok->rgo", rows, flat).reshape(len(rows), cout)
    expected = np.moveaxis(run(model, x)[0], 1, -1).reshape(-1, cout)
    assert np.abs(found - expected).max() < 1e-5
