"""Transposes between the channels-first of ONNX and the channels-last of the kernels."""

from __future__ import annotations

from tinyq.ir import TensorType, Value
from tinyq.ops.lowering import Emitter
from tinyq.ops.transpose import TransposeAttrs


def transpose(emitter: Emitter, name: str, x: Value, perm: tuple[int, ...]) -> Value:
    """``x`` with its axes permuted."""
    shape = tuple(x.type.shape[axis] for axis in perm)
    return emitter.emit("transpose", name, (x,), x.type.with_shape(shape), TransposeAttrs(perm))


def reshape(emitter: Emitter, name: str, x: Value, shape: tuple[int, ...]) -> Value:
    """The same elements in another shape."""
    if x.type.shape == shape:
        return x
    return emitter.emit("reshape", name, (x,), TensorType(shape, x.type.dtype, x.type.quant))


def to_nhwc(emitter: Emitter, name: str, x: Value) -> Value:
    """[N, C, H, W] as [N, H, W, C]; [N, C, W] as [N, 1, W, C]."""
    if len(x.type.shape) == 4:
        return transpose(emitter, f"{name}:nhwc", x, (0, 2, 3, 1))
    last = transpose(emitter, f"{name}:nwc", x, (0, 2, 1))
    n, w, c = last.type.shape
    return reshape(emitter, f"{name}:nhwc", last, (n, 1, w, c))


def from_nhwc(emitter: Emitter, name: str, y: Value, shape: tuple[int, ...]) -> Value:
    """[N, H, W, C] back in ONNX's ``shape``, [N, C, H, W] or [N, C, W]."""
    if len(shape) == 4:
        return transpose(emitter, f"{name}:nchw", y, (0, 3, 1, 2))
    flat = reshape(emitter, f"{name}:nwc", y, (shape[0], shape[2], shape[1]))
    return transpose(emitter, f"{name}:ncw", flat, (0, 2, 1))
