"""Pools, means and softmax: onnxruntime, the reference and C; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import (
    assert_c,
    assert_differs_on_halves_alone,
    assert_reference,
    assert_refused,
    models_of,
)
from qdq import Qdq

Shape = tuple[int, ...]


def pool(  # the parameters of a pool
    op: str, shape: Shape = (1, 3, 7, 9), *, dtype: str = "int8", zero: int = 11,
    y_scale: float = 0.043, y_zero: int = -7, relu: bool = False, opset: int = 17,
    **attributes: Any,
) -> Qdq:  # fmt: skip
    b = Qdq(dtype, opset)
    y = b.op(op, b.x(shape, 0.031, zero), **attributes)
    return b.end(b.op("Relu", y) if relu else y, y_scale, y_zero)


def max_pool(shape: Shape = (1, 3, 7, 9), *, same: bool = True, **attributes: Any) -> Qdq:
    """MaxPool between equal quantizations, or other ones."""
    b = Qdq()
    y = b.op("MaxPool", b.x(shape, 0.031, 11), **attributes)
    return b.end(y, 0.031 if same else 0.05, 11 if same else -3)


def whole_max(
    op: str = "GlobalMaxPool", shape: Shape = (1, 3, 7, 9), *, dtype: str = "int8", opset: int = 17,
    axes: tuple[int, ...] = (), end: bool = True, **attributes: Any,
) -> Qdq:  # fmt: skip
    """The maximum over the image; ``end`` False leaves out the last Q and DQ."""
    b = Qdq(dtype, opset)
    x = b.x(shape, 0.031, 11)
    if axes and opset >= 18:
        y = b.op(op, x, b.const(axes), **attributes)
    else:
        y = b.op(op, x, **({"axes": list(axes)} if axes else {}), **attributes)
    if end:
        return b.end(y, 0.05, 3)
    b.output(b.op("Flatten", y))
    return b


def integer_max_pool() -> Qdq:
    """MaxPool of integers, without Q and DQ around it."""
    b = Qdq("uint8")
    b.output(b.op("MaxPool", b.input((1, 2, 6, 6)), kernel_shape=[2, 2], strides=[2, 2]))
    return b


def mean(
    axes: tuple[int, ...] | None, *, shape: Shape = (1, 3, 5, 4), keep: int = 1, opset: int = 17,
    dtype: str = "int8", relu: bool = False,
) -> Qdq:  # fmt: skip
    b = Qdq(dtype, opset)
    x = b.x(shape, 0.031, 7)
    if axes is None:
        y = b.op("ReduceMean", x, keepdims=keep)
    elif opset >= 18:
        y = b.op("ReduceMean", x, b.const(axes), keepdims=keep)
    else:
        y = b.op("ReduceMean", x, axes=list(axes), keepdims=keep)
    return b.end(b.op("Relu", y) if relu else y, 0.013, 9)


def after_conv(op: str, **attributes: Any) -> Qdq:
    """A pool behind a convolution: no transpose stays between them."""
    b = Qdq()
    rng = np.random.default_rng(4)
    y = b.op("Conv", b.x((1, 3, 8, 8), 0.04, 3),
             b.weights(rng.integers(-127, 128, (5, 3, 3, 3)), 0.01))  # fmt: skip
    y = b.op(op, b.qdq(b.op("Relu", y), 0.06, -128), **attributes)
    return b.end(y, 0.06 if op == "MaxPool" else 0.03, -128)


def qlinear_pool(op: str, dtype: str = "int8", **attributes: Any) -> Qdq:
    b = Qdq(dtype)
    zero = 128 if dtype == "uint8" else 0
    inputs = [b.input((1, 3, 6, 7)), *b.scale(0.031, zero + 9), *b.scale(0.027, zero - 20)]
    b.output(b.op(op, *inputs, domain="com.microsoft", **attributes))
    return b


def softmax(
    shape: Shape = (1, 12), axis: int = -1, *, dtype: str = "int8", scale: float = 0.1,
    y_scale: float = 1 / 256, y_zero: int | None = None,
) -> Qdq:  # fmt: skip
    b = Qdq(dtype)
    zero = -128 if dtype == "int8" else 0
    y = b.op("Softmax", b.x(shape, scale, 14), axis=axis)
    return b.end(y, y_scale, zero if y_zero is None else y_zero)


def qlinear_softmax(dtype: str = "int8", opset: int = 17) -> Qdq:
    b = Qdq(dtype)
    zero = 128 if dtype == "uint8" else 0
    inputs = [b.input((1, 9)), *b.scale(0.1, zero + 9), *b.scale(1 / 256, zero - 128)]
    b.output(b.op("QLinearSoftmax", *inputs, domain="com.microsoft", axis=-1, opset=opset))
    return b


TWO: dict[str, Any] = {"kernel_shape": [2, 2]}
THREE: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2]}
COUNTED: dict[str, Any] = {"count_include_pad": 1}
CASES: dict[str, Callable[[], Qdq]] = {
    "max": partial(max_pool, **TWO),
    "max_strided": partial(max_pool, **THREE),
    "max_pads": partial(max_pool, **THREE, pads=[1, 0, 1, 2]),
    "max_ceil": partial(max_pool, **THREE, ceil_mode=1, pads=[0, 1, 0, 0]),
    "max_same": partial(max_pool, **THREE, auto_pad="SAME_UPPER"),
    "max_same_lower": partial(max_pool, **TWO, auto_pad="SAME_LOWER"),
    "max_dilated": partial(max_pool, **TWO, dilations=[2, 3]),
    "max_one_dimension": partial(max_pool, (1, 3, 11), kernel_shape=[3], strides=[2]),
    "max_requantized": partial(max_pool, same=False, **TWO),
    "max_integers": integer_max_pool,
    "global_max": whole_max,
    "global_max_uint8": partial(whole_max, dtype="uint8"),
    "global_max_one_dimension": partial(whole_max, shape=(1, 3, 11)),
    "global_max_at_the_end": partial(whole_max, end=False),
    "reduce_max": partial(whole_max, "ReduceMax", axes=(2, 3), keepdims=0),
    "reduce_max_18": partial(whole_max, "ReduceMax", axes=(-1, 2), opset=18),
    "reduce_max_one_dimension": partial(whole_max, "ReduceMax", (1, 3, 11), axes=(2,), keepdims=0),
    "max_after_conv": partial(after_conv, "MaxPool", **TWO, strides=[2, 2]),
    "average": partial(pool, "AveragePool", **TWO),
    "average_uint8": partial(pool, "AveragePool", dtype="uint8", zero=255, y_zero=3, **TWO),
    "average_same_scale": partial(pool, "AveragePool", y_scale=0.031, y_zero=11, **TWO),
    "average_strided": partial(pool, "AveragePool", **THREE),
    "average_pads": partial(pool, "AveragePool", **THREE, pads=[1, 1, 1, 1]),
    "average_pads_counted": partial(pool, "AveragePool", **THREE, pads=[1, 1, 1, 1], **COUNTED),
    "average_uneven_pads": partial(pool, "AveragePool", **THREE, pads=[1, 0, 2, 2]),
    "average_uneven_pads_counted": partial(
        pool, "AveragePool", **THREE, pads=[1, 0, 2, 2], **COUNTED
    ),
    "average_ceil": partial(pool, "AveragePool", (1, 3, 8, 6), **THREE, ceil_mode=1, opset=19),
    "average_ceil_counted": partial(
        pool, "AveragePool", (1, 3, 8, 6), **THREE, ceil_mode=1, pads=[1, 1, 1, 1], **COUNTED,
        opset=19,
    ),
    "average_same": partial(pool, "AveragePool", **THREE, auto_pad="SAME_UPPER"),
    "average_same_lower": partial(pool, "AveragePool", **TWO, auto_pad="SAME_LOWER"),
    "average_one_dimension": partial(
        pool, "AveragePool", (1, 3, 11), kernel_shape=[4], strides=[3], pads=[1, 2]
    ),
    "average_relu": partial(pool, "AveragePool", relu=True, **TWO),
    "average_after_conv": partial(after_conv, "AveragePool", **TWO, strides=[2, 2]),
    "global": partial(pool, "GlobalAveragePool"),
    "global_uint8": partial(pool, "GlobalAveragePool", dtype="uint8", zero=0, y_zero=255),
    "mean_of_image_relu": partial(pool, "GlobalAveragePool", relu=True),
    "mean_of_image_relu_uint8": partial(
        pool, "GlobalAveragePool", (1, 9, 15, 15), relu=True, dtype="uint8", zero=143, y_zero=2
    ),
    "global_relu_without_effect": partial(
        pool, "GlobalAveragePool", (1, 9, 5, 5), relu=True, y_zero=-128, y_scale=0.0155
    ),
    "global_one_dimension": partial(pool, "GlobalAveragePool", (1, 4, 13)),
    "global_one_pixel": partial(pool, "GlobalAveragePool", (1, 4, 1, 1)),
    "global_large": partial(pool, "GlobalAveragePool", (1, 2, 40, 40)),
    "global_after_conv": partial(after_conv, "GlobalAveragePool"),
    "mean_spatial": partial(mean, (2, 3)),
    "mean_spatial_flat": partial(mean, (2, 3), keep=0),
    "mean_last": partial(mean, (-1,)),
    "mean_first": partial(mean, (1,), keep=0),
    "mean_two_apart": partial(mean, (1, 3)),
    "mean_all": partial(mean, None),
    "mean_all_flat": partial(mean, None, keep=0),
    "mean_sequence": partial(mean, (1,), shape=(1, 9, 6)),
    "mean_opset18": partial(mean, (2, 3), opset=18),
    "mean_uint8": partial(mean, (2, 3), dtype="uint8"),
    "mean_relu": partial(mean, (2, 3), relu=True),
    "qlinearaveragepool": partial(qlinear_pool, "QLinearAveragePool", **TWO),
    "qlinearaveragepool_counted": partial(
        qlinear_pool, "QLinearAveragePool", "uint8", **THREE, pads=[1, 1, 1, 1], **COUNTED
    ),
    "qlinearglobalaveragepool": partial(qlinear_pool, "QLinearGlobalAveragePool"),
    "qlinearglobalaveragepool_uint8": partial(qlinear_pool, "QLinearGlobalAveragePool", "uint8"),
    "softmax": softmax,
    "softmax_uint8": partial(softmax, dtype="uint8"),
    "softmax_rows": partial(softmax, (1, 5, 7)),
    "softmax_axis": partial(softmax, (1, 5, 7), 1),
    "softmax_channels": partial(softmax, (1, 5, 3, 4), 1),
    "softmax_first_of_two": partial(softmax, (4, 6), 0),
    "softmax_one": partial(softmax, (1, 1)),
    "softmax_many": partial(softmax, (1, 1000), scale=0.02),
    "softmax_steep": partial(softmax, scale=2.0),
    "softmax_flat": partial(softmax, scale=1e-4),
    "softmax_coarse": partial(softmax, y_scale=1 / 16, y_zero=0),
    "softmax_127th": partial(softmax, y_scale=1 / 127, y_zero=0),
    "softmax_odd_scale": partial(softmax, y_scale=0.0037, y_zero=-100),
    "qlinearsoftmax": qlinear_softmax,
    "qlinearsoftmax_uint8": partial(qlinear_softmax, "uint8"),
}  # fmt: skip

MODELS = models_of(CASES)
IN_FLOAT = {name for name in CASES if name.startswith(("average", "mean", "qlinearaverage"))}
"""onnxruntime averages dequantized float32 elements there: on halves, it goes to either side."""


@pytest.mark.parametrize("name", sorted(CASES.keys() - IN_FLOAT))
def test_reference_equals_onnxruntime(name: str) -> None:
    assert_reference(MODELS[name], 12, plain=False)


@pytest.mark.parametrize("name", sorted(IN_FLOAT))
def test_means_differ_on_halves_alone(name: str) -> None:
    assert_differs_on_halves_alone(MODELS[name], 12)


def test_c_equals_the_reference(tmp_path: Path) -> None:
    assert_c(MODELS, tmp_path, "cortex-m4")


def softmax_in_float() -> Qdq:
    b = Qdq()
    return b.end(b.op("Softmax", b.op("Relu", b.x((1, 9)))))


def max_indices() -> Qdq:
    b = Qdq()
    y, _ = b.ops("MaxPool", 2, b.x((1, 2, 6, 6)), kernel_shape=[2, 2])
    return b.end(y)


def pool_of_five() -> Qdq:
    b = Qdq()
    return b.end(b.op("AveragePool", b.x((1, 2, 4, 4, 4)), kernel_shape=[2, 2, 2]))


REFUSED: dict[str, tuple[Callable[[], Qdq], str]] = {
    "reduce_max_of_channels": (partial(whole_max, "ReduceMax", axes=(1,)), "TQ203"),
    "reduce_max_of_all": (partial(whole_max, "ReduceMax", keepdims=0), "TQ203"),
    "softmax_in_float": (softmax_in_float, "TQ202"),
    "max_indices": (max_indices, "TQ203"),
    "three_dimensions": (pool_of_five, "TQ203"),
    "average_dilated": (
        partial(pool, "AveragePool", **TWO, dilations=[2, 3], opset=19),
        "TQ203",
    ),
    "lp_pool": (partial(pool, "GlobalLpPool"), "TQ201"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    build, code = REFUSED[name]
    assert_refused(build().model(), code)
