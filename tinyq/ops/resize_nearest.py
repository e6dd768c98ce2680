"""Nearest-neighbour resizing of height and width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.errors import error
from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal, Wide, c_type
from tinyq.ops.layout import from_nhwc, to_nhwc
from tinyq.ops.lowering import Emitter
from tinyq.ops.params import ResizeNearestParams
from tinyq.ops.resize_bilinear import lower_bilinear
from tinyq.target import Core


@dataclass(frozen=True)
class ResizeNearestAttrs:
    """Output row i is input row ``rows[i]``, column j is column ``columns[j]``."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


class ResizeNearest(Operator):
    """The operator ``resize_nearest`` over [1, H, W, C]."""

    name: ClassVar[str] = "resize_nearest"
    summary: ClassVar[str] = "Nearest-neighbour resize, every coordinate and rounding mode"
    onnx: ClassVar[tuple[str, ...]] = ("Resize", "Upsample")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """Rows and columns replaced."""
        x, a = node.input(0).type, attrs_of(node)
        return (x.with_shape((x.shape[0], len(a.rows), len(a.columns), x.shape[3])),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Pick rows and columns."""
        a = attrs_of(node)
        return (inputs[0][:, list(a.rows)][:, :, list(a.columns)],)


def attrs_of(node: Node) -> ResizeNearestAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, ResizeNearestAttrs):
        raise InvalidGraphError(f"'{node.name}' has no ResizeNearestAttrs")
    return node.attrs


def lower_resize(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """Resize of ONNX in nearest mode over [N, C, H, W]."""
    x, shape = inputs[0], node.output.type.shape
    mode = node.attrs.get("mode", "nearest")
    if mode == "linear":
        return lower_bilinear(emitter, node, inputs)
    if mode != "nearest" or len(shape) != 4 or shape[:2] != x.type.shape[:2]:
        raise error(
            "TQ203", f"mode '{mode}' from {x.type.shape} to {shape}",
            "Nearest mode over height and width of a 4-D tensor is supported.",
            node=node.name, operator=node.op,
        )  # fmt: skip
    rows = _indices(node, x.type.shape[2], shape[2], 2)
    columns = _indices(node, x.type.shape[3], shape[3], 3)
    attrs = ResizeNearestAttrs(rows, columns)
    nhwc = to_nhwc(emitter, node.name, x)
    out = x.type.with_shape((shape[0], shape[2], shape[3], shape[1]))
    y = emitter.emit("resize_nearest", node.name, (nhwc,), out, attrs)
    return (from_nhwc(emitter, node.name, y, shape),)


def _indices(node: Node, size: int, out: int, axis: int) -> tuple[int, ...]:
    """Source indices of one axis, by ONNX's coordinate and rounding rules, in float32."""
    scales = node.optional_input(2)
    scale = np.float32(out / size)
    if scales is not None and scales.array.size > axis:
        scale = np.float32(scales.array.reshape(-1)[axis])
    k = np.arange(out, dtype=np.float32)
    coordinate = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if coordinate == "asymmetric":
        source = k / scale
    elif coordinate == "half_pixel" or (coordinate == "pytorch_half_pixel" and out > 1):
        source = (k + np.float32(0.5)) / scale - np.float32(0.5)
    elif coordinate == "align_corners" and out > 1:
        source = k * np.float32(size - 1) / np.float32(out - 1)
    elif coordinate in ("pytorch_half_pixel", "align_corners"):
        source = np.zeros(out, np.float32)
    else:
        raise error("TQ203", f"coordinate mode '{coordinate}'", node=node.name, operator=node.op)
    return tuple(int(i) for i in np.clip(_round(node, source), 0, size - 1))


def _round(node: Node, source: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    mode = node.attrs.get("nearest_mode", "round_prefer_floor")
    rounded = {
        "round_prefer_floor": np.ceil(source - np.float32(0.5)),
        "round_prefer_ceil": np.floor(source + np.float32(0.5)),
        "floor": np.floor(source),
        "ceil": np.ceil(source),
    }.get(mode)
    if rounded is None:
        raise error("TQ203", f"nearest_mode '{mode}'", node=node.name, operator=node.op)
    return np.asarray(rounded, np.int64)


class ResizeNearestS8(Kernel):
    """Portable C: tables of row and column indices."""

    name: ClassVar[str] = "resize_nearest_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, x, y = attrs_of(node), node.input(0).type.shape, node.output.type
        params = ResizeNearestParams(x[1], x[2], x[3], y.shape[1], y.shape[2], c_type(node.output))
        constants = tuple(
            PackedConstant(suffix, np.asarray(index, np.uint16), "uint16_t")
            for suffix, index in (("rows", a.rows), ("columns", a.columns))
        )
        return KernelCall(
            self.name, "ops/resize_nearest_s8.c.j2", params, constants,
            instructions=2 * y.elements, reason="portable",
        )  # fmt: skip


ResizeNearest.kernels = (ResizeNearestS8(), Wide(ResizeNearestS8(), "resize_nearest_s16"))
