"""The float32 rules of the oracles against onnxruntime, with accumulators chosen one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinyq.quant import (
    OrtLinear,
    OrtMatMulFloatBias,
    build_staircase,
    clamp_levels,
    ort_bias,
    ort_scale,
)

BIG_TAPS = 1100
WEIGHTS = np.array([1, 16] + [127] * BIG_TAPS, np.int8)
REACH = 126 * 127 * BIG_TAPS
CHANNELS = 6


def inputs_for(accumulators: np.ndarray) -> np.ndarray:
    """Inputs int8[n, taps] whose product with WEIGHTS is each of the accumulators."""
    rest = accumulators.astype(np.int64)
    big = np.rint(rest / 127).astype(np.int64)
    rest = rest - 127 * big
    per_tap, extra = np.divmod(np.abs(big), BIG_TAPS)
    taps = (per_tap[:, None] + (np.arange(BIG_TAPS) < extra[:, None])) * np.sign(big)[:, None]
    mid = np.rint(rest / 16).astype(np.int64)
    x = np.concatenate([(rest - 16 * mid)[:, None], mid[:, None], taps], axis=1)
    assert np.abs(x).max() <= 127
    assert np.array_equal(x @ WEIGHTS.astype(np.int64), accumulators)
    return x.astype(np.int8)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], tmp_path) -> tuple:
    """Output and the operators that onnxruntime runs at its default optimisation."""
    options = onnxruntime.SessionOptions()
    if model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8:
        options.add_session_config_entry("session.x64quantprecision", "1")  # no sum saturates
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return session.run(None, feeds)[0], [node.op_type for node in nodes]


@dataclass(frozen=True)
class Layer:
    """Numbers of one layer; every channel has the same weights and its own scale and bias."""

    per_channel: bool
    y_zero_point: int
    x_zero_point: int
    magnitude: float

    @property
    def x_scale(self) -> np.float32:
        return np.float32(0.0314159)

    @property
    def y_scale(self) -> np.float32:
        return np.float32(0.0712345)

    @property
    def w_scale(self) -> np.ndarray:
        spread = np.linspace(0.71, 1.37, CHANNELS) if self.per_channel else np.float64(1.0)
        return (spread * self.magnitude * self.y_scale / self.x_scale).astype(np.float32)

    @property
    def bias(self) -> np.ndarray:
        return np.array([0, 1, -777, 12345, -54321, 222222], np.int64)

    @property
    def float_bias(self) -> np.ndarray:
        scale = self.x_scale * self.w_scale
        return (self.bias * scale * 1.00001 + 0.3 * scale).astype(np.float32)

    @property
    def offset(self) -> np.ndarray:
        total = -self.x_zero_point * int(WEIGHTS.astype(np.int64).sum())
        return np.full(CHANNELS, total, np.int64)


LAYERS = {
    "per_tensor": Layer(False, 0, 3, 0.001),
    "per_channel": Layer(True, -7, -100, 0.0021),
    "coarse": Layer(True, 5, 0, 0.7),
    "beyond_2_24": Layer(True, -128, -1, 1.3e-5),
    "per_tensor_fine": Layer(False, 60, 50, 3.1e-5),
}


def accumulators_for(oracle, seed: int) -> np.ndarray:
    """Every threshold of every channel and its neighbours, and random ones: thousands."""
    reach = np.full(CHANNELS, REACH, np.int64)
    stair = build_staircase(oracle, -reach, reach, -128, 127)
    inside = np.sum((stair.thresholds > -REACH) & (stair.thresholds <= REACH), axis=1)
    assert inside.max() >= 60, inside
    edges = (stair.thresholds[..., None] + np.array([-2, -1, 0, 1])).ravel()
    rng = np.random.default_rng(seed)
    near = rng.integers(-40000, 40000, 1000)
    wide = rng.integers(-REACH, REACH + 1, 1000)
    return np.unique(np.clip(np.concatenate([edges, near, wide]), -REACH, REACH))


def graph(nodes, x_shape, tensors, dtype=TensorProto.INT8) -> onnx.ModelProto:
    g = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, x_shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(g, opset_imports=opsets, ir_version=9)


def tensors_of(layer: Layer, weights: np.ndarray, dtype=np.int8) -> dict[str, np.ndarray]:
    shift = 128 if dtype == np.uint8 else 0
    return {
        "xs": layer.x_scale,
        "xz": dtype(layer.x_zero_point + shift),
        "w": weights,
        "ws": layer.w_scale,
        "wz": np.zeros(layer.w_scale.shape, np.int8),
        "ys": layer.y_scale,
        "yz": dtype(layer.y_zero_point + shift),
    }


def linear_oracle(layer: Layer, bias: np.ndarray) -> OrtLinear:
    scale = ort_scale(layer.x_scale, layer.w_scale, layer.y_scale, CHANNELS)
    return OrtLinear(scale, bias, layer.offset, layer.y_zero_point)


def expect_equal(oracle, accumulators: np.ndarray, got: np.ndarray) -> None:
    """``got`` is [n, C]; every accumulator is that of every channel."""
    wanted = oracle(np.repeat(accumulators[None, :], CHANNELS, axis=0)).T
    assert np.array_equal(wanted, got.astype(np.int64))


DENSE_WEIGHTS = np.repeat(WEIGHTS[:, None], CHANNELS, axis=1)


@pytest.mark.parametrize("name", LAYERS)
def test_qlinear_conv(name: str, tmp_path) -> None:
    layer = LAYERS[name]
    oracle = linear_oracle(layer, layer.bias)
    acc = accumulators_for(oracle, 1)
    x = inputs_for(acc).T[None, :, :, None]
    tensors = tensors_of(layer, DENSE_WEIGHTS.T[:, :, None, None].copy())
    tensors["b"] = layer.bias.astype(np.int32)
    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"]
    )
    y, operators = run(graph([node], x.shape, tensors), {"x": x}, tmp_path)
    assert "QLinearConv" in operators
    expect_equal(oracle, acc, y[0, :, :, 0].T)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", ["integer", "float", "none"])
def test_conv_becomes_qlinear_conv(name: str, relu: bool, bias: str, tmp_path) -> None:
    """Its Relu is dropped where the output's zero point is the lowest output."""
    layer = LAYERS[name]
    if relu:
        layer = replace(layer, y_zero_point=-128)
    quantized = {
        "integer": layer.bias,
        "float": ort_bias(layer.float_bias, layer.x_scale, layer.w_scale),
        "none": np.zeros(CHANNELS, np.int64),
    }
    oracle = linear_oracle(layer, quantized[bias])
    acc = accumulators_for(oracle, 5)
    nodes, tensors = dequantized(layer, bias, weight_axis=0)
    tensors |= tensors_of(layer, DENSE_WEIGHTS.T[:, :, None, None].copy(), np.uint8)
    operands = ["xf", "wf"] + ([] if bias == "none" else ["bf"])
    nodes.append(helper.make_node("Conv", operands, ["r"]))
    if relu:
        nodes.append(helper.make_node("Relu", ["r"], ["p"]))
    last = "p" if relu else "r"
    nodes.append(helper.make_node("QuantizeLinear", [last, "ys", "yz"], ["y"]))
    x = (inputs_for(acc).astype(np.int64) + 128).astype(np.uint8).T[None, :, :, None]
    model = graph(nodes, x.shape, tensors, TensorProto.UINT8)
    y, operators = run(model, {"x": x}, tmp_path)
    assert "QLinearConv" in operators
    assert "Relu" not in operators
    expect_equal(oracle, acc, y[0, :, :, 0].T.astype(np.int64) - 128)


