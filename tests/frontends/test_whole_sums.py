"""Sums of uint8 by int8 products: onnxruntime's integers on a machine where it saturates."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinyq.frontends import whole_sums
from tinyq.frontends.ort import session

RNG = np.random.default_rng(5)
X = RNG.integers(150, 256, (3, 4, 6, 6)).astype(np.uint8)
W = RNG.integers(-128, 128, (5, 4, 3, 3)).astype(np.int8)
X_ZERO, Y_ZERO = 3, 120
X_SCALE, Y_SCALE = np.float32(0.02), np.float32(4.0)


def sums(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Accumulators by their definition, in 64 bits."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.int64) - X_ZERO, (3, 3), (2, 3))
    return np.asarray(np.einsum("nchwij,ocij->nohw", windows, W.astype(np.int64)))


def rescaled(accumulators: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> Any:
    factors = (X_SCALE * scales / Y_SCALE).astype(np.float32).reshape(-1, 1, 1)
    levels = np.rint(accumulators.astype(np.float32) * factors) + Y_ZERO
    return np.clip(levels, 0, 255).astype(np.uint8)


def constants(channels: bool, zeros: bool) -> tuple[list[Any], np.ndarray[Any, Any]]:
    scales = np.full(5 if channels else (), 0.01, np.float32)
    zero = np.zeros(scales.shape, np.int8)
    arrays = {
        "xs": X_SCALE, "xz": np.uint8(X_ZERO), "w": W, "ws": scales, "ys": Y_SCALE,
        "yz": np.uint8(Y_ZERO),
    }  # fmt: skip
    if zeros:
        arrays["wz"] = zero
    made = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    return made, np.broadcast_to(scales, 5)


def model(nodes: list[Any], initializers: list[Any], y_type: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, X.shape)],
        [helper.make_tensor_value_info("y", y_type, [3, 5, 4, 4])], initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def computed(proto: onnx.ModelProto, x: np.ndarray[Any, Any] = X) -> Any:
    (name,) = (i.name for i in proto.graph.input)
    onnx.checker.check_model(proto)
    return session(proto.SerializeToString()).run(None, {name: x})[0]


@pytest.fixture(params=["as found", "saturating"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, and one where onnxruntime saturates: the rewritten model suits both."""
    if request.param == "saturating":
        monkeypatch.setattr(whole_sums, "saturates", lambda: True)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("form", ["QLinearConv", "QDQ", "QDQ without zero point"])
def test_convolutions(form: str, channels: bool) -> None:
    initializers, scales = constants(channels, form != "QDQ without zero point")
    if form == "QLinearConv":
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
        nodes = [helper.make_node("QLinearConv", names, ["y"])]
    else:
        weights = ["w", "ws", "wz"] if form == "QDQ" else ["w", "ws"]
        axis = {"axis": 0} if channels else {}
        nodes = [
            helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
            helper.make_node("DequantizeLinear", weights, ["wf"], **axis),
            helper.make_node("Conv", ["xf", "wf"], ["yf"]),
            helper.make_node("QuantizeLinear", ["yf", "ys", "yz"], ["y"]),
        ]
    given = model(nodes, initializers, TensorProto.UINT8)
    found = computed(whole_sums.with_whole_sums(given))
    assert np.array_equal(found, rescaled(sums(X), scales))


@pytest.mark.usefixtures("machine")
def test_sums_of_a_convolution() -> None:
    initializers, _ = constants(False, True)
    node = helper.make_node("ConvInteger", ["x", "w", "xz"], ["y"])
    given = model([node], initializers, TensorProto.INT32)
    assert np.array_equal(computed(whole_sums.with_whole_sums(given)), sums(X))


def test_other_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 activations have kernels that do not saturate; two users of one tensor are apart."""
    monkeypatch.setattr(whole_sums, "saturates", lambda: True)
    initializers, _ = constants(False, True)
    initializers += [
        numpy_helper.from_array(np.int8(X_ZERO - 128), "sz"),
        numpy_helper.from_array(np.int8(Y_ZERO - 128), "tz"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("QuantizeLinear", ["xf", "xs", "sz"], ["s"]),
        helper.make_node("QLinearConv", ["s", "xs", "sz", "w", "ws", "wz", "ys", "tz"], ["t"]),
        helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"]),
    ]
    given = model(nodes, initializers, TensorProto.UINT8)
    given.graph.output.append(helper.make_tensor_value_info("t", TensorProto.INT8, [3, 5, 4, 4]))
    edited = whole_sums.with_whole_sums(given)
    signed, unsigned = (n for n in edited.graph.node if n.op_type == "QLinearConv")
    assert signed.input[3] == "w"
    assert unsigned.input[3] != "w"
    results = session(edited.SerializeToString()).run(None, {"x": X})
    wanted = rescaled(sums(X), np.full(5, 0.01, np.float32))
    assert np.array_equal(results[0], wanted)
    assert np.array_equal(results[1].astype(int) + 128, wanted)


@pytest.mark.parametrize("between", ["QLinearConcat", "MaxPool"])
def test_layers_behind_others(between: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The type of an activation is known behind operators whose first input is a scale, too."""
    monkeypatch.setattr(whole_sums, "saturates", lambda: True)
    initializers, scales = constants(False, True)
    node = helper.make_node("MaxPool", ["x"], ["m"], kernel_shape=[1, 1])
    if between == "QLinearConcat":
        inputs = ["xs", "xz", "x", "xs", "xz"]
        node = helper.make_node(between, inputs, ["m"], domain="com.microsoft", axis=1)
    names = ["m", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    given = model([node, helper.make_node("QLinearConv", names, ["y"])], initializers, 2)
    given.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    edited = whole_sums.with_whole_sums(given)
    assert edited.graph.node[1].input[3] != "w"
    assert np.array_equal(computed(edited), rescaled(sums(X), scales))
