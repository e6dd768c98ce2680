"""Layers with int16 tensors: the exact result rounded once, onnxruntime's float32, and C.

onnxruntime has no integer kernels for int16. Where it differs, by one, float32's error must reach
across the rounding boundary, which an independent computation in float64 bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import (
    Model,
    assert_c,
    assert_refused,
    count_different,
    draw_inputs,
    models_of,
)
from qdq import Qdq

from tinyq.ops.curve import evaluate, fit_lines
from tinyq.ops.exactness import exactness_of
from tinyq.ops.linear import accumulator_type
from tinyq.ops.rescale import CODES, fit_rescale
from tinyq.quant import wide_requant
from tinyq.verification.stepwise import compare_steps

SCALES = {"int16": 2.1e-4, "int8": 0.031, "uint8": 0.031}


def started() -> Qdq:
    return Qdq("int16", opset=21)


def gemm(x: str, y: str, depth: int = 37, out: int = 6, *, zero: int = 0, bias: int = 90_000,
         low: int = -127, relu: bool = False) -> Qdq:  # fmt: skip
    b, rng = started(), np.random.default_rng(depth + out)
    scales = (0.0093 * rng.uniform(0.3, 2, out)).astype(np.float32)
    real = b.op(
        "Gemm", b.x((1, depth), SCALES[x], zero, x),
        b.weights(rng.integers(low, 128, (depth, out)), scales, axis=1),
        b.bias(rng.integers(-bias, bias + 1, out), np.float32(SCALES[x]) * scales),
    )  # fmt: skip
    y_scale = SCALES[y] * 0.9 * np.sqrt(depth)
    return b.end(b.op("Relu", real) if relu else real, y_scale, 0 if y == "int16" else 7, y)


def conv(x: str, y: str, channels: int = 4, out: int = 6, *, kernel: int = 3, size: int = 7,
         group: int = 1, clip: bool = False, **attributes: Any) -> Qdq:  # fmt: skip
    b, rng = started(), np.random.default_rng(channels + 10 * out + kernel)
    scales = (0.0093 * rng.uniform(0.3, 2, out)).astype(np.float32)
    shape = (out, channels // group, kernel, kernel)
    real = b.op(
        "Conv", b.x((1, channels, size, size + 1), SCALES[x], 0, x),
        b.weights(rng.integers(-127, 128, shape), scales),
        b.bias(rng.integers(-90_000, 90_000, out), np.float32(SCALES[x]) * scales),
        group=group, **attributes,
    )  # fmt: skip
    real = b.op("Clip", real, b.const(0.0), b.const(6.0)) if clip else real
    return b.end(real, SCALES[y] * 6, 0 if y == "int16" else -11, y)


def transposed(x: str, y: str) -> Qdq:
    b, rng = started(), np.random.default_rng(5)
    weights = b.weights(rng.integers(-127, 128, (4, 3, 3, 3)), 0.009)
    real = b.op("ConvTranspose", b.x((1, 4, 5, 4), SCALES[x], 0, x), weights, strides=[2, 2])
    return b.end(real, SCALES[y] * 6, 0, y)


def unary(op: str, x_scale: float, y_scale: float, x: str = "int16", y: str = "int16",
          y_zero: int = 0, **attributes: Any) -> Qdq:  # fmt: skip
    b = started()
    return b.end(b.op(op, b.x((1, 300), x_scale, 0, x), **attributes), y_scale, y_zero, y)


def pair(op: str, a: str = "int16", c: str = "int16", y: str = "int16", *, relu: bool = False,
         shapes: tuple[tuple[int, ...], ...] = ((1, 6, 5), (1, 6, 5)), factor: float = 1.6,
         y_zero: int = 0) -> Qdq:  # fmt: skip
    b = started()
    real = b.op(op, b.x(shapes[0], SCALES[a], 0, a), b.x(shapes[1], SCALES[c] * 1.3, 0, c))
    return b.end(b.op("Relu", real) if relu else real, SCALES[y] * factor, y_zero, y)


def pair_of_constant(op: str) -> Qdq:
    b = started()
    constant = b.dq(b.const(np.arange(-15_000, 15_000, 1000).astype(np.int16)), 3.1e-4)
    return b.end(b.op(op, constant, b.x((1, 30), 2e-4)), 4.3e-4)


def pool(op: str, x: str = "int16", y: str = "int16", **attributes: Any) -> Qdq:
    b = started()
    real = b.op(op, b.x((1, 3, 8, 9), SCALES[x], 0, x), **attributes)
    return b.end(real, SCALES[y] * 0.83, 0, y)


def moved() -> Qdq:
    """Everything that only moves integers, one after another."""
    b = started()
    y = b.op("MaxPool", b.x((1, 4, 6, 6), 2e-4), kernel_shape=[2, 2], strides=[2, 2],
             pads=[1, 1, 0, 0])  # fmt: skip
    y = b.op("Pad", y, b.const([0, 0, 1, 1, 0, 0, 1, 0]), b.const(0.5))
    y = b.op("Resize", y, "", b.const(np.array([1, 1, 2, 1], np.float32)), mode="nearest")
    y = b.op("Transpose", y, perm=[0, 2, 3, 1])
    y = b.op("Slice", y, b.const([0, 1]), b.const([5, -1]), b.const([1, 2]), b.const([2, 1]))
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.const([1, -1]))
    return b.end(b.op("Concat", y, y, axis=1), 2e-4)


def joined() -> Qdq:
    """Concatenation of int16, int8 and uint8 tensors of other scales."""
    b = started()
    parts = [b.x((1, 3, 6), SCALES[t], z, t) for t, z in (("int16", 0), ("int8", 3), ("uint8", 99))]
    return b.end(b.op("Concat", *parts, axis=1), 3.3e-4)


def largest() -> Qdq:
    b = started()
    b.output(b.op("ArgMax", b.x((1, 4, 3), 2e-4), axis=1, keepdims=0))
    return b


def softmax(x_scale: float, y_scale: float, x: str = "int16", y: str = "int16") -> Qdq:
    b = started()
    real = b.op("Softmax", b.x((3, 10), x_scale, 0, x), axis=-1)
    return b.end(real, y_scale, 0 if y == "int16" else -128, y)


def residual() -> Qdq:
    """int16 and int8 layers in one network: a residual block whose sum is int16."""
    b, rng = started(), np.random.default_rng(3)
    x = b.x((1, 4, 6, 6), 0.02, 3, "int8")
    y = b.op("Conv", x, b.weights(rng.integers(-127, 128, (4, 4, 3, 3)), 0.004), pads=[1] * 4)
    y = b.qdq(b.op("Relu", y), 9e-5)
    y = b.op("Conv", y, b.weights(rng.integers(-127, 128, (4, 4, 1, 1)), 0.009))
    y = b.qdq(b.op("Add", b.qdq(y, 1.4e-4), x), 2.2e-4)
    y = b.qdq(b.op("GlobalAveragePool", b.qdq(b.op("Tanh", y), 1 / 128, 0, "int8")), 3.1e-5)
    flat = b.op("Flatten", y)
    y = b.op("Gemm", flat, b.weights(rng.integers(-127, 128, (4, 5)), 0.01))
    return b.end(b.op("Softmax", b.qdq(y, 4e-5)), 1 / 32768)


TYPES = (("int16", "int16"), ("int16", "int8"), ("int8", "int16"), ("uint8", "int16"))

LINEAR: dict[str, Callable[[], Qdq]] = {
    **{f"gemm_{x}_{y}": partial(gemm, x, y) for x, y in TYPES},
    **{f"conv_{x}_{y}": partial(conv, x, y, pads=[1, 1, 1, 1]) for x, y in TYPES},
    **{f"gemm_{k}x{o}": partial(gemm, "int16", "int16", k, o) for k, o in
       ((1, 1), (3, 2), (4, 3), (5, 4), (8, 5), (9, 7), (33, 9))},
    "gemm_relu": partial(gemm, "int16", "int16", relu=True),
    "gemm_zero_point": partial(gemm, "int16", "int16", zero=77),
    "gemm_large_bias": partial(gemm, "int16", "int16", bias=2**31 - 1),
    "gemm_long_sums": partial(gemm, "int16", "int16", 1100, 5, low=100),
    "conv_stride": partial(conv, "int16", "int16", strides=[2, 2], pads=[0, 1, 1, 0]),
    "conv_dilation": partial(conv, "int16", "int16", dilations=[2, 2], pads=[2, 2, 2, 2]),
    "conv_1x1": partial(conv, "int16", "int16", 5, 7, kernel=1),
    "conv_1x1_stride": partial(conv, "int16", "int16", 8, 4, kernel=1, strides=[2, 2]),
    "conv_odd": partial(conv, "int16", "int16", 3, 5, size=5, pads=[1, 1, 1, 1]),
    "conv_even": partial(conv, "int16", "int8", 8, 8, size=5, pads=[1, 1, 1, 1]),
    "conv_groups": partial(conv, "int16", "int16", 4, 6, group=2),
    "conv_whole": partial(conv, "int16", "int16", 4, 6, kernel=5, size=5),
    "conv_clip": partial(conv, "int16", "int16", clip=True),
    "transposed": partial(transposed, "int16", "int16"),
    "transposed_to_int8": partial(transposed, "int16", "int8"),
    "depthwise": partial(conv, "int16", "int16", 6, 6, group=6, pads=[1, 1, 1, 1]),
    "depthwise_multiplier": partial(conv, "int16", "int8", 3, 6, group=3, strides=[2, 2]),
}  # fmt: skip

OTHERS: dict[str, Callable[[], Qdq]] = {
    "sigmoid": partial(unary, "Sigmoid", 3e-4, 1 / 32768),
    "sigmoid_to_int8": partial(unary, "Sigmoid", 3e-4, 1 / 256, "int16", "int8", -128),
    "sigmoid_of_int8": partial(unary, "Sigmoid", 0.05, 1 / 32768, "int8"),
    "tanh": partial(unary, "Tanh", 2e-4, 1 / 32768),
    "hard_swish": partial(unary, "HardSwish", 2.4e-4, 2.4e-4),
    "hard_sigmoid": partial(unary, "HardSigmoid", 2.4e-4, 1 / 32768),
    "leaky_relu": partial(unary, "LeakyRelu", 2e-4, 2e-4, alpha=0.1),
    "relu": partial(unary, "Relu", 2e-4, 2e-4),
    "relu_rescaled": partial(unary, "Relu", 2e-4, 3.3e-4),
    "relu_halves": partial(unary, "Relu", 2.0**-12, 2.0**-11),
    "to_int8": partial(unary, "Relu", 2e-4, 0.0257, "int16", "int8", -128),
    "to_int8_halves": partial(unary, "Relu", 2.0**-12, 2.0**-5, "int16", "int8", -3),
    "of_int8": partial(unary, "Relu", 0.0257, 2e-4, "int8"),
    "add": partial(pair, "Add"),
    "add_relu": partial(pair, "Add", relu=True),
    "add_broadcast": partial(pair, "Add", shapes=((1, 6, 5), (6, 1))),
    "add_int8": partial(pair, "Add", "int8", "int16"),
    "add_to_int8": partial(pair, "Add", y="int8", y_zero=5),
    "add_of_int8": partial(pair, "Add", "int8", "int8"),
    "add_constant": partial(pair_of_constant, "Add"),
    "sub": partial(pair, "Sub"),
    "sub_constant": partial(pair_of_constant, "Sub"),
    "mul": partial(pair, "Mul", factor=5),
    "mul_int8": partial(pair, "Mul", "int16", "int8", factor=9),
    "max": partial(pair, "Max"),
    "min_relu": partial(pair, "Min", relu=True),
    "average": partial(pool, "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "average_padded": partial(pool, "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1],
                              count_include_pad=1),
    "global": partial(pool, "GlobalAveragePool"),
    "global_to_int8": partial(pool, "GlobalAveragePool", "int16", "int8"),
    "global_of_int8": partial(pool, "GlobalAveragePool", "int8", "int16"),
    "moved": moved,
    "joined": joined,
    "largest": largest,
    "softmax": partial(softmax, 3e-4, 1 / 32768),
    "softmax_steep": partial(softmax, 2e-3, 1 / 32768),
    "softmax_to_int8": partial(softmax, 3e-4, 1 / 256, y="int8"),
    "softmax_of_int8": partial(softmax, 0.1, 1 / 32768, "int8"),
    "residual": residual,
}  # fmt: skip

MODELS = models_of({**LINEAR, **OTHERS})
EXACT = {
    "sigmoid", "sigmoid_to_int8", "sigmoid_of_int8", "tanh", "hard_swish", "hard_sigmoid", "relu",
    "relu_halves", "relu_rescaled", "to_int8", "to_int8_halves", "of_int8", "moved", "joined",
    "largest",
}  # fmt: skip
"""Where nothing may differ from onnxruntime: all inputs were compared when it was compiled."""


def steps_of(model: Model, count: int) -> Any:
    """Every layer on onnxruntime's inputs, over ``count`` draws."""
    exposed = {o.name: o.value for o in model.graph.origins}
    made = {name for node in model.proto.graph.node for name in node.output}
    from tinyq.frontends.oracle import OrtOracle

    oracle = OrtOracle(model.proto, model.graph, expose=tuple(n for n in exposed if n in made))
    for x in draw_inputs(model.graph, count):
        yield from compare_steps(model.graph, x, oracle.run_exposed(x)).values()


