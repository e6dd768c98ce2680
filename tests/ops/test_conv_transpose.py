"""Transposed convolutions: onnxruntime, the reference and C; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import assert_c, assert_differs_on_halves_alone, assert_refused, models_of
from qdq import Qdq

X_SCALE, W_SCALE = 0.031, 0.0072


def transposed(
    shape: tuple[int, ...] = (1, 3, 5, 4), out: int = 4, kernel: tuple[int, ...] = (3, 3),
    *, group: int = 1, dtype: str = "int8", zero: int = 5, y_scale: float = 0.11, y_zero: int = -7,
    per_channel: bool = False, bias: str = "int32", relu: bool = False, **attributes: Any,
) -> Qdq:  # fmt: skip
    """A ConvTranspose of random weights [I, O / group, ...]."""
    b = Qdq(dtype)
    rng = np.random.default_rng(out * 7 + len(kernel))
    w_scale: Any = np.float32(W_SCALE)
    if per_channel:
        w_scale = (w_scale * rng.uniform(0.2, 3, out // group)).astype(np.float32)
    weights = rng.integers(-127, 128, (shape[1], out // group, *kernel))
    inputs = [b.x(shape, X_SCALE, zero), b.weights(weights, w_scale, axis=1)]
    if bias == "int32":
        scale = np.tile(np.float32(X_SCALE) * w_scale, group if per_channel else 1)
        inputs.append(b.bias(rng.integers(-9000, 9000, out), scale if per_channel else scale[0]))
    elif bias == "float":
        inputs.append(b.const(rng.normal(0, 2, out).astype(np.float32)))
    y = b.op("ConvTranspose", *inputs, group=group, **attributes)
    return b.end(b.op("Relu", y) if relu else y, y_scale, y_zero)


TWO = {"kernel": (2, 2), "strides": [2, 2]}
CASES: dict[str, Callable[[], Qdq]] = {
    "stride_one": transposed,
    "stride_one_pads": partial(transposed, pads=[1, 0, 1, 2]),
    "unet": partial(transposed, **TWO, relu=True, y_zero=-128),
    "unet_uint8": partial(transposed, **TWO, dtype="uint8", zero=90, y_zero=120),
    "per_channel": partial(transposed, **TWO, per_channel=True),
    "kernel_three": partial(transposed, strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]),
    "kernel_four": partial(transposed, kernel=(4, 4), strides=[2, 2], pads=[1] * 4, out=1),
    "kernel_below_stride": partial(transposed, kernel=(1, 2), strides=[3, 3]),
    "kernel_five_stride_three": partial(
        transposed, kernel=(5, 5), strides=[3, 2], pads=[3, 1, 0, 2], bias="float"
    ),
    "zero_point_low": partial(transposed, zero=-128, strides=[2, 1], pads=[2, 2, 2, 2]),
    "dilated": partial(transposed, dilations=[2, 3], strides=[2, 2], bias="none"),
    "grouped": partial(transposed, (1, 6, 4, 3), 4, group=2, strides=[2, 2], per_channel=True),
    "depthwise": partial(transposed, (1, 5, 4, 4), 5, group=5, strides=[2, 2], pads=[1] * 4),
    "same_upper": partial(transposed, strides=[2, 2], auto_pad="SAME_UPPER"),
    "same_lower": partial(transposed, kernel=(4, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    "output_shape": partial(transposed, strides=[2, 2], output_shape=[10, 9]),
    "output_shape_upper": partial(
        transposed, strides=[2, 2], output_shape=[10, 8], auto_pad="SAME_UPPER"
    ),
    "one_dimension": partial(transposed, (1, 3, 9), kernel=(4,), strides=[2], pads=[1, 1]),
    "one_dimension_dilated": partial(transposed, (1, 3, 9), kernel=(3,), dilations=[2]),
    "one_pixel": partial(transposed, (1, 3, 1, 1), kernel=(4, 4)),
}

MODELS = models_of(CASES)


@pytest.mark.parametrize("name", MODELS)
def test_reference_equals_onnxruntime_but_on_halves(name: str) -> None:
    """onnxruntime sums in float32: only what lies halfway between two integers may differ."""
    assert_differs_on_halves_alone(MODELS[name], 8)
    assert any("computes it in float32" in note for note in MODELS[name].lowered.notes)


def test_c_equals_the_reference(tmp_path: Path) -> None:
    assert_c(MODELS, tmp_path, "cortex-m4")


def three_dimensions() -> Qdq:
    b = Qdq()
    weights = b.weights(np.ones((2, 2, 3, 3, 3)), 0.1)
    return b.end(b.op("ConvTranspose", b.x((1, 2, 4, 4, 4)), weights))


def scales_along_inputs() -> Qdq:
    b = Qdq()
    weights = b.weights(np.ones((2, 3, 3, 3)), np.array([0.1, 0.2], np.float32), axis=0)
    return b.end(b.op("ConvTranspose", b.x((1, 2, 4, 4)), weights))


def float_weights() -> Qdq:
    b = Qdq()
    weights = b.const(np.ones((2, 2, 3, 3), np.float32))
    return b.end(b.op("ConvTranspose", b.x((1, 2, 4, 4)), weights))


REFUSED = {
    "three_dimensions": (three_dimensions, "TQ203"),
    "scales_along_inputs": (scales_along_inputs, "TQ204"),
    "float_weights": (float_weights, "TQ202"),
    "pads_beyond_the_kernel": (
        partial(transposed, kernel=(2, 2), strides=[1, 1], pads=[2, 2, 0, 0]), "TQ203",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    build, code = REFUSED[name]
    assert_refused(build().model(), code)
