"""Bad models, bad options, and what is noticed: a clear code each, nothing silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from ptq_models import Builder, chain, mlp, run, samples, small_cnn

from tinyq.errors import TinyqError
from tinyq.ptq import PtqConfig, from_arrays, inputs_of, quantize
from tinyq.ptq.graph import graph_of
from tinyq.ptq.prepare import prepare


def _nan_weights() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.op("Gemm", "x", b.const(np.full((4, 3), np.nan))), ["n", 4])


def _quantized() -> onnx.ModelProto:
    b = Builder()
    q = b.op("QuantizeLinear", "x", b.const(1.0), b.const(0, "int8"))
    return b.model(b.op("DequantizeLinear", q, b.const(1.0), b.const(0, "int8")), ["n", 4])


def _unsupported() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.op("Sin", b.op("Relu", b.op("Cos", "x"))), ["n", 4])


def _dynamic_shape() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.op("Relu", "x"), ["n", "width"])


def _float16() -> onnx.ModelProto:
    b = Builder()
    model = b.model(b.op("Relu", "x"), ["n", 4], dtype=onnx.TensorProto.FLOAT16)
    model.graph.output[0].type.CopyFrom(model.graph.input[0].type)
    return model


def _foreign_domain() -> onnx.ModelProto:
    b = Builder(opset=20)
    model = b.model(b.op("Gelu", "x"), ["n", 4])
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _linear_resize() -> onnx.ModelProto:
    b = Builder()
    scales = b.const([1, 1, 2, 2])
    return b.model(b.op("Resize", "x", "", scales, mode="linear"), ["n", 1, 4, 4])


def _computed_weights() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.op("Gemm", "x", b.op("Transpose", "x", perm=[1, 0])), [4, 4])


def _training_batchnorm() -> onnx.ModelProto:
    b = Builder()
    parts = [b.const(np.ones(2)) for _ in range(4)]
    y = b.op("BatchNormalization", "x", *parts, outputs=3, training_mode=1)[0]
    return b.model(y, ["n", 2, 4, 4])


def _invalid() -> onnx.ModelProto:
    b = Builder()
    model = b.model(b.op("Relu", "x"), ["n", 4])
    model.graph.node[0].input[0] = "missing"
    return model


BAD_MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], str, int]] = {
    # name: (model, code, exit status)
    "nan weights": (_nan_weights, "TQ603", 12),
    "quantized already": (_quantized, "TQ602", 12),
    "unsupported": (_unsupported, "TQ601", 12),
    "dynamic shape": (_dynamic_shape, "TQ106", 3),
    "float16": (_float16, "TQ608", 12),
    "foreign domain": (_foreign_domain, "TQ601", 12),
    "linear resize": (_linear_resize, "TQ601", 12),
    "computed weights": (_computed_weights, "TQ601", 12),
    "training batchnorm": (_training_batchnorm, "TQ601", 12),
    "invalid": (_invalid, "TQ103", 3),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models(name: str) -> None:
    build, code, status = BAD_MODELS[name]
    with pytest.raises(TinyqError) as caught:
        quantize(build(), None)
    assert caught.value.diagnostics[0].code == code
    assert caught.value.exit_status == status


def test_every_unsupported_operator_is_listed() -> None:
    with pytest.raises(TinyqError) as caught:
        quantize(_unsupported(), None)
    assert [d.operator for d in caught.value.diagnostics] == ["Cos", "Sin"]
    assert all(d.node for d in caught.value.diagnostics)


def test_bad_model_files(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("this is no model")
    onnx.save(mlp(), tmp_path / "whole.onnx")
    whole = (tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for name, code in (("none.onnx", "TQ101"), ("text.onnx", "TQ102"), ("cut.onnx", "TQ10")):
        with pytest.raises(TinyqError, match=code):
            quantize(tmp_path / name, None)


@pytest.mark.parametrize(
    "options",
    [
        {"calibrator": "best"}, {"weights": "int3"}, {"activations": "float16"},
        {"rounding": "up"}, {"io": "int4"}, {"percentile": 10.0}, {"batch_size": 0},
        {"input_range": (1.0, 0.0)},
    ],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(TinyqError) as caught:
        PtqConfig(**options)
    assert caught.value.diagnostics[0].code == "TQ607"
    assert next(iter(options)) in str(caught.value)


def test_samples_of_another_shape() -> None:
    data = from_arrays(inputs_of(mlp()), {"x": samples(40, 16)})
    with pytest.raises(TinyqError, match="TQ606"):
        quantize(small_cnn(), data)


def _codes(model: onnx.ModelProto, x: np.ndarray | None, **options: Any) -> list[str]:
    data = None if x is None else from_arrays(inputs_of(model), {"x": x})
    result = quantize(model, data, PtqConfig(**options))
    shape = [1 if i is None else i for i in (1, *inputs_of(model)[0].shape)]
    assert np.isfinite(run(result.model, samples(*shape))[0]).all()
    return [n.code for n in result.report.notices]


def test_no_data_is_noticed() -> None:
    assert "TQ620" in _codes(small_cnn(), None)
    assert "TQ620" in _codes(small_cnn(), None, equalize=True, bias_correction=True)
    assert "TQ625" in _codes(small_cnn(), None, rounding="adaround")


def test_no_data_ranges_come_from_batchnorm() -> None:
    """beta + 6 gamma of the widest channel, in closed form."""
    scales = np.array([1.0, 2.0, 0.5], np.float32)
    result = quantize(chain(scales), None)
    first = result.report.layers[0]
    # beta is half of gamma in this model: 0.5 * 2 + 6 * 2.
    assert first.scale == pytest.approx(13.0 / 255, rel=1e-6)
    assert first.zero_point == -128


def test_few_samples_are_noticed() -> None:
    assert "TQ623" in _codes(mlp(), samples(8, 16))
    assert _codes(mlp(), samples(400, 16)) == []


def test_constant_input() -> None:
    """All zero samples: scale 1, a notice, and a model that still runs."""
    b = Builder()
    model = b.model(b.op("Relu", "x"), ["n", 4])
    assert "TQ621" in _codes(model, np.zeros((40, 4), np.float32))


def test_constant_activation_other_than_zero() -> None:
    b = Builder()
    y = b.op("Gemm", "x", b.const(np.zeros((4, 3))), b.const([2.0, 2.0, 2.0]))
    model = b.model(y, ["n", 4])
    result = quantize(model, from_arrays(inputs_of(model), {"x": samples(40, 4)}))
    assert run(result.model, samples(3, 4))[0] == pytest.approx(2.0, abs=1e-6)


def test_dead_channel() -> None:
    b = Builder()
    w = b.rng.normal(0, 1, (4, 3, 1, 1))
    w[2] = 0
    y = b.op("Conv", "x", b.const(w), b.const([0.0, 0.1, 0.0, 0.1]), kernel_shape=[1, 1])
    model = b.model(b.op("Relu", y), ["n", 3, 4, 4])
    result = quantize(model, from_arrays(inputs_of(model), {"x": samples(40, 3, 4, 4)}))
    (notice,) = result.report.notices
    assert (notice.code, notice.node) == ("TQ622", result.report.layers[0].name)
    assert notice.found.startswith("1 of 4 channels")
    assert "prune" in notice.info.remedy
    assert result.report.layers[0].dead_channels == 1


def test_dead_filter_keeps_its_bias() -> None:
    """No weights but a bias: the output is the bias, to half a step."""
    b = Builder()
    w = b.rng.normal(0, 1, (4, 3, 1, 1))
    w[2] = 0
    bias = [0.0, 0.1, 1.5, 0.1]
    y = b.op("Conv", "x", b.const(w), b.const(bias), kernel_shape=[1, 1])
    model = b.model(y, ["n", 3, 4, 4])
    result = quantize(model, from_arrays(inputs_of(model), {"x": samples(40, 3, 4, 4)}))
    found = run(result.model, samples(2, 3, 4, 4))[0][:, 2]
    assert np.abs(found - 1.5).max() <= result.report.layers[0].scale


def test_bias_far_beyond_the_weights_is_noticed() -> None:
    b = Builder()
    w = b.rng.normal(0, 1, (2, 3, 1, 1))
    w[0] *= 1e-12
    y = b.op("Conv", "x", b.const(w), b.const([3.0, 0.0]), kernel_shape=[1, 1])
    model = b.model(y, ["n", 3, 4, 4])
    assert "TQ624" in _codes(model, samples(40, 3, 4, 4))


def _float_pairs() -> dict[str, onnx.ModelProto]:
    """Forms that the preparation must rewrite without changing the function."""
    b = Builder(1)
    tf = b.conv("x", 3, 4, bias=False)
    tf = b.op("Mul", tf, b.const(b.rng.uniform(0.5, 2, (1, 4, 1, 1))))
    tf = b.op("Div", b.op("Sub", tf, b.const(b.rng.normal(0, 1, (4, 1, 1)))), b.const(2.0))
    models = {"mul, sub and div": b.model(b.op("Relu", tf), ["n", 3, 8, 8])}
    b = Builder(2)
    y = b.batchnorm(b.op("Relu", b.batchnorm("x", 3)), 3)
    models["batchnorm without convolution"] = b.model(y, ["n", 3, 8, 8])
    b = Builder(3)
    y = b.op("Gemm", "x", b.weight(6, 5), b.const(np.ones((1, 5))), alpha=0.5, beta=2.0)
    y = b.op("Add", y, b.const(np.arange(5)))
    models["gemm with alpha and beta"] = b.model(y, ["n", 6])
    b = Builder(4)
    y = b.op("Dropout", b.op("Identity", b.conv("x", 3, 4)))
    shape = b.op("Concat", b.const([0], "int64"), b.const([-1], "int64"), axis=0)
    models["identity, dropout, folded shape"] = b.model(
        b.op("Identity", b.op("Reshape", y, shape)), ["n", 3, 4, 4]
    )
    b = Builder(5)
    shared = b.weight(4, 4, 1, 1)
    y = b.op("Conv", b.op("Conv", "x", shared), shared)
    y = b.op("Add", y, b.const(b.rng.normal(0, 1, (1, 4, 1, 1))))
    models["shared weights"] = b.model(y, ["n", 4, 4, 4])
    b = Builder(6)
    size = b.op("Slice", b.op("Shape", "x"), b.const([0], "int64"), b.const([1], "int64"))
    shape = b.op("Concat", size, b.const([-1], "int64"), axis=0)
    y = b.op("Reshape", b.conv("x", 2, 3), shape)
    models["dynamic flatten"] = b.model(b.op("Gemm", y, b.weight(48, 4)), ["n", 2, 4, 4])
    return models


@pytest.mark.parametrize("name", _float_pairs())
def test_preparation_keeps_the_function(name: str) -> None:
    model = _float_pairs()[name]
    graph = graph_of(model)
    prepare(graph)
    x = samples(5, *inputs_of(model)[0].shape)
    assert np.abs(run(graph.to_model(), x)[0] - run(model, x)[0]).max() < 1e-5
    left = {node.op_type for node in graph.nodes}
    assert not left & {"BatchNormalization", "Identity", "Dropout", "Constant", "Mul", "Shape"}
