"""Dense layers and matrix products: onnxruntime, the reference and C; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import assert_c, assert_reference, assert_refused, models_of
from qdq import Qdq

X_SCALE, W_SCALE = 0.021, 0.0093


def gemm(
    depth: int = 13, out: int = 6, *, dtype: str = "int8", zero: int = 4, y_scale: float = 0.13,
    y_zero: int = -11, bias: str = "int32", per_channel: bool = False, relu: bool = False,
    rows: int = 1, **attributes: Any,
) -> Qdq:  # fmt: skip
    """A Gemm of random weights; ``bias`` is int32, float, scalar, other (another scale) or none."""
    b = Qdq(dtype)
    rng = np.random.default_rng(depth * 100 + out)
    w_scale = (W_SCALE * rng.uniform(0.3, 2, out)).astype(np.float32)
    w_scale = w_scale if per_channel else np.float32(W_SCALE)
    transposed = bool(attributes.get("transB", 0))
    shape = (out, depth) if transposed else (depth, out)
    weights = b.weights(rng.integers(-127, 128, shape), w_scale, axis=0 if transposed else 1)
    inputs = [b.x((rows, depth), X_SCALE, zero), weights]
    integers = rng.integers(-9000, 9000, out)
    if bias == "int32":
        inputs.append(b.bias(integers, np.float32(X_SCALE) * w_scale))
    elif bias == "other":
        inputs.append(b.dq(b.const(np.arange(out, dtype=np.int8)), 0.3, 1, "int8"))
    elif bias == "float":
        inputs.append(b.const(rng.normal(0, 1, out).astype(np.float32)))
    elif bias == "scalar":
        inputs.append(b.const(0.8))
    y = b.op("Gemm", *inputs, **attributes)
    return b.end(b.op("Relu", y) if relu else y, y_scale, y_zero)


def matmul(
    shape: tuple[int, ...] = (1, 13), out: int = 6, *, dtype: str = "int8", add: str = "float",
    per_channel: bool = False, first: bool = False, relu: bool = False, zero: int = -8,
) -> Qdq:  # fmt: skip
    """MatMul, and Add of a float or quantized bias (before or after it in the Add)."""
    b = Qdq(dtype)
    rng = np.random.default_rng(shape[-1] * 100 + out)
    w_scale = (W_SCALE * rng.uniform(0.3, 2, out)).astype(np.float32)
    w_scale = w_scale if per_channel else np.float32(W_SCALE)
    weights = b.weights(rng.integers(-127, 128, (shape[-1], out)), w_scale, axis=1)
    y = b.op("MatMul", b.x(shape, X_SCALE, zero), weights)
    if add == "float":
        real = b.const(rng.normal(0, 1, out).astype(np.float32))
        y = b.op("Add", *((real, y) if first else (y, real)))
    elif add == "int32":
        integers = rng.integers(-9000, 9000, out)
        y = b.op("Add", y, b.bias(integers, np.float32(X_SCALE) * w_scale))
    elif add == "int8":
        y = b.op("Add", y, b.dq(b.const(rng.integers(-128, 128, out).astype(np.int8)), 0.01, 3))
    y = b.op("Relu", y) if relu else y
    return b.end(y, 0.12, 100 if dtype == "uint8" else -20)


def two_activations(
    a: tuple[int, ...], c: tuple[int, ...], *, dtype: str = "int8", zeros: tuple[int, int] = (3, -5)
) -> Qdq:
    """A matrix product of two computed tensors."""
    b = Qdq(dtype)
    y = b.op("MatMul", b.x(a, 0.02, zeros[0]), b.x(c, 0.05, zeros[1]))
    return b.end(y, 0.3, 7)


def torch_flatten(channels: int = 4) -> Qdq:
    """Conv, Flatten and Linear as PyTorch exports them: the weights are in NCHW order."""
    b = Qdq()
    rng = np.random.default_rng(7)
    x = b.x((1, 2, 6, 5), X_SCALE, 5)
    y = b.op("Conv", x, b.weights(rng.integers(-127, 128, (channels, 2, 3, 3)), W_SCALE))
    y = b.qdq(b.op("Relu", y), 0.05, -128)
    y = b.op("Flatten", b.op("MaxPool", y, kernel_shape=[2, 2], strides=[1, 1]))
    weights = b.weights(rng.integers(-127, 128, (5, channels * 3 * 2)), W_SCALE)
    return b.end(b.op("Gemm", y, weights, transB=1), 0.2, 3)


def transposed_weights() -> Qdq:
    """Linear by MatMul: a Transpose stands between the weights' DequantizeLinear and MatMul."""
    b = Qdq()
    rng = np.random.default_rng(8)
    scales = rng.uniform(0.003, 0.03, 6).astype(np.float32)
    w = b.op("Transpose", b.weights(rng.integers(-127, 128, (6, 9)), scales), perm=[1, 0])
    y = b.op("Add", b.op("MatMul", b.x((1, 9)), w), b.const(rng.normal(size=6).astype(np.float32)))
    return b.end(y, 0.1, 1)


