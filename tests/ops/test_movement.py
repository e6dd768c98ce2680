"""Operators that only move data: exact for every input, whatever stands around them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import Model, assert_c, assert_reference, assert_refused, models_of
from qdq import Qdq

Shape = tuple[int, ...]


def move(
    op: str, shape: Shape = (1, 4, 6, 5), *inputs: tuple[int, ...], dtype: str = "int8",
    same: bool = True, opset: int = 17, **attributes: Any,
) -> Qdq:  # fmt: skip
    """One operator between two quantizers, of one grid or of two."""
    b = Qdq(dtype, opset)
    x = b.x(shape, 0.05, 100 if dtype == "uint8" else -28)
    y = b.op(op, x, *(b.const(v) for v in inputs), **attributes)
    zero = 100 if dtype == "uint8" else -28
    return b.end(y, 0.05 if same else 0.08, zero if same else zero + 13)


def integers(op: str, shape: Shape, *inputs: tuple[int, ...], **attributes: Any) -> Qdq:
    """The same on integers, without quantizers."""
    b = Qdq("uint8")
    b.output(b.op(op, b.input(shape), *(b.const(v) for v in inputs), **attributes))
    return b


def after_conv(op: str, *inputs: tuple[int, ...], **attributes: Any) -> Qdq:
    """Between two convolutions: the layout pass has to carry it through channels-last."""
    b = Qdq()
    rng = np.random.default_rng(1)
    y = b.op(
        "Conv", b.x((1, 3, 6, 7), 0.05, 3), b.weights(rng.integers(-99, 99, (4, 3, 3, 3)), 0.01)
    )
    y = b.op(op, b.qdq(y, 0.11, 9), *(b.const(v) for v in inputs), **attributes)
    channels = {"DepthToSpace": 1}.get(op, attributes.get("channels", 4))
    y = b.qdq(y, 0.11, 9)
    if op in ("Reshape", "Flatten"):
        return b.end(b.op("Relu", y), 0.07, -128)
    y = b.op("Conv", y, b.weights(rng.integers(-99, 99, (5, channels, 2, 2)), 0.01))
    return b.end(y, 0.3, -8)


def concat(
    axis: int = 1, *, scales: tuple[float, ...] = (0.05, 0.05), dtype: str = "int8", rank: int = 4
) -> Qdq:
    b = Qdq(dtype)
    zero = 100 if dtype == "uint8" else -28
    shapes = [[2, 3, 4, 5][:rank] for _ in scales]
    for k, shape in enumerate(shapes):
        shape[axis] += k
    values = [
        b.x(tuple(shape), scale, zero + k)
        for k, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]
    return b.end(b.op("Concat", *values, axis=axis), 0.05, zero)


def concat_constant() -> Qdq:
    b = Qdq()
    rng = np.random.default_rng(2)
    other = b.dq(b.const(rng.integers(-128, 128, (1, 2, 3)).astype(np.int8)), 0.05, 3)
    return b.end(b.op("Concat", b.x((1, 4, 3), 0.05, 3), other, axis=1), 0.05, 3)


def concat_of_convs() -> Qdq:
    """Branches of different scales behind convolutions, as in an Inception block."""
    b = Qdq()
    rng = np.random.default_rng(3)
    x = b.x((1, 3, 6, 6), 0.05, 3)
    a = b.op("Conv", x, b.weights(rng.integers(-99, 99, (4, 3, 1, 1)), 0.01))
    c = b.op("Conv", x, b.weights(rng.integers(-99, 99, (2, 3, 3, 3)), 0.01), pads=[1] * 4)
    y = b.op("Concat", b.qdq(a, 0.1, 4), b.qdq(c, 0.23, -9), axis=1)
    y = b.op("Conv", b.qdq(y, 0.2, 1), b.weights(rng.integers(-99, 99, (3, 6, 1, 1)), 0.01))
    return b.end(y, 0.3)


def qlinear_concat(dtype: str = "int8") -> Qdq:
    b = Qdq(dtype)
    zero = 128 if dtype == "uint8" else 0
    inputs = [
        *b.scale(0.05, zero + 4),
        b.input((1, 3, 4)),
        *b.scale(0.04, zero),
        b.input((1, 2, 4)),
    ]
    inputs += b.scale(0.07, zero - 9)
    b.output(b.op("QLinearConcat", *inputs, domain="com.microsoft", axis=1))
    return b


def split(sizes: tuple[int, ...] = (2, 1, 3), axis: int = 1, opset: int = 17) -> Qdq:
    """Several outputs of one split, quantized each."""
    b = Qdq("int8", opset)
    shape = [1, 6, 4, 6]
    parts = b.ops("Split", len(sizes), b.x(tuple(shape), 0.05, 3), b.const(sizes), axis=axis)
    for k, part in enumerate(parts):
        b.output(b.q(part, 0.05 * (k + 1), 3))
    return b


def even_split() -> Qdq:
    b = Qdq("int8", 18)
    for part in b.ops("Split", 2, b.x((1, 6, 4), 0.05, 3), axis=1, num_outputs=2):
        b.output(b.q(part, 0.05, 3))
    return b


def slice_(shape: Shape, *bounds: tuple[int, ...]) -> Qdq:
    return move("Slice", shape, *bounds)


def pad(pads: Shape, value: float | None = None, shape: Shape = (1, 2, 4, 3), zero: int = -28,
        mode: str = "constant") -> Qdq:  # fmt: skip
    b = Qdq()
    inputs = [b.x(shape, 0.05, zero), b.const(pads)]
    if value is not None:
        inputs.append(b.const(value))
    return b.end(b.op("Pad", *inputs, mode=mode), 0.05, zero)


def resize(
    shape: Shape = (1, 3, 4, 5), *, scales: tuple[float, ...] = (1, 1, 2, 2),
    sizes: Shape | None = None, **attributes: Any,
) -> Qdq:  # fmt: skip
    b = Qdq()
    x = b.x(shape, 0.05, 3)
    if sizes is None:
        inputs = [x, "", b.const(np.asarray(scales, np.float32))]
    else:
        inputs = [x, "", "", b.const(sizes)]
    return b.end(b.op("Resize", *inputs, mode="nearest", **attributes), 0.05, 3)


FLOOR: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
CASES: dict[str, Callable[[], Qdq]] = {
    "reshape": partial(move, "Reshape", (1, 4, 6, 5), (1, 24, 5)),
    "reshape_zero": partial(move, "Reshape", (2, 4, 6, 5), (0, -1, 10)),
    "reshape_requantized": partial(move, "Reshape", (1, 4, 6, 5), (120,), same=False),
    "reshape_uint8": partial(move, "Reshape", (1, 4, 6, 5), (4, 30), dtype="uint8"),
    "reshape_after_conv": partial(after_conv, "Reshape", (1, -1)),
    "flatten": partial(move, "Flatten", axis=2),
    "flatten_after_conv": partial(after_conv, "Flatten"),
    "squeeze": partial(move, "Squeeze", (1, 4, 1, 5), (0, 2)),
    "squeeze_all": partial(move, "Squeeze", (1, 4, 1, 5)),
    "unsqueeze": partial(move, "Unsqueeze", (4, 5), (0, 3)),
    "transpose": partial(move, "Transpose", perm=[0, 2, 3, 1]),
    "transpose_default": partial(move, "Transpose", (2, 3, 4)),
    "transpose_five": partial(move, "Transpose", (2, 3, 4, 2, 3), perm=[3, 1, 4, 0, 2]),
    "transpose_uint8": partial(move, "Transpose", perm=[3, 1, 0, 2], dtype="uint8"),
    "transpose_after_conv": partial(after_conv, "Transpose", perm=[0, 1, 3, 2]),
    "depth_to_space": partial(move, "DepthToSpace", (1, 12, 3, 2), blocksize=2),
    "depth_to_space_columns": partial(move, "DepthToSpace", (1, 18, 2, 3), blocksize=3, mode="CRD"),
    "depth_to_space_uint8": partial(
        move, "DepthToSpace", (1, 8, 2, 2), blocksize=2, dtype="uint8", same=False
    ),
    "depth_to_space_after_conv": partial(after_conv, "DepthToSpace", blocksize=2),
    "space_to_depth": partial(move, "SpaceToDepth", (1, 3, 4, 6), blocksize=2),
    "space_to_depth_integers": partial(integers, "SpaceToDepth", (1, 2, 6, 3), blocksize=3),
    "transpose_integers": partial(integers, "Transpose", (2, 3, 4), perm=[2, 0, 1]),
    "slice": partial(slice_, (1, 4, 6, 5), (1, 2), (3, 6), (1, 2), (1, 2)),
    "slice_negative": partial(slice_, (1, 4, 6, 5), (-1, -2), (-100, -6), (2, 3), (-1, -2)),
    "slice_beyond": partial(slice_, (1, 4, 6, 5), (1,), (1000,), (-1,)),
    "slice_no_axes": partial(slice_, (4, 6), (1, 2), (3, -1)),
    "slice_after_conv": partial(after_conv, "Slice", (1, 1), (4, 3), (2, 3)),
    "slice_channels_after_conv": partial(after_conv, "Slice", (3,), (-5,), (1,), (-1,)),
    "split": split,
    "split_last": partial(split, (1, 5), 3),
    "split_negative_axis": partial(split, (4, 2), -1),
    "split_even": even_split,
    "concat": concat,
    "concat_last": partial(concat, 3),
    "concat_first": partial(concat, 0),
    "concat_negative": partial(concat, -2),
    "concat_scales": partial(concat, scales=(0.05, 0.11, 0.004)),
    "concat_uint8": partial(concat, scales=(0.02, 0.05), dtype="uint8"),
    "concat_constant": concat_constant,
    "concat_of_convs": concat_of_convs,
    "qlinearconcat": qlinear_concat,
    "qlinearconcat_uint8": partial(qlinear_concat, "uint8"),
    "pad": partial(pad, (0, 0, 1, 2, 0, 0, 0, 1)),
    "pad_value": partial(pad, (0, 1, 1, 0, 0, 0, 2, 1), 0.7),
    "pad_value_beyond": partial(pad, (0, 0, 1, 1, 0, 0, 1, 1), -1e3),
    "pad_zero_high": partial(pad, (0, 0, 1, 1, 0, 0, 1, 1), zero=127),
    "pad_after_conv": partial(after_conv, "Pad", (0, 0, 1, 1, 0, 0, 0, 2)),
    "resize": partial(resize, **FLOOR),
    "resize_half_pixel": resize,
    "resize_down": partial(resize, scales=(1, 1, 0.5, 0.6), **FLOOR),
    "resize_odd": partial(resize, scales=(1, 1, 1.7, 2.3), **FLOOR),
    "resize_odd_half_pixel": partial(resize, scales=(1, 1, 1.7, 2.3)),
    "resize_ceil": partial(resize, scales=(1, 1, 1.5, 2), nearest_mode="ceil"),
    "resize_round_up": partial(resize, scales=(1, 1, 1.5, 2), nearest_mode="round_prefer_ceil"),
    "resize_sizes": partial(resize, sizes=(1, 3, 7, 5), **FLOOR),
    "resize_align": partial(
        resize, sizes=(1, 3, 7, 9), coordinate_transformation_mode="align_corners"
    ),
    "resize_pytorch": partial(
        resize, sizes=(1, 3, 8, 10), coordinate_transformation_mode="pytorch_half_pixel"
    ),
}  # fmt: skip

MODELS = models_of(CASES)


@pytest.mark.parametrize("name", MODELS)
def test_reference_equals_onnxruntime(name: str) -> None:
    assert_reference(MODELS[name], plain="conv" not in name)


def test_c_equals_the_reference(tmp_path: Path) -> None:
    assert_c(MODELS, tmp_path, "cortex-m4")


@pytest.mark.parametrize("name", ["slice_after_conv", "pad_after_conv", "concat_of_convs"])
def test_transposes_are_removed(name: str) -> None:
    ops = [node.op for node in Model(name, CASES[name]().model()).graph.nodes]
    assert ops.count("transpose") <= 2, ops


def computed_bounds() -> Qdq:
    b = Qdq()
    ends = b.input((1,), "int64")
    x = b.x((1, 9), 0.05, 3)
    return b.end(b.op("Slice", x, b.const((0,)), ends), 0.05, 3)


def joined_in_float() -> Qdq:
    """A Concat whose reals go on into a computation."""
    b = Qdq()
    x = b.op("Concat", b.x((1, 3)), b.x((1, 3)), axis=1)
    return b.end(b.op("Sigmoid", x))


REFUSED: dict[str, tuple[Callable[[], Qdq], str]] = {
    "reflect": (partial(pad, (0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), "TQ203"),
    "crop": (partial(pad, (0, 0, -1, 1, 0, 0, 1, 1)), "TQ203"),
    "computed_bounds": (computed_bounds, "TQ106"),
    "joined_in_float": (joined_in_float, "TQ202"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    build, code = REFUSED[name]
    assert_refused(build().model(), code)


def test_linear_resize_is_refused() -> None:
    b = Qdq()
    inputs = [b.x((1, 3, 4, 5), 0.05, 3), "", b.const(np.array([1, 1, 2, 2], np.float32))]
    assert_refused(b.end(b.op("Resize", *inputs, mode="linear"), 0.05, 3).model(), "TQ203")