@pytest.mark.parametrize("name", MODELS)
def test_every_difference_from_onnxruntime_is_float32s(name: str) -> None:
    steps = list(steps_of(MODELS[name], 6)) if name != "largest" else []
    if name in EXACT:
        inputs = draw_inputs(MODELS[name].graph, 6)
        assert not sum(
            count_different(MODELS[name].reference(x), MODELS[name].oracle(x)) for x in inputs
        )
        assert not any(step.different for step in steps)
        return
    assert steps
    assert sum(step.unexplained for step in steps) == 0
    assert max(step.largest for step in steps) <= 1
    if name not in ("leaky_relu", "max"):  # exact halves, which float32 gives either way
        compared, different = (sum(getattr(s, k) for s in steps) for k in ("compared", "different"))
        assert different <= max(0.01 * compared, 3)


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m0plus"])
def test_c_equals_the_reference(tmp_path: Path, target: str) -> None:
    assert_c(MODELS, tmp_path, target)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_round_the_real_result_once(name: str) -> None:
    """In rational numbers, from the graph's integers and the scales of its tensors alone."""
    graph = MODELS[name].graph
    (node,) = (n for n in graph.nodes if n.op in ("conv2d", "dense"))
    from tinyq.ops import REGISTRY

    rng = np.random.default_rng(1)
    low, high = node.input(0).type.dtype.limits
    x = rng.integers(low, high + 1, node.input(0).type.shape).astype(node.input(0).type.dtype.numpy)
    acc = REGISTRY[node.op].accumulate(node, x)  # type: ignore[attr-defined]
    got = REGISTRY[node.op].reference(node, (x, node.input(1).array))[0]
    oracle, requant = node.attrs.oracle, node.attrs.requant
    for channel in range(acc.shape[-1]):
        for a, y in zip(acc[..., channel].ravel()[:9], got[..., channel].ravel()[:9], strict=True):
            level = (int(a) + int(oracle.offset[channel])) * Fraction(float(oracle.scale[channel]))
            level += Fraction(float(oracle.bias[channel])) + oracle.zero_point
            rounded = {
                int(np.clip((level + end + Fraction(1, 2)).__floor__(), oracle.qmin, oracle.qmax))
                for end in (-Fraction(requant.deviation), Fraction(requant.deviation))
            }
            assert int(y) in rounded
    assert requant.deviation < 2**-8