def quantizing_weights() -> Qdq:
    """Float weights and their QuantizeLinear, to be folded."""
    b = Qdq()
    rng = np.random.default_rng(9)
    w = b.qdq(b.const(rng.normal(0, 0.4, (9, 6)).astype(np.float32)), 0.01)
    return b.end(b.op("MatMul", b.x((1, 9)), w), 0.1, 1)


def qlinear_matmul(dtype: str = "int8", per_channel: bool = False) -> Qdq:
    b = Qdq(dtype)
    rng = np.random.default_rng(10)
    scale = rng.uniform(0.002, 0.02, 6).astype(np.float32) if per_channel else np.float32(0.013)
    zeros = np.zeros(np.shape(scale), np.int8)
    zero = 128 if dtype == "uint8" else 0
    inputs = [
        b.input((1, 9)), *b.scale(0.04, zero + 9),
        b.const(rng.integers(-127, 128, (9, 6)).astype(np.int8)), *b.scale(scale, zeros, "int8"),
        *b.scale(0.1, zero - 8),
    ]  # fmt: skip
    b.output(b.op("QLinearMatMul", *inputs))
    return b


def qlinear_matmul_computed() -> Qdq:
    b = Qdq()
    inputs = [b.input((2, 3, 4)), *b.scale(0.04, 9), b.input((2, 4, 5)), *b.scale(0.02, -3)]
    b.output(b.op("QLinearMatMul", *inputs, *b.scale(0.05, 11)))
    return b


def qgemm(dtype: str = "int8", transposed: int = 0, per_channel: bool = False) -> Qdq:
    b = Qdq(dtype)
    rng = np.random.default_rng(11)
    shape = (6, 9) if transposed else (9, 6)
    scale = rng.uniform(0.002, 0.02, 6).astype(np.float32) if per_channel else np.float32(0.013)
    zeros = np.zeros(np.shape(scale), np.int8)
    zero = 128 if dtype == "uint8" else 0
    inputs = [
        b.input((1, 9)), *b.scale(0.04, zero + 9),
        b.const(rng.integers(-127, 128, shape).astype(np.int8)), *b.scale(scale, zeros, "int8"),
        b.const(rng.integers(-3000, 3000, 6).astype(np.int32)), *b.scale(0.1, zero - 8),
    ]  # fmt: skip
    b.output(b.op("QGemm", *inputs, domain="com.microsoft", transB=transposed))
    return b


