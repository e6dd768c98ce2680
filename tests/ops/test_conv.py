"""Convolutions: onnxruntime, the reference and both kinds of C kernel; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import assert_c, assert_reference, assert_refused, models_of
from qdq import Qdq

X_SCALE, W_SCALE = 0.031, 0.0072
SAME: dict[str, Any] = {"auto_pad": "SAME_UPPER"}


def conv(
    shape: tuple[int, ...] = (1, 3, 7, 6), out: int = 5, kernel: tuple[int, ...] = (3, 3),
    *, group: int = 1, dtype: str = "int8", zero: int = 5, y_scale: float = 0.11, y_zero: int = -7,
    per_channel: bool = False, bias: str = "int32", relu: str = "", symbolic: bool = False,
    ones: bool = False, **attributes: Any,
) -> Qdq:  # fmt: skip
    """A Conv of random weights. ``bias``: int32, float or none; ``relu``: Relu, Relu6 or empty."""
    b = Qdq(dtype)
    rng = np.random.default_rng(out * 7 + len(kernel))
    scales = np.float32(W_SCALE) * np.ones(out, np.float32)
    if per_channel:
        scales = (scales * rng.uniform(0.2, 3, out)).astype(np.float32)
    w_scale = scales if per_channel or ones else np.float32(W_SCALE)
    x = b.x(("N", *shape[1:]) if symbolic else shape, X_SCALE, zero)
    inputs = [x, b.weights(rng.integers(-127, 128, (out, shape[1] // group, *kernel)), w_scale)]
    if bias == "int32":
        inputs.append(b.bias(rng.integers(-9000, 9000, out), np.float32(X_SCALE) * w_scale))
    elif bias == "float":
        inputs.append(b.const(rng.normal(0, 2, out).astype(np.float32)))
    y = b.op("Conv", *inputs, group=group, **attributes)
    if relu == "Relu":
        y = b.op("Relu", y)
    elif relu == "Relu6":
        y = b.op("Clip", y, b.const(0.0), b.const(6.0))
    return b.end(y, y_scale, y_zero)


def batch_norm() -> Qdq:
    """A BatchNormalization in float behind the Conv, one gain negative, one zero."""
    b = Qdq()
    rng = np.random.default_rng(3)
    w = b.weights(rng.integers(-127, 128, (4, 3, 3, 3)), W_SCALE)
    y = b.op("Conv", b.x((1, 3, 5, 5), X_SCALE, -9), w, pads=[1, 1, 1, 1])
    gains = np.array([1.5, -0.7, 0.0, 0.3], np.float32)
    rest = [rng.normal(size=4).astype(np.float32) for _ in range(2)]
    variance = rng.uniform(0.5, 2, 4).astype(np.float32)
    parameters = [b.const(p) for p in (gains, *rest, variance)]
    return b.end(b.op("BatchNormalization", y, *parameters), 0.07, 4)


def clip_between(relu: str = "") -> Qdq:
    """QCDQ: weights and activations pass an integer Clip between Q and DQ."""
    b = Qdq()
    rng = np.random.default_rng(4)
    bounds = [b.const(np.asarray(v, np.int8)) for v in (-8, 7)]
    stored = b.op("Clip", b.const(rng.integers(-8, 8, (4, 3, 3, 3)).astype(np.int8)), *bounds)
    y = b.op("Conv", b.x((1, 3, 6, 6), X_SCALE, 3), b.dq(stored, 0.1))
    y = b.op("Relu", y) if relu else y
    wide = b.q(y, 0.4, -8)
    b.output(b.op("Clip", wide, *bounds))
    return b


def float_edges(dtype: str) -> Qdq:
    """Float input and output, Q and DQ at the edges."""
    b = Qdq(dtype)
    rng = np.random.default_rng(5)
    x = b.qdq(b.input((1, 2, 6, 6), "float32"), 0.05, 100 if dtype == "uint8" else -28)
    y = b.op("Conv", x, b.weights(rng.integers(-127, 128, (3, 2, 3, 3)), W_SCALE))
    b.output(b.qdq(y, 0.02, 9))
    return b


def qlinear(dtype: str = "int8", domain: str = "", per_channel: bool = False) -> Qdq:
    """QLinearConv."""
    b = Qdq(dtype)
    rng = np.random.default_rng(6)
    scales = rng.uniform(0.002, 0.02, 4 if per_channel else 1).astype(np.float32)
    w_scale = scales if per_channel else scales[0]
    weights = b.const(rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8))
    zero = 128 if dtype == "uint8" else 0
    inputs = [
        b.input((1, 3, 6, 6)), *b.scale(0.04, zero + 3), weights,
        *b.scale(w_scale, np.zeros(np.shape(w_scale), np.int8), "int8"), *b.scale(0.1, zero - 8),
        b.const(rng.integers(-3000, 3000, 4).astype(np.int32)),
    ]  # fmt: skip
    b.output(b.op("QLinearConv", *inputs, domain=domain, pads=[1, 0, 1, 2], strides=[2, 1]))
    return b


def unsigned_weights() -> Qdq:
    """uint8 weights around 128 are int8 weights."""
    b = Qdq("uint8")
    rng = np.random.default_rng(8)
    stored = b.const(rng.integers(0, 256, (4, 3, 3, 3)).astype(np.uint8))
    weights = b.dq(stored, 0.01, 131, "uint8")
    return b.end(b.op("Conv", b.x((1, 3, 6, 6), X_SCALE, 110), weights), 0.15, 128)


CASES: dict[str, Callable[[], Qdq]] = {
    "plain": conv,
    "uint8": partial(conv, dtype="uint8", zero=77, y_zero=130),
    "zero_low": partial(conv, zero=-128, y_zero=127),
    "zero_high": partial(conv, zero=127, y_zero=-128, pads=[2, 1, 0, 3]),
    "uint8_zero_ends": partial(conv, dtype="uint8", zero=0, y_zero=255, pads=[1, 1, 1, 1]),
    "per_channel": partial(conv, per_channel=True, out=9),
    "one_scale_a_channel_alike": partial(conv, ones=True),
    "no_bias": partial(conv, bias="none"),
    "float_bias": partial(conv, bias="float", per_channel=True),
    "relu": partial(conv, relu="Relu"),
    "relu_fused": partial(conv, relu="Relu", y_zero=-128),
    "relu_uint8": partial(conv, relu="Relu", dtype="uint8", zero=3, y_zero=0),
    "relu6": partial(conv, relu="Relu6", y_scale=0.04, y_zero=-128),
    "strides": partial(conv, strides=[2, 3]),
    "strides_pads": partial(conv, strides=[2, 2], pads=[1, 0, 2, 1]),
    "dilations": partial(conv, shape=(1, 2, 9, 9), dilations=[2, 3], pads=[2, 3, 2, 3]),
    "same_upper": partial(conv, auto_pad="SAME_UPPER", strides=[2, 2]),
    "same_lower": partial(conv, auto_pad="SAME_LOWER", strides=[2, 2]),
    "same_lower_even": partial(conv, kernel=(2, 4), auto_pad="SAME_LOWER"),
    "valid": partial(conv, auto_pad="VALID"),
    "pointwise": partial(conv, kernel=(1, 1), shape=(1, 9, 5, 3), out=7),
    "pointwise_strided": partial(conv, kernel=(1, 1), shape=(1, 4, 7, 7), strides=[2, 2]),
    "tall": partial(conv, kernel=(7, 1), shape=(1, 2, 9, 4)),
    "whole_image": partial(conv, kernel=(7, 6)),
    "kernel_larger_than_image": partial(conv, kernel=(9, 9), pads=[4, 4, 4, 4]),
    "one_pixel": partial(conv, shape=(1, 3, 1, 1), kernel=(1, 1)),
    "one_channel": partial(conv, shape=(1, 1, 8, 8), out=1),
    "grouped": partial(conv, shape=(1, 6, 6, 5), out=9, group=3),
    "grouped_pointwise": partial(conv, shape=(1, 8, 3, 3), out=6, group=2, kernel=(1, 1)),
    "depthwise": partial(conv, shape=(1, 5, 7, 7), out=5, group=5, pads=[1, 1, 1, 1]),
    "depthwise_strided": partial(
        conv, shape=(1, 8, 7, 6), out=8, group=8, strides=[2, 2], **SAME, per_channel=True
    ),
    "depthwise_multiplier": partial(conv, shape=(1, 3, 7, 7), out=9, group=3, pads=[1, 1, 1, 1]),
    "depthwise_dilated": partial(conv, shape=(1, 4, 9, 9), out=4, group=4, dilations=[2, 2]),
    "depthwise_1d": partial(conv, shape=(1, 4, 17), out=4, group=4, kernel=(5,), pads=[2, 2]),
    "one_dimension": partial(conv, shape=(1, 3, 20), kernel=(5,), pads=[2, 1], strides=[2]),
    "one_dimension_dilated": partial(conv, shape=(1, 3, 20), kernel=(3,), dilations=[4]),
    "one_dimension_causal": partial(conv, shape=(1, 3, 12), kernel=(3,), pads=[2, 0]),
    "symbolic_batch": partial(conv, symbolic=True),
    "coarse_output": partial(conv, y_scale=9.0),
    "fine_output": partial(conv, y_scale=1e-4),
    "dyadic_scale": partial(conv, y_scale=X_SCALE * W_SCALE * 2.0**9),
    "batch_norm": batch_norm,
    "clip_between": clip_between,
    "clip_between_relu": partial(clip_between, "Relu"),
    "float_edges": partial(float_edges, "int8"),
    "float_edges_uint8": partial(float_edges, "uint8"),
    "qlinearconv": qlinear,
    "qlinearconv_uint8": partial(qlinear, "uint8", per_channel=True),
    "unsigned_weights": unsigned_weights,
}  # fmt: skip

MODELS = models_of(CASES)
IN_FLOAT = {"batch_norm", "float_bias"}
"""Cases whose exact order of float operations onnxruntime does not fix."""


@pytest.mark.parametrize("name", MODELS)
def test_reference_equals_onnxruntime(name: str) -> None:
    assert_reference(MODELS[name], plain=name not in IN_FLOAT)


@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4"])
def test_c_equals_the_reference(target: str, tmp_path: Path) -> None:
    assert_c(MODELS, tmp_path, target)


@pytest.mark.parametrize(("name", "expected"), [("relu", 1), ("relu_fused", 0), ("plain", 0)])
def test_a_clamp_that_onnxruntime_leaves_in_float_is_noted(name: str, expected: int) -> None:
    found = [note for note in MODELS[name].lowered.notes if "does not fuse" in note]
    assert len(found) == expected


def three_dimensions() -> Qdq:
    b = Qdq()
    y = b.op("Conv", b.x((1, 2, 4, 4, 4)), b.weights(np.ones((2, 2, 3, 3, 3)), 0.1))
    return b.end(y)


def float_weights() -> Qdq:
    b = Qdq()
    return b.end(b.op("Conv", b.x((1, 2, 4, 4)), b.const(np.ones((2, 2, 3, 3), np.float32))))


def float_input() -> Qdq:
    b = Qdq()
    x = b.input((1, 2, 4, 4), "float32")
    return b.end(b.op("Conv", x, b.weights(np.ones((2, 2, 3, 3)), 0.1)))


def scales_along_inputs() -> Qdq:
    b = Qdq()
    weights = b.weights(np.ones((3, 2, 3, 3)), np.array([0.1, 0.2], np.float32), axis=1)
    return b.end(b.op("Conv", b.x((1, 2, 4, 4)), weights))


def computed_weights() -> Qdq:
    b = Qdq()
    return b.end(b.op("Conv", b.x((1, 2, 4, 4)), b.x((2, 2, 3, 3))))


REFUSED = {
    "three_dimensions": (three_dimensions, "TQ203"),
    "float_weights": (float_weights, "TQ202"),
    "float_input": (float_input, "TQ202"),
    "scales_along_inputs": (scales_along_inputs, "TQ204"),
    "computed_weights": (computed_weights, "TQ202"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    build, code = REFUSED[name]
    assert_refused(build().model(), code)
