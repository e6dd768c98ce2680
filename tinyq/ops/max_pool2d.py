"""Maximum over windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tinyq.errors import error
from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, RowWindow, Wide, c_type
from tinyq.ops.layout import from_nhwc, reshape, to_nhwc
from tinyq.ops.lowering import Emitter
from tinyq.ops.params import MaxPool2dParams
from tinyq.ops.windows import Window, onnx_window, overlap_distance
from tinyq.target import Core


@dataclass(frozen=True)
class MaxPool2dAttrs:
    """The window; padding never wins."""

    window: Window


class MaxPool2d(Operator):
    """The operator ``max_pool2d`` over [1, H, W, C]."""

    name: ClassVar[str] = "max_pool2d"
    summary: ClassVar[str] = "Maximum over windows, 1-D and 2-D, with stride, dilation and padding"
    onnx: ClassVar[tuple[str, ...]] = ("MaxPool", "GlobalMaxPool", "ReduceMax")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The pooled shape."""
        x, w = node.input(0).type, window_of(node)
        size = [
            (
                x.shape[k + 1] + w.pads[k] + w.pads[k + 2]
                - w.dilation_hw[k] * (w.kernel_hw[k] - 1) - 1
            ) // w.stride_hw[k] + 1
            for k in (0, 1)
        ]  # fmt: skip
        return (x.with_shape((x.shape[0], *size, x.shape[3])),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Pad with the type's minimum, take maxima."""
        x, w = inputs[0], window_of(node)
        low = np.iinfo(str(x.dtype)).min
        widths = ((0, 0), (w.pads[0], w.pads[2]), (w.pads[1], w.pads[3]), (0, 0))
        padded = np.pad(x, widths, constant_values=low)
        out_h, out_w = node.output.type.shape[1:3]
        taps = [
            padded[
                :,
                ky * w.dilation_hw[0] :: w.stride_hw[0],
                kx * w.dilation_hw[1] :: w.stride_hw[1],
            ][:, :out_h, :out_w]
            for ky in range(w.kernel_hw[0])
            for kx in range(w.kernel_hw[1])
        ]
        return (np.max(np.stack(taps), axis=0),)

    def row_window(self, node: Node) -> RowWindow | None:
        """The window's."""
        w = window_of(node)
        return RowWindow(w.dilation_hw[0] * (w.kernel_hw[0] - 1) + 1, w.stride_hw[0], w.pads[0])

    def attrs_of_rows(self, node: Node, top: int, bottom: int) -> MaxPool2dAttrs:
        """Padded by so much above and below."""
        w = window_of(node)
        return MaxPool2dAttrs(replace(w, pads=(top, w.pads[1], bottom, w.pads[3])))


def window_of(node: Node) -> Window:
    """The node's window."""
    if not isinstance(node.attrs, MaxPool2dAttrs):
        raise InvalidGraphError(f"'{node.name}' has no MaxPool2dAttrs")
    return node.attrs.window


def lower_max_pool(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """MaxPool of ONNX over integers: it commutes with quantization."""
    x, shape = inputs[0], node.output.type.shape
    if len(node.outputs) > 1 or len(shape) not in (3, 4):
        raise error(
            "TQ203", f"{len(node.outputs)} outputs, rank {len(shape)}",
            "One output and 1 or 2 spatial dimensions are supported.",
            node=node.name, operator=node.op,
        )  # fmt: skip
    return (_emit(emitter, node.name, x, onnx_window(node, x.type.shape[2:]), shape),)


def lower_whole_max(emitter: Emitter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """GlobalMaxPool, and ReduceMax over every spatial axis: one window."""
    x, rank = inputs[0], len(inputs[0].type.shape)
    spatial = tuple(range(2, rank))
    given = node.optional_input(1)
    axes = node.attrs.get("axes") if given is None else given.array.reshape(-1)
    if node.op == "ReduceMax":
        spatial = tuple(sorted(int(a) % rank for a in (range(rank) if axes is None else axes)))
    if rank not in (3, 4) or spatial != tuple(range(2, rank)):
        raise error(
            "TQ203", f"the maximum over axes {list(spatial)} of rank {rank}",
            "1 or 2 spatial axes, all of them, are supported.",
            node=node.name, operator=node.op,
        )  # fmt: skip
    sizes = x.type.shape[2:] if rank == 4 else (1, *x.type.shape[2:])
    window = Window((sizes[0], sizes[1]), (1, 1), (1, 1), (0, 0, 0, 0))
    pooled = (*x.type.shape[:2], *(1,) * (rank - 2))
    y = _emit(emitter, node.name, x, window, pooled)
    return (reshape(emitter, f"{node.name}:kept", y, node.output.type.shape),)


def _emit(emitter: Emitter, name: str, x: Value, window: Window, shape: tuple[int, ...]) -> Value:
    """``max_pool2d`` of [N, C, ...] to ``shape``."""
    nhwc = to_nhwc(emitter, name, x)
    out = (shape[0], *((1,) if len(shape) == 3 else ()), *shape[2:], shape[1])
    y = emitter.emit("max_pool2d", name, (nhwc,), x.type.with_shape(out), MaxPool2dAttrs(window))
    return from_nhwc(emitter, name, y, shape)


class MaxPool2dS8(Kernel):
    """Portable C for every window."""

    name: ClassVar[str] = "max_pool2d_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        w, x, y = window_of(node), node.input(0).type.shape, node.output.type
        params = MaxPool2dParams(
            x[1], x[2], x[3], y.shape[1], y.shape[2], *w.kernel_hw, *w.stride_hw, *w.dilation_hw,
            w.pads[0], w.pads[1], c_type(node.output),
        )  # fmt: skip
        taps = w.kernel_hw[0] * w.kernel_hw[1]
        return KernelCall(
            self.name, "ops/max_pool2d_s8.c.j2", params,
            instructions=y.elements * (5 * taps + 10), reason="portable",
            overlap=overlap_distance(
                x[1:], y.shape[1:], w.stride_hw, w.pads[:2], (y.dtype.bytes, y.dtype.bytes)
            ),
        )  # fmt: skip


MaxPool2d.kernels = (MaxPool2dS8(), Wide(MaxPool2dS8(), "max_pool2d_s16"))
