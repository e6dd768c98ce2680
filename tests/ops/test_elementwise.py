"""Add, Sub, Mul, Max, Min and every function of one tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import Model, assert_c, assert_reference, assert_refused, models_of
from qdq import Qdq

from tinyq.ir import AnyArray

Shape = tuple[int, ...]
SCALES = {"even": (0.05, 0.05, 0.05), "odd": (0.031, 0.0771, 0.0937), "far": (0.9, 0.0003, 0.95)}


def binary(
    op: str, a: Shape = (1, 3, 4, 5), c: Shape = (1, 3, 4, 5), *, dtype: str = "int8",
    zeros: tuple[int, int, int] = (3, -17, 9), scales: tuple[float, float, float] = SCALES["odd"],
    relu: bool = False,
) -> Qdq:  # fmt: skip
    """Two computed operands."""
    b = Qdq(dtype)
    y = b.op(op, b.x(a, scales[0], zeros[0]), b.x(c, scales[1], zeros[1]))
    return b.end(b.op("Relu", y) if relu else y, scales[2], zeros[2])


def constant(
    op: str, shape: Shape, *, x: Shape = (1, 3, 4, 5), quantized: bool = True, first: bool = False,
    dtype: str = "int8", y_scale: float = 0.11,
) -> Qdq:  # fmt: skip
    """One constant operand: quantized, or float."""
    b = Qdq(dtype)
    rng = np.random.default_rng(len(shape))
    zero = 120 if dtype == "uint8" else -6
    real = b.x(x, 0.05, zero)
    if quantized:
        low, high = (0, 256) if dtype == "uint8" else (-128, 128)
        other = b.dq(b.const(rng.integers(low, high, shape).astype(dtype)), 0.03, zero + 11)
    else:
        other = b.const(rng.normal(0, 2, shape).astype(np.float32))
    return b.end(b.op(op, *((other, real) if first else (real, other))), y_scale, zero - 3)


def same_operand(op: str) -> Qdq:
    b = Qdq()
    x = b.x((1, 9), 0.05, 3)
    return b.end(b.op(op, x, x), 0.11, -4)


def layouts() -> Qdq:
    """A residual connection around a convolution: no transpose is left between."""
    b = Qdq()
    rng = np.random.default_rng(2)
    x = b.x((1, 4, 6, 6), 0.04, 3)
    y = b.op("Conv", x, b.weights(rng.integers(-127, 128, (4, 4, 3, 3)), 0.01), pads=[1] * 4)
    y = b.op("Relu", b.op("Add", b.qdq(y, 0.2, 7), x))
    return b.end(y, 0.15, -128)


def channel_constant(op: str) -> Qdq:
    """A constant a channel behind a convolution that quantizes its output."""
    b = Qdq()
    rng = np.random.default_rng(12)
    y = b.op("Conv", b.x((1, 2, 5, 5), 0.04, 3),
             b.weights(rng.integers(-127, 128, (4, 2, 3, 3)), 0.01))  # fmt: skip
    other = b.dq(b.const(rng.integers(-128, 128, (4, 1, 1)).astype(np.int8)), 0.02, 5)
    return b.end(b.op(op, b.qdq(y, 0.1, 7), other), 0.2, -8)


def qlinear(op: str, dtype: str = "int8", shape: Shape = (1, 3, 4, 5)) -> Qdq:
    b = Qdq(dtype)
    zero = 128 if dtype == "uint8" else 0
    inputs = [b.input((1, 3, 4, 5)), *b.scale(0.04, zero + 9), b.input(shape)]
    inputs += [*b.scale(0.013, zero - 20), *b.scale(0.05, zero - 8)]
    b.output(b.op(op, *inputs, domain="com.microsoft"))
    return b


def with_table(op: str, *inputs: AnyArray | float, dtype: str = "int8", scale: float = 0.05,
               y_scale: float = 0.03, domain: str = "", opset: int = 17,
               **attributes: Any) -> Qdq:  # fmt: skip
    """A function of one tensor; ``inputs`` are its constant operands."""
    b = Qdq(dtype, opset)
    zero = 131 if dtype == "uint8" else 3
    x = b.x((1, 4, 8, 9), scale, zero)
    y = b.op(op, x, *(b.const(np.asarray(v, np.float32)) for v in inputs), **attributes)
    return b.end(y, y_scale, zero - 5)


def qlinear_table(op: str, dtype: str = "int8", **attributes: Any) -> Qdq:
    b = Qdq(dtype)
    zero = 128 if dtype == "uint8" else 0
    inputs = [b.input((1, 300)), *b.scale(0.04, zero + 9), *b.scale(0.01, zero - 20)]
    b.output(b.op(op, *inputs, domain="com.microsoft", **attributes))
    return b


def chain() -> Qdq:
    """Several float functions between two quantizers are one table."""
    b = Qdq()
    y = b.op("Relu", b.op("Add", b.x((1, 40), 0.05, 3), b.const(-0.7)))
    return b.end(b.op("Mul", b.op("Tanh", y), b.const(3.0)), 0.03, -3)


def hard_swish_by_parts() -> Qdq:
    """x * HardSigmoid(x) in float: one tensor read twice is still one table."""
    b = Qdq()
    x = b.x((1, 40), 0.05, 3)
    return b.end(b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)), 0.03, -3)


def requantize(dtype: str, then: str, ratio: float = 1.7) -> Qdq:
    """DequantizeLinear and QuantizeLinear of other parameters inside a network."""
    b = Qdq(dtype)
    x = b.x((1, 300), 0.05, 100 if dtype == "uint8" else -28)
    b.output(b.q(x, 0.05 * ratio, 7, then))
    return b


def requantize_inside() -> Qdq:
    b = Qdq()
    return b.end(b.op("Relu", b.qdq(b.x((1, 300), 0.05, 3), 0.021, 50)), 0.017, -128)


def identities() -> Qdq:
    b = Qdq()
    x = b.op("Identity", b.x((1, 30), 0.05, 3))
    y = b.op("Dropout", b.op("Identity", b.qdq(x, 0.1, 4)))
    return b.end(b.op("Relu", y), 0.05, -3)


def one_element() -> Qdq:
    """Scales and zero points of shape [1] where scalars are usual."""
    b = Qdq()
    x = b.dq(b.input((1, 30)), np.array([0.05], np.float32), np.array([3]))
    y = b.op("Sigmoid", x)
    parameters = b.scale(np.array([0.004], np.float32), np.array([-128]))
    b.output(b.op("QuantizeLinear", y, *parameters))
    return b


def zero_dimensions() -> Qdq:
    """A tensor without axes."""
    b = Qdq()
    return b.end(b.op("Sigmoid", b.x((), 0.05, 3)), 0.004, -128)


def no_zero_point() -> Qdq:
    b = Qdq("uint8")
    x = b.op("DequantizeLinear", b.input((1, 30)), b.const(0.05))
    b.output(b.op("QuantizeLinear", b.op("Sqrt", x), b.const(0.02)))
    return b


BINARIES: dict[str, Callable[[], Qdq]] = {
    f"{op.lower()}_{name}": partial(binary, op, scales=scales)
    for op in ("Add", "Sub", "Mul", "Max", "Min")
    for name, scales in SCALES.items()
}
BINARIES |= {
    **{f"{op.lower()}_uint8": partial(binary, op, dtype="uint8", zeros=(0, 255, 131))
       for op in ("Add", "Sub", "Mul", "Max", "Min")},
    **{f"{op.lower()}_zero_ends": partial(binary, op, zeros=(-128, 127, -128))
       for op in ("Add", "Sub", "Mul")},
    **{f"{op.lower()}_relu": partial(binary, op, relu=True) for op in ("Add", "Sub", "Mul")},
    "add_channels": partial(binary, "Add", c=(3, 1, 1)),
    "add_columns": partial(binary, "Add", a=(1, 1, 4, 1), c=(2, 3, 1, 5)),
    "mul_scalar": partial(binary, "Mul", c=()),
    "mul_attention": partial(binary, "Mul", c=(1, 3, 1, 1)),
    "sub_first_smaller": partial(binary, "Sub", a=(5,)),
    "add_dyadic": partial(binary, "Add", scales=(0.25, 0.125, 0.5)),
    "mul_dyadic": partial(binary, "Mul", scales=(0.25, 0.125, 0.5)),
    "mul_tiny": partial(binary, "Mul", scales=(1e-3, 1e-3, 0.5)),
    "mul_huge": partial(binary, "Mul", scales=(1e2, 1e2, 0.5)),
    "add_same_operand": partial(same_operand, "Add"),
    "mul_same_operand": partial(same_operand, "Mul"),
    "add_constant": partial(constant, "Add", (1, 3, 4, 5)),
    "add_constant_first": partial(constant, "Sub", (3, 4, 5), first=True),
    "add_constant_scalar": partial(constant, "Add", ()),
    "add_constant_columns": partial(constant, "Add", (4, 1)),
    "add_constant_channels": partial(constant, "Add", (3, 1, 1)),
    "mul_constant": partial(constant, "Mul", (1, 3, 4, 5), dtype="uint8"),
    "mul_constant_channels": partial(constant, "Mul", (3, 1, 1)),
    "mul_constant_last": partial(constant, "Mul", (5,)),
    "mul_constant_larger": partial(constant, "Mul", (2, 3, 4, 5)),
    "mul_float_scalar": partial(constant, "Mul", (), quantized=False),
    "mul_float_channels": partial(constant, "Mul", (3, 1, 1), quantized=False),
    "div_float_scalar": partial(constant, "Div", (1,), quantized=False),
    "add_float_channels": partial(constant, "Add", (1, 3, 1, 1), quantized=False),
    "mul_float_many_channels": partial(constant, "Mul", (80,), x=(2, 80), quantized=False),
    "mul_many_channels": partial(constant, "Mul", (80,), x=(2, 80)),
    "residual": layouts,
    "add_channel_constant": partial(channel_constant, "Add"),
    "mul_channel_constant": partial(channel_constant, "Mul"),
    "qlinearadd": partial(qlinear, "QLinearAdd"),
    "qlinearadd_uint8": partial(qlinear, "QLinearAdd", "uint8", (5,)),
    "qlinearmul": partial(qlinear, "QLinearMul"),
    "qlinearmul_uint8": partial(qlinear, "QLinearMul", "uint8", (3, 1, 1)),
}  # fmt: skip

SLOPES = np.array([0.1, -0.3, 1.5, 0.01], np.float32).reshape(4, 1, 1)
TABLES: dict[str, Callable[[], Qdq]] = {
    "relu": partial(with_table, "Relu"),
    "relu_uint8": partial(with_table, "Relu", dtype="uint8"),
    "clip": partial(with_table, "Clip", -0.7, 2.2),
    "relu6": partial(with_table, "Clip", 0.0, 6.0, scale=0.08),
    "sigmoid": partial(with_table, "Sigmoid", y_scale=1 / 256),
    "sigmoid_uint8": partial(with_table, "Sigmoid", y_scale=1 / 256, dtype="uint8"),
    "tanh": partial(with_table, "Tanh", y_scale=1 / 128),
    "leaky_relu": partial(with_table, "LeakyRelu", alpha=0.1),
    "prelu": partial(with_table, "PRelu", SLOPES),
    "prelu_scalar": partial(with_table, "PRelu", np.array([0.2], np.float32)),
    "prelu_all": partial(with_table, "PRelu", np.float32(0.2)),
    "hard_swish": partial(with_table, "HardSwish"),
    "hard_sigmoid": partial(with_table, "HardSigmoid", alpha=0.3, beta=0.4),
    "elu": partial(with_table, "Elu", alpha=0.9),
    "gelu": partial(with_table, "Gelu", opset=20),
    "gelu_tanh": partial(with_table, "Gelu", opset=20, approximate="tanh"),
    "erf": partial(with_table, "Erf", y_scale=1 / 128),
    "selu": partial(with_table, "Selu"),
    "softplus": partial(with_table, "Softplus"),
    "abs": partial(with_table, "Abs"),
    "neg": partial(with_table, "Neg"),
    "exp": partial(with_table, "Exp", scale=0.02),
    "pow": partial(with_table, "Pow", 2.0),
    "mish": partial(with_table, "Mish", opset=18),
    "batch_norm": partial(
        with_table, "BatchNormalization", np.ones(4), np.arange(4), np.full(4, 0.2), np.full(4, 2)
    ),
    "chain": chain,
    "hard_swish_by_parts": hard_swish_by_parts,
    "requantize": partial(requantize, "int8", "int8"),
    "requantize_finer": partial(requantize, "uint8", "uint8", 0.3),
    "requantize_signed": partial(requantize, "uint8", "int8"),
    "requantize_unsigned": partial(requantize, "int8", "uint8", 1.0),
    "requantize_same_scale": partial(requantize, "int8", "int8", 1.0),
    "requantize_inside": requantize_inside,
    "identities": identities,
    "one_element": one_element,
    "zero_dimensions": zero_dimensions,
    "no_zero_point": no_zero_point,
    "qlinearsigmoid": partial(qlinear_table, "QLinearSigmoid"),
    "qlinearsigmoid_uint8": partial(qlinear_table, "QLinearSigmoid", "uint8"),
    "qlinearleakyrelu": partial(qlinear_table, "QLinearLeakyRelu", alpha=0.2),
    "qlinearleakyrelu_uint8": partial(qlinear_table, "QLinearLeakyRelu", "uint8", alpha=0.2),
}

MODELS = models_of(BINARIES) | models_of(TABLES)

ON_TIES = {"batch_norm", "add_dyadic", "add_channel_constant"}
"""Cases with sums on or beside halves, where onnxruntime's integer kernel (it adds the zero point
before it rounds) and its float operators differ; the integer kernel is the oracle."""


@pytest.mark.parametrize("name", MODELS)
def test_reference_equals_onnxruntime(name: str) -> None:
    assert_reference(MODELS[name], plain=name not in ON_TIES and "mul" not in name)


@pytest.mark.parametrize("names", [BINARIES, TABLES], ids=["binaries", "tables"])
def test_c_equals_the_reference(names: dict[str, object], tmp_path: Path) -> None:
    assert_c({name: MODELS[name] for name in names}, tmp_path, "cortex-m4")


@pytest.mark.parametrize("name", ["residual"])
def test_no_transpose_between(name: str) -> None:
    ops = [node.op for node in Model(name, BINARIES[name]().model()).graph.nodes]
    assert ops.count("transpose") == 2


def float_operand() -> Qdq:
    b = Qdq()
    x = b.input((1, 9), "float32")
    return b.end(b.op("Add", b.x((1, 9)), x))


def three_tensors() -> Qdq:
    b = Qdq()
    y = b.op("Add", b.x((1, 9)), b.x((1, 9)))
    return b.end(b.op("Mul", y, b.x((1, 9))))


def exponential_of(op: str) -> Qdq:
    b = Qdq()
    return b.end(b.op("Exp", b.op(op, b.x((1, 9), 0.01), b.x((1, 9), 0.01))))


def scale_a_channel() -> Qdq:
    b = Qdq()
    scales = np.array([0.1, 0.2, 0.3], np.float32)
    x = b.dq(b.input((1, 3, 4, 4)), scales, np.zeros(3, np.int8), axis=1)
    return b.end(b.op("Relu", x))


def unsigned_sixteen_bits() -> Qdq:
    b = Qdq(opset=21)
    return b.end(b.op("Relu", b.x((1, 9), 0.1, 0, "uint16")), 0.1, 0, "uint16")


def negative_scale() -> Qdq:
    b = Qdq()
    return b.end(b.op("Relu", b.x((1, 9), -0.1)))


REFUSED: dict[str, tuple[Callable[[], Qdq], str]] = {
    "float_operand": (float_operand, "TQ202"),
    "three_tensors": (three_tensors, "TQ202"),
    "after_a_sum": (partial(exponential_of, "Add"), "TQ202"),
    "after_a_product": (partial(exponential_of, "Mul"), "TQ202"),
    "scale_a_channel": (scale_a_channel, "TQ204"),
    "unsigned_sixteen_bits": (unsigned_sixteen_bits, "TQ204"),
    "negative_scale": (negative_scale, "TQ204"),
    "unknown": (partial(with_table, "IsInf"), "TQ201"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    build, code = REFUSED[name]
    assert_refused(build().model(), code)
