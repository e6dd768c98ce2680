"""Small models, good and bad, for the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from qdq import Qdq


def good() -> onnx.ModelProto:
    """Convolution, Relu, mean and a dense layer; input [1, 3, 6, 5]."""
    rng = np.random.default_rng(0)
    g = Qdq()
    x = g.dq(g.input((1, 3, 6, 5), name="image"), 0.05, 3)
    w = g.weights(rng.integers(-127, 128, (4, 3, 3, 3)), rng.uniform(0.001, 0.01, 4))
    y = g.qdq(g.op("Relu", g.op("Conv", x, w, pads=[1, 1, 1, 1])), 0.03, -128)
    y = g.qdq(g.op("GlobalAveragePool", y), 0.02, -128)
    y = g.op("Flatten", y)
    y = g.op("MatMul", y, g.weights(rng.integers(-127, 128, (4, 5)), 0.01))
    return g.end(y, 0.05).model()


def float_model() -> onnx.ModelProto:
    """Two float nodes, neither quantized."""
    weights = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    return _model(nodes, [("x", (1, 3, 6, 6))], [("y", (1, 4, 4, 4))], [weights])


def partly_quantized() -> onnx.ModelProto:
    """The Relu between two quantized convolutions has no quantization after it."""
    rng = np.random.default_rng(1)
    g = Qdq()
    x = g.x((1, 3, 6, 6))
    w = g.weights(rng.integers(-9, 9, (3, 3, 1, 1)), 0.01)
    y = g.op("Conv", g.op("Sigmoid", g.op("Conv", x, w)), w)
    return g.end(y).model()


def unknown_operators() -> onnx.ModelProto:
    """Two operators that nobody has an integer form of."""
    g = Qdq()
    y = g.qdq(g.op("NonZeroish", g.x((1, 4)), domain="my.domain"), 0.1)
    model = g.end(g.op("Hardmax", y)).model()
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    return model


def dynamic_shape() -> onnx.ModelProto:
    """A symbolic width."""
    g = Qdq()
    return g.end(g.op("Relu", g.x((1, 3, "height", "width")))).model()


def old_opset() -> onnx.ModelProto:
    """Opset 11."""
    model = good()
    model.opset_import[0].version = 11
    return model


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, tuple[int, ...]]],
    outputs: list[tuple[str, tuple[int, ...]]],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, kind, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, kind, s) for n, s in outputs], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def write_external(folder: Path) -> Path:
    """A model whose weights are in another file, which is gone."""
    path = folder / "external.onnx"
    onnx.save_model(
        float_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (folder / "w.bin").unlink()
    return path
