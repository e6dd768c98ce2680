"""The QDQ model that comes out: right structure, valid, and close to the float model."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from ptq_models import Builder, chain, initializers, mlp, ops, run, run_inner, samples, small_cnn

from tinyq.ptq import PtqConfig, from_arrays, inputs_of, quantize

CNN = samples(96, 3, 12, 12)
SQNR = {
    # configuration: lowest signal to noise ratio at the output in dB
    "max": (PtqConfig(calibrator="max"), 25),
    "symmetric": (PtqConfig(symmetric=True), 22),
    "uint8": (PtqConfig(activations="uint8"), 25),
    "uint8-symmetric": (PtqConfig(activations="uint8", symmetric=True), 22),
    "int16": (PtqConfig(activations="int16"), 34),
    "per-tensor": (PtqConfig(per_channel=False), 22),
    "percentile": (PtqConfig(calibrator="percentile", percentile=99.9), 22),
    "entropy": (PtqConfig(calibrator="entropy"), 18),
    "default": (PtqConfig(), 25),
    "bias-correction": (PtqConfig(bias_correction=True), 25),
    "equalize": (PtqConfig(equalize=True), 24),
    "int4-adaround": (PtqConfig(weights="int4", rounding="adaround", bias_correction=True), 14),
}


@pytest.mark.parametrize("name", SQNR)
@pytest.mark.parametrize("relu6", [False, True], ids=["relu", "relu6"])
def test_close_to_float(name: str, relu6: bool) -> None:
    config, lowest = SQNR[name]
    model = small_cnn(relu6=relu6)
    result = quantize(model, from_arrays(inputs_of(model), {"x": CNN}), config)
    onnx.checker.check_model(result.model, full_check=True)
    fresh = samples(64, 3, 12, 12, seed=5)
    (expected,), (found,) = run(model, fresh), run(result.model, fresh)
    error = np.square(found - expected).sum()
    assert 10 * np.log10(np.square(expected).sum() / error) > lowest


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_same_with_and_without_fusions(activations: str) -> None:
    """What onnxruntime fuses into integer kernels gives what the QDQ graph says."""
    model = small_cnn()
    config = PtqConfig(activations=activations)
    result = quantize(model, from_arrays(inputs_of(model), {"x": CNN}), config)
    (fused,), (plain,) = run(result.model, CNN), run(result.model, CNN, optimize=False)
    assert np.abs(np.rint((fused - plain) * 256)).max() <= 1
    assert np.mean(fused != plain) < 0.01


def _quantized(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    shape = inputs_of(model)[0].shape
    data = from_arrays(inputs_of(model), {"x": samples(64, *shape)})
    return quantize(model, data, PtqConfig(**options)).model  # type: ignore[arg-type]


def test_structure_of_a_convolution() -> None:
    model = _quantized(small_cnn())
    found = ops(model)
    assert found.count("BatchNormalization") == 0
    consumers = {name: n.op_type for n in model.graph.node for name in n.input}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert consumers[node.output[0]] in ("Relu", "QuantizeLinear")
        if node.op_type == "Relu":
            assert consumers[node.output[0]] == "QuantizeLinear"


def test_weights_and_biases() -> None:
    """int8 in [-127, 127], zero points zero, bias at input scale times weight scale, exactly."""
    model = _quantized(small_cnn())
    constants = initializers(model)
    producers = {n.output[0]: n for n in model.graph.node}
    linear = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(linear) == 4
    for node in linear:
        x, w, b = (producers[name] for name in node.input)
        weight, w_scale, w_zero = (constants[name] for name in w.input)
        bias, b_scale, b_zero = (constants[name] for name in b.input)
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 127
        assert w_scale.shape == (weight.shape[0],)
        assert not w_zero.any()
        assert not b_zero.any()
        assert bias.dtype == np.int32
        assert np.array_equal(b_scale, constants[x.input[1]] * w_scale)


def test_batchnorm_is_folded_exactly() -> None:
    """The prepared float model computes what the given one does (float rounding aside)."""
    model = small_cnn()
    result = quantize(model, from_arrays(inputs_of(model), {"x": CNN}))
    (expected,), (found,) = run(model, CNN), run(result.float_model, CNN)
    assert np.abs(expected - found).max() < 1e-6


def test_matmul_and_add_become_gemm() -> None:
    model = _quantized(mlp())
    found = ops(model)
    assert found.count("Gemm") == 3
    assert "MatMul" not in found
    assert "Add" not in found


@pytest.mark.parametrize(
    ("kind", "scale", "zero_point"),
    [("Softmax", 1 / 256, -128), ("Sigmoid", 1 / 256, -128), ("Tanh", 1 / 128, 0)],
)
def test_fixed_output_scales(kind: str, scale: float, zero_point: int) -> None:
    b = Builder()
    model = _quantized(b.model(b.op(kind, b.op("Gemm", "x", b.weight(8, 5))), ["n", 8]))
    last = model.graph.node[-1]
    constants = initializers(model)
    assert constants[last.input[1]] == np.float32(scale)
    assert constants[last.input[2]] == zero_point


SHARED = {
    "MaxPool": lambda b, x: b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "Transpose": lambda b, x: b.op("Transpose", x, perm=[0, 2, 3, 1]),
    "Reshape": lambda b, x: b.op("Reshape", x, b.const([-1, 64], "int64")),
    "Flatten": lambda b, x: b.op("Flatten", x),
    "Pad": lambda b, x: b.op("Pad", x, b.const([0, 0, 1, 1, 0, 0, 1, 1], "int64")),
    "Slice": lambda b, x: b.op(
        "Slice", x, *(b.const([v], "int64") for v in (0, 2, 2)),
    ),
    "Resize": lambda b, x: b.op(
        "Resize", x, "", b.const([1, 1, 2, 2]), mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
    "Squeeze": lambda b, x: b.op("Squeeze", b.op("GlobalMaxPool", x), b.const([2, 3], "int64")),
    "Unsqueeze": lambda b, x: b.op("Unsqueeze", x, b.const([0], "int64")),
    "Split": lambda b, x: b.op("Split", x, outputs=2, axis=1)[0],
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARED)
def test_operators_that_move_values_keep_the_scale(kind: str) -> None:
    """Input and output integers are the same values: equal scale and zero point."""
    b = Builder()
    y = b.conv("x", 2, 4)
    model = b.model(SHARED[kind](b, y), ["n", 2, 4, 4])
    result = _quantized(model)
    for quantized in (result, _quantized(model, calibrator="percentile", percentile=99.0)):
        constants = initializers(quantized)
        pairs = {
            (float(constants[n.input[1]]), int(constants[n.input[2]]))
            for n in quantized.graph.node
            if n.op_type == "QuantizeLinear" and n.input[0] != "x"
        }
        assert len(pairs) == 1
    x = samples(8, 2, 4, 4)
    (expected,), (found,) = run(model, x), run(result, x)
    assert found.shape == expected.shape
    step = float(initializers(result)[result.graph.node[-1].input[1]])
    assert np.abs(found - expected).max() < 6 * step


def test_concat_inputs_are_unified() -> None:
    b = Builder()
    left, right = b.conv("x", 2, 4), b.conv("x", 2, 4)
    result = _quantized(b.model(b.op("Concat", left, right, axis=1), ["n", 2, 4, 4]))
    constants = initializers(result)
    scales = [
        float(constants[n.input[1]])
        for n in result.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] != "x"
    ]
    assert len(scales) == 3
    assert len(set(scales)) == 1


TABLE_OPERATORS = {
    "LeakyRelu": {"alpha": 0.1}, "HardSwish": {}, "HardSigmoid": {}, "Elu": {}, "Selu": {},
    "Softplus": {}, "Abs": {}, "Neg": {}, "Erf": {}, "Softsign": {}, "Gelu": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLE_OPERATORS)
def test_operators_of_one_input(kind: str) -> None:
    b = Builder(opset=20)
    model = b.model(b.op(kind, b.conv("x", 2, 4), **TABLE_OPERATORS[kind]), ["n", 2, 4, 4])
    result = _quantized(model)
    x = samples(8, 2, 4, 4)
    (expected,), (found,) = run(model, x), run(result, x)
    step = float(initializers(result)[result.graph.node[-1].input[1]])
    assert np.abs(found - expected).max() < 6 * step


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("constant", [False, True], ids=["two-tensors", "constant"])
def test_operators_of_two_inputs(kind: str, constant: bool) -> None:
    b = Builder()
    left = b.op("Sigmoid", b.conv("x", 2, 4))
    # A constant with a value for each position is no bias, and is not folded into a layer.
    if constant:
        other = b.const(b.rng.uniform(0.5, 2, (1, 4, 4, 4)))
    else:
        other = b.op("Clip", b.conv("x", 2, 4), b.const(0.5), b.const(2.0))
    model = b.model(b.op(kind, left, other), ["n", 2, 4, 4])
    result = _quantized(model)
    x = samples(8, 2, 4, 4)
    (expected,), (found,) = run(model, x), run(result, x)
    step = float(initializers(result)[result.graph.node[-1].input[1]])
    assert np.abs(found - expected).max() < 8 * step


def test_integer_edges() -> None:
    """Stripped edges: int8 in and out, the same integers, parameters in the metadata."""
    model = small_cnn()
    whole, stripped = _quantized(model), _quantized(model, io="integer")
    edges = {p.key: json.loads(p.value) for p in stripped.metadata_props}
    source = edges["tinyq.edge.x"]
    x = np.rint(CNN / np.float32(source["scale"])) + source["zero_point"]
    (integers,) = run(stripped, np.clip(x, -128, 127).astype(np.int8))
    assert integers.dtype == np.int8
    target = edges[f"tinyq.edge.{model.graph.output[0].name}"]
    (expected,) = run(whole, CNN)
    found = (integers.astype(np.float32) - target["zero_point"]) * np.float32(target["scale"])
    assert np.array_equal(found, expected)


def test_int4_weights_are_small_integers_and_named() -> None:
    result = _quantized(small_cnn(), weights="int4", edges_int8=False)
    bits = json.loads({p.key: p.value for p in result.metadata_props}["tinyq.weight_bits"])
    assert set(bits.values()) == {4}
    stored = [v for k, v in initializers(result).items() if k.endswith("_weight_quantized")]
    assert len(stored) == len(bits) == 4
    assert all(np.abs(v).max() <= 7 for v in stored)


def test_first_and_last_layer_keep_8_bits() -> None:
    result = _quantized(small_cnn(), weights="int4")
    bits = json.loads({p.key: p.value for p in result.metadata_props}["tinyq.weight_bits"])
    assert len(bits) == 2


def test_int16_activations_need_opset_21() -> None:
    result = _quantized(small_cnn(), activations="int16")
    assert result.opset_import[0].version == 21
    zero_points = [v for k, v in initializers(result).items() if k.endswith("zero_point")]
    assert not any(z.any() for z in zero_points if z.dtype == np.int16)


def test_same_bytes_twice() -> None:
    options = {"calibrator": "mse", "bias_correction": True, "rounding": "adaround"}
    first, second = (_quantized(small_cnn(), weights="int4", **options) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_fixed_batch_of_one() -> None:
    model = mlp(batch=1)
    result = quantize(model, from_arrays(inputs_of(model), {"x": samples(40, 16)}))
    assert run(result.model, samples(1, 16))[0].shape == (1, 4)


def test_equalisation_keeps_the_function_and_mends_bad_scales() -> None:
    """Channels 1000 times apart ruin one scale for the layer; equalised, they do not."""
    model = chain(np.geomspace(0.03, 30, 8).astype(np.float32))
    x = samples(64, 4, 6, 6)
    data = from_arrays(inputs_of(model), {"x": x})
    (expected,) = run(model, x)
    noise = {}
    for equalize in (False, True):
        result = quantize(model, data, PtqConfig(per_channel=False, equalize=equalize))
        assert np.abs(run(result.float_model, x)[0] - expected).max() < 1e-4 * expected.max()
        noise[equalize] = result.report.output.sqnr_db
    assert noise[False] < 20
    assert noise[True] > 30


def test_large_biases_are_absorbed() -> None:
    """beta far above 3 gamma moves to the next layer: the range of the tensor falls."""
    b = Builder()
    parts = (np.full(4, 0.5), np.array([10.0, 0, 20, 0]), np.zeros(4), np.ones(4))
    y = b.op("BatchNormalization", b.conv("x", 4, 4, 1, bias=False), *map(b.const, parts))
    y = b.op("Conv", b.op("Relu", y), b.weight(3, 4, 1, 1), kernel_shape=[1, 1])
    model = b.model(y, ["n", 4, 6, 6])
    x = 0.5 * samples(64, 4, 6, 6)
    result = quantize(model, from_arrays(inputs_of(model), {"x": x}), PtqConfig(equalize=True))
    assert np.abs(run(result.float_model, x)[0] - run(model, x)[0]).max() < 1e-4
    first = result.report.layers[0]
    assert first.high < 10


def test_bias_correction_removes_the_mean_error() -> None:
    model = small_cnn()
    x = samples(128, 3, 12, 12)
    data = from_arrays(inputs_of(model), {"x": x})
    config = {"weights": "int4", "edges_int8": False}
    shift = {}
    for correct in (False, True):
        result = quantize(model, data, PtqConfig(bias_correction=correct, **config))
        layer = result.report.layers[2].tensor  # no Relu
        before = run_inner(result.float_model, layer, x)
        after = run_inner(result.model, f"{layer}_dequantized", x)
        shift[correct] = np.abs((after - before).mean(axis=(0, 2, 3))).max()
    assert shift[True] < shift[False] / 50