def dequantized(layer: Layer, bias: str, weight_axis: int) -> tuple[list, dict[str, np.ndarray]]:
    """DequantizeLinear of x, w and bias: 'xf', 'wf' and 'bf'."""
    axis = {"axis": weight_axis} if layer.per_channel else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], **axis),
    ]
    tensors: dict[str, np.ndarray] = {}
    if bias == "integer":
        scale = (layer.x_scale * layer.w_scale).astype(np.float32)
        tensors = {
            "b": layer.bias.astype(np.int32),
            "bs": scale,
            "bz": np.zeros(scale.shape, np.int32),
        }
        axis = {"axis": 0} if layer.per_channel else {}
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bf"], **axis))
    elif bias == "float":
        tensors = {"bf": layer.float_bias}
    return nodes, tensors


def dense_nodes(layer: Layer, kind: str, bias: str) -> tuple[list, dict[str, np.ndarray]]:
    """MatMul and Add, or Gemm, of dequantized operands; result in 'r'."""
    nodes, tensors = dequantized(layer, bias, weight_axis=1)
    if kind == "Gemm":
        nodes.append(helper.make_node("Gemm", ["xf", "wf", "bf"], ["r"]))
    elif bias == "none":
        nodes.append(helper.make_node("MatMul", ["xf", "wf"], ["r"]))
    else:
        nodes.append(helper.make_node("MatMul", ["xf", "wf"], ["m"]))
        nodes.append(helper.make_node("Add", ["m", "bf"], ["r"]))
    return nodes, tensors


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
@pytest.mark.parametrize("bias", ["integer", "float"])
def test_dense_with_bias_becomes_qgemm(name: str, kind: str, bias: str, tmp_path) -> None:
    layer = LAYERS[name]
    quantized = (
        layer.bias
        if bias == "integer"
        else ort_bias(layer.float_bias, layer.x_scale, layer.w_scale)
    )
    oracle = linear_oracle(layer, quantized)
    acc = accumulators_for(oracle, 2)
    nodes, tensors = dense_nodes(layer, kind, bias)
    tensors |= tensors_of(layer, DENSE_WEIGHTS)
    nodes.append(helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["y"]))
    x = inputs_for(acc)
    y, operators = run(graph(nodes, x.shape, tensors), {"x": x}, tmp_path)
    assert operators == ["QGemm"]
    expect_equal(oracle, acc, y)


