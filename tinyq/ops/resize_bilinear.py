"""Bilinear resizing of height and width in TensorFlow Lite's fixed-point arithmetic.

onnxruntime interpolates in float32, where a result half-way between two integers (every fourth one
of a doubling) falls to the side that the rounding of its sums decides; no integers follow that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.errors import error
from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal
from tinyq.ops.layout import from_nhwc, to_nhwc
from tinyq.ops.lowering import Emitter
from tinyq.ops.params import ResizeNearestParams
from tinyq.target import Core

_UNIT = 1 << 10
_COORDINATES = ("half_pixel", "align_corners", "asymmetric")

Taps = tuple[tuple[int, int, int], ...]
"""For each output index: lower and upper input index, and the upper one's weight of 1024."""


@dataclass(frozen=True)
class ResizeBilinearAttrs:
    """What each output row and column interpolates."""

    rows: Taps
    columns: Taps


class ResizeBilinear(Operator):
    """The operator ``resize_bilinear`` over [1, H, W, C]."""

    name: ClassVar[str] = "resize_bilinear"
    summary: ClassVar[str] = "Bilinear resize (oracle tflite, int8), every coordinate mode"
    onnx: ClassVar[tuple[str, ...]] = ()

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """Rows and columns replaced."""
        x, a = node.input(0).type, attrs_of(node)
        return (x.with_shape((x.shape[0], len(a.rows), len(a.columns), x.shape[3])),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Four weighted corners, the sum rounded half away from zero."""
        a, x = attrs_of(node), inputs[0].astype(np.int64)
        y0, y1, fy = np.array(a.rows).T
        x0, x1, fx = np.array(a.columns).T
        fy = fy[:, None, None]
        upper = x[:, y0] * (_UNIT - fy) + x[:, y1] * fy
        total = upper[:, :, x0] * (_UNIT - fx)[:, None] + upper[:, :, x1] * fx[:, None]
        half = _UNIT * _UNIT // 2
        rounded = np.sign(total) * ((np.abs(total) + half) // (2 * half))
        return (rounded.astype(np.int8),)


def attrs_of(node: Node) -> ResizeBilinearAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, ResizeBilinearAttrs):
        raise InvalidGraphError(f"'{node.name}' has no ResizeBilinearAttrs")
    return node.attrs


def lower_bilinear(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Resize in mode linear over [N, C, H, W] of int8, oracle ``tflite``."""
    x, shape = inputs[0], node.output.type.shape
    coordinates = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if (
        len(shape) != 4
        or shape[:2] != x.type.shape[:2]
        or coordinates not in _COORDINATES
        or node.output.type.dtype is not DType.INT8
        or emitter.oracle != "tflite"
    ):
        raise error(
            "TQ203", f"mode 'linear' of {node.output.type.dtype.value}, oracle {emitter.oracle}",
            "Bilinear resizing is supported for int8 with --oracle tflite; else use nearest.",
            node=node.name, operator=node.op,
        )  # fmt: skip
    attrs = ResizeBilinearAttrs(
        taps(x.type.shape[2], shape[2], coordinates), taps(x.type.shape[3], shape[3], coordinates)
    )
    nhwc = to_nhwc(emitter, node.name, x)
    out = x.type.with_shape((shape[0], shape[2], shape[3], shape[1]))
    y = emitter.emit("resize_bilinear", node.name, (nhwc,), out, attrs)
    return (from_nhwc(emitter, node.name, y, shape),)


def taps(size: int, out: int, coordinates: str) -> Taps:
    """What each of ``out`` positions reads of ``size``, in units of 2^-10 as TensorFlow Lite."""
    if coordinates == "align_corners" and out > 1:
        scale = (_UNIT * (size - 1) + (out - 1) // 2) // (out - 1)
    else:
        scale = (_UNIT * size + out // 2) // out
    at = np.arange(out, dtype=np.int64) * scale
    if coordinates == "half_pixel":
        at += scale // 2 - _UNIT // 2
    low = np.maximum(_truncated(at), 0)
    high = np.minimum(_truncated(at + _UNIT - 1), size - 1)
    return tuple(zip(low.tolist(), high.tolist(), (at - low * _UNIT).tolist(), strict=True))


def _truncated(value: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    quotient: npt.NDArray[np.int64] = np.sign(value) * (np.abs(value) // _UNIT)
    return quotient


class ResizeBilinearS8(Kernel):
    """Portable C: tables of indices and weights."""

    name: ClassVar[str] = "resize_bilinear_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, x, y = attrs_of(node), node.input(0).type.shape, node.output.type
        params = ResizeNearestParams(x[1], x[2], x[3], y.shape[1], y.shape[2])
        constants = tuple(
            PackedConstant(suffix, np.asarray(rows, np.int16), "int16_t")
            for suffix, rows in (("rows", a.rows), ("columns", a.columns))
        )
        return KernelCall(
            self.name, "ops/resize_bilinear_s8.c.j2", params, constants,
            instructions=20 * y.elements, reason="portable",
        )  # fmt: skip


ResizeBilinear.kernels = (ResizeBilinearS8(),)