def test_sums_beyond_32_bits_are_found_from_the_weights() -> None:
    types = {name: accumulator_type(_linear(MODELS[name])) for name in LINEAR}
    assert {name for name, kind in types.items() if kind == "int64_t"} == {"gemm_long_sums"}


def _linear(model: Model) -> Any:
    return next(n for n in model.graph.nodes if n.op in ("conv2d", "dense"))


def test_a_difference_beyond_float32s_error_is_not_explained() -> None:
    """The check must fail on a reference that is off by one anywhere else."""
    model = MODELS["gemm_int16_int16"]
    (x,) = draw_inputs(model.graph, 3)[2:]
    name = model.graph.origins[-1].name
    right = model.oracle(x)[0]
    steps = compare_steps(model.graph, x, {name: right})
    assert [s.unexplained for s in steps.values()] == [0]
    inside = np.flatnonzero((right > -32768) & (right < 32767))
    wrong = right.copy()
    wrong.reshape(-1)[inside] += 1
    (step,) = compare_steps(model.graph, x, {name: wrong}).values()
    assert step.unexplained >= len(inside) - 1 > 0


def test_what_is_known_of_each_kind_of_layer() -> None:
    bases = {
        "gemm_int16_int16": "float32", "add": "float32", "softmax": "float32", "relu": "codes",
        "tanh": "codes", "relu_halves": "codes", "leaky_relu": "codes",
        "sigmoid_of_int8": "construction",
    }  # fmt: skip
    known = {name: exactness_of(MODELS[name].graph.nodes[0]) for name in bases}
    assert {name: e.basis for name, e in known.items()} == bases
    assert known["tanh"].exact
    assert known["relu_halves"].exact
    assert not known["leaky_relu"].exact
    assert known["leaky_relu"].max_abs == 1