@pytest.mark.parametrize("name", LAYERS)
def test_matmul_without_bias_becomes_qlinear_matmul(name: str, tmp_path) -> None:
    layer = LAYERS[name]
    oracle = linear_oracle(layer, np.zeros(CHANNELS, np.int64))
    acc = accumulators_for(oracle, 3)
    nodes, tensors = dense_nodes(layer, "MatMul", "none")
    tensors |= tensors_of(layer, DENSE_WEIGHTS, np.uint8)
    nodes.append(helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["y"]))
    x = (inputs_for(acc).astype(np.int64) + 128).astype(np.uint8)
    model = graph(nodes, x.shape, tensors, TensorProto.UINT8)
    y, operators = run(model, {"x": x}, tmp_path)
    assert operators == ["QLinearMatMul"]
    expect_equal(oracle, acc, y.astype(np.int64) - 128)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("relu", [False, True])
def test_matmul_to_float(name: str, relu: bool, tmp_path) -> None:
    """The float32 result of an integer product, a float bias, and a quantization that divides."""
    layer = LAYERS[name]
    scale = np.broadcast_to(layer.x_scale * layer.w_scale, (CHANNELS,)).astype(np.float32)
    oracle = OrtMatMulFloatBias(
        scale,
        np.broadcast_to(layer.float_bias, (CHANNELS,)),
        layer.offset,
        float(layer.y_scale),
        layer.y_zero_point,
        real_min=0.0 if relu else -np.inf,
    )
    acc = accumulators_for(oracle, 4)
    tensors = tensors_of(layer, DENSE_WEIGHTS) | {"bf": layer.float_bias}
    tensors["as"] = scale if layer.per_channel else scale[0]
    nodes = [
        helper.make_node(
            "MatMulIntegerToFloat",
            ["x", "w", "xs", "ws", "xz", "wz"],
            ["m"],
            domain="com.microsoft",
        ),
        helper.make_node("Add", ["m", "bf"], ["r"]),
    ]
    last = "r"
    if relu:
        nodes.append(helper.make_node("Relu", ["r"], ["p"]))
        last = "p"
    nodes.append(helper.make_node("QuantizeLinear", [last, "ys", "yz"], ["y"]))
    x = inputs_for(acc)
    y, operators = run(graph(nodes, x.shape, tensors), {"x": x}, tmp_path)
    assert "MatMulIntegerToFloat" in operators
    expect_equal(oracle, acc, y)


@pytest.mark.parametrize(
    ("low", "high", "zero_point", "want"),
    [
        (0.0, np.inf, -128, (-128, 127)),
        (0.0, np.inf, 5, (5, 127)),
        (0.0, 6.0, -128, (-128, -8)),
        (-np.inf, np.inf, 0, (-128, 127)),
        (-1.0, 1.0, 0, (-20, 20)),
    ],
)
def test_clamp_levels(low: float, high: float, zero_point: int, want: tuple[int, int]) -> None:
    assert clamp_levels(low, high, scale=0.05, zero_point=zero_point) == want