CASES: dict[str, Callable[[], Qdq]] = {
    "gemm": gemm,
    "gemm_transposed": partial(gemm, transB=1),
    "gemm_uint8": partial(gemm, dtype="uint8", zero=121, y_zero=140),
    "gemm_zero_ends": partial(gemm, zero=-128, y_zero=127),
    "gemm_per_channel": partial(gemm, per_channel=True, transB=1),
    "gemm_per_channel_columns": partial(gemm, per_channel=True),
    "gemm_no_bias": partial(gemm, bias="none"),
    "gemm_float_bias": partial(gemm, bias="float"),
    "gemm_scalar_bias": partial(gemm, bias="scalar"),
    "gemm_relu": partial(gemm, relu=True),
    "gemm_relu_float_bias": partial(gemm, relu=True, bias="float", transB=1),
    "gemm_rows": partial(gemm, rows=3),
    "gemm_one_by_one": partial(gemm, 1, 1),
    "gemm_long": partial(gemm, 300, 3, y_scale=0.6),
    "gemm_dyadic": partial(gemm, y_scale=X_SCALE * W_SCALE * 2.0**8),
    "matmul": partial(matmul, add=""),
    "matmul_add": matmul,
    "matmul_add_first": partial(matmul, first=True),
    "matmul_add_int32": partial(matmul, add="int32"),
    "matmul_add_int8": partial(matmul, add="int8"),
    "matmul_add_relu": partial(matmul, relu=True),
    "matmul_uint8": partial(matmul, dtype="uint8", zero=3),
    "matmul_per_channel": partial(matmul, per_channel=True),
    "matmul_sequence": partial(matmul, (1, 5, 8)),
    "matmul_batch": partial(matmul, (2, 3, 8), add=""),
    "matmul_vector": partial(matmul, (7,), add=""),
    "two_activations": partial(two_activations, (3, 4), (4, 5)),
    "two_activations_batch": partial(two_activations, (1, 2, 3, 4), (1, 2, 4, 3)),
    "two_activations_zero_ends": partial(two_activations, (3, 4), (4, 5), zeros=(-128, 127)),
    "two_activations_uint8": partial(two_activations, (3, 9), (9, 2), dtype="uint8",
                                     zeros=(0, 255)),
    "torch_flatten": torch_flatten,
    "transposed_weights": transposed_weights,
    "quantizing_weights": quantizing_weights,
    "qlinearmatmul": qlinear_matmul,
    "qlinearmatmul_uint8": partial(qlinear_matmul, "uint8"),
    "qlinearmatmul_per_channel": partial(qlinear_matmul, per_channel=True),
    "qlinearmatmul_computed": qlinear_matmul_computed,
    "qgemm": qgemm,
    "qgemm_uint8": partial(qgemm, "uint8", 1),
    "qgemm_per_channel": partial(qgemm, transposed=1, per_channel=True),
}  # fmt: skip

MODELS = models_of(CASES)


@pytest.mark.parametrize("name", MODELS)
def test_reference_equals_onnxruntime(name: str) -> None:
    assert_reference(MODELS[name], plain=False)


@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4"])
def test_c_equals_the_reference(target: str, tmp_path: Path) -> None:
    assert_c(MODELS, tmp_path, target)


def weights_of_two_matrices() -> Qdq:
    b = Qdq()
    return b.end(b.op("MatMul", b.x((2, 3, 4)), b.weights(np.ones((2, 4, 5)), 0.1)))


def chain_without_quantization() -> Qdq:
    b = Qdq()
    y = b.op("MatMul", b.x((1, 4)), b.weights(np.ones((4, 5)), 0.1))
    return b.end(b.op("MatMul", y, b.weights(np.ones((5, 2)), 0.1)))


def float_output() -> Qdq:
    b = Qdq()
    b.output(b.op("MatMul", b.x((1, 4)), b.weights(np.ones((4, 5)), 0.1)))
    return b


REFUSED: dict[str, tuple[Callable[[], Qdq], str]] = {
    "weights_of_two_matrices": (weights_of_two_matrices, "TQ203"),
    "transposed_activation": (partial(gemm, rows=13, depth=13, transA=1), "TQ203"),
    "beta": (partial(gemm, beta=0.5), "TQ203"),
    "chain_without_quantization": (chain_without_quantization, "TQ202"),
    "float_output": (float_output, "TQ202"),
    "overflow": (partial(gemm, 300_000, 1, bias="none"), "TQ205"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    build, code = REFUSED[name]
    assert_refused(build().model(), code)