def test_lines_give_every_integer_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    steps = np.repeat(rng.integers(-32768, 32768, 200), 400)[: len(CODES)]
    lines = fit_lines(steps, 0)
    assert lines is not None
    assert np.array_equal(evaluate(lines, CODES), steps)
    assert fit_lines(rng.integers(-32768, 32768, len(CODES)), 1) is None


def test_rescaling_is_exact_or_counted() -> None:
    for ratio, zero in ((0.37, 0), (0.5, 0), (0.625, 3), (0.5, -7)):
        wanted = np.rint(CODES * ratio).astype(np.int64) + zero
        exact = fit_rescale(wanted, ratio, zero)
        assert exact is not None
        assert np.array_equal(exact(CODES), wanted)
    noise = np.random.default_rng(0).integers(0, 2, len(CODES))
    either = np.floor(CODES / 2).astype(np.int64) + noise * (CODES & 1)
    counted = fit_rescale(either, 0.5)
    assert counted is not None
    assert counted.mismatches == int(np.sum(counted(CODES) != either)) > 8
    assert fit_rescale(either + 2 * (CODES > 0), 0.5) is None


def test_scales_too_far_apart_are_refused() -> None:
    ends = np.array([-(2**40), -(2**40)]), np.array([2**40, 2**40])
    with pytest.raises(ValueError, match=r"apart|error"):
        wide_requant(np.array([1e12, 1.0]), [Fraction(0)] * 2, *ends, -32768, 32767)


def with_products() -> Qdq:
    b = started()
    return b.end(b.op("MatMul", b.x((1, 3, 4)), b.x((1, 4, 2))), 0.1)


def noisy() -> Qdq:
    b = started()
    return b.end(b.op("Sin", b.x((1, 9), 0.3)), 1 / 32768)


def a_constant_a_channel() -> Qdq:
    b = started()
    return b.end(b.op("Mul", b.x((1, 9)), b.const(np.arange(9, dtype=np.float32))), 0.1)


REFUSED: dict[str, tuple[Callable[[], Qdq], str]] = {
    "products": (with_products, "TQ203"),
    "noisy": (noisy, "TQ203"),
    "a_constant_a_channel": (a_constant_a_channel, "TQ203"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    build, code = REFUSED[name]
    assert_refused(build().model(), code)
