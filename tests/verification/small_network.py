"""A small QDQ convolutional network, written node by node, and its compiled folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class QdqModel:
    """Collects nodes and constants of a QDQ model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes)
        )
        return output

    def grid(self, name: str, scale: object, zero: np.ndarray) -> list[str]:
        return [
            self.constant(f"{name}_s", np.asarray(scale, np.float32)),
            self.constant(f"{name}_z", zero),
        ]

    def activation(self, real: str, name: str, scale: float, zero: int) -> str:
        """QuantizeLinear and DequantizeLinear; returns the float twin, ``name`` is the integers."""
        grid = self.grid(name, scale, np.int8(zero))
        self.node("QuantizeLinear", [real, *grid], name)
        return self.node("DequantizeLinear", [name, *grid], f"{name}_f")

    def weights(
        self, name: str, integers: np.ndarray, scales: np.ndarray, bias_scale: float
    ) -> list[str]:
        rng = np.random.default_rng(len(name))
        zeros = np.zeros(len(scales), np.int8)
        w = self.constant(name, integers)
        w_f = self.node(
            "DequantizeLinear", [w, *self.grid(f"{name}w", scales, zeros)], f"{name}_f", axis=0
        )
        b = self.constant(f"{name}_b", rng.integers(-2000, 2000, len(scales)).astype(np.int32))
        bias = np.float32(bias_scale) * scales
        grid = self.grid(f"{name}bias", bias, zeros.astype(np.int32))
        return [w_f, self.node("DequantizeLinear", [b, *grid], f"{name}_b_f", axis=0)]

    def model(self, shape: tuple[int, ...], output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def small_model(seed: int = 0) -> onnx.ModelProto:
    """Conv-Relu, depthwise Conv, residual Add, mean, dense, Softmax over [n, 3, 8, 8]."""
    rng = np.random.default_rng(seed)
    m = QdqModel()
    x = m.activation("x", "x_q", 0.02, -5)
    w = rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)
    scales = (rng.uniform(0.5, 2.0, 8) / 300).astype(np.float32)
    conv = m.node("Conv", [x, *m.weights("w1", w, scales, 0.02)], "c1", pads=[1, 1, 1, 1])
    a = m.activation(m.node("Relu", [conv], "r1"), "a_q", 0.03, -128)
    w = rng.integers(-127, 128, (8, 1, 3, 3)).astype(np.int8)
    inputs = [a, *m.weights("w2", w, scales, 0.03)]
    depthwise = m.node("Conv", inputs, "c2", pads=[1, 1, 1, 1], group=8)
    b = m.activation(depthwise, "b_q", 0.025, 7)
    total = m.activation(m.node("Add", [a, b], "sum"), "s_q", 0.05, -20)
    mean = m.activation(m.node("GlobalAveragePool", [total], "mean"), "m_q", 0.03, -30)
    flat = m.node("Flatten", [mean], "flat")
    w = rng.integers(-127, 128, (4, 8)).astype(np.int8)
    dense = m.node("Gemm", [flat, *m.weights("w3", w, scales[:4], 0.03)], "logits", transB=1)
    logits = m.activation(dense, "l_q", 0.05, 0)
    return m.model(
        ("n", 3, 8, 8), m.activation(m.node("Softmax", [logits], "p"), "p_q", 1 / 256, -128)
    )


def save_small_model(folder: Path, seed: int = 0) -> Path:
    path = folder / "small.onnx"
    onnx.save(small_model(seed), path)
    return path
