"""Networks to export: a small one, one with two inputs, and one too large for a small board."""

from __future__ import annotations

import numpy as np
import onnx
from qdq import Qdq


def small() -> onnx.ModelProto:
    """Convolution, Relu, mean and a dense layer; input [1, 3, 6, 5], output [1, 5]."""
    rng = np.random.default_rng(0)
    g = Qdq()
    x = g.dq(g.input((1, 3, 6, 5), name="image"), 0.05, 3)
    w = g.weights(rng.integers(-127, 128, (4, 3, 3, 3)), rng.uniform(0.001, 0.01, 4))
    y = g.qdq(g.op("Relu", g.op("Conv", x, w, pads=[1, 1, 1, 1])), 0.03, -128)
    y = g.qdq(g.op("GlobalAveragePool", y), 0.02, -128)
    y = g.op("Flatten", y)
    y = g.op("MatMul", y, g.weights(rng.integers(-127, 128, (4, 5)), 0.01))
    return g.end(y, 0.05).model()


def two_inputs() -> onnx.ModelProto:
    """The sum of two inputs [1, 7]."""
    g = Qdq()
    a, b = (g.dq(g.input((1, 7), name=name), 0.05, 3) for name in ("left", "right"))
    return g.end(g.op("Add", a, b), 0.1).model()


def large() -> onnx.ModelProto:
    """An input of 3 x 64 x 64 bytes and a dense layer of 12,288 x 16 weights."""
    rng = np.random.default_rng(1)
    g = Qdq()
    x = g.op("Flatten", g.dq(g.input((1, 3, 64, 64), name="image"), 0.05, 3))
    y = g.op("MatMul", x, g.weights(rng.integers(-127, 128, (12288, 16)), 0.01))
    return g.end(y, 50.0).model()
