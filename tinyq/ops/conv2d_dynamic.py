"""Convolution of a tensor whose scale and zero point are found at run time, into int32 sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType
from tinyq.ops.accumulate import accumulate_call
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal
from tinyq.ops.conv2d import output_hw, sums_of_products
from tinyq.ops.params import ConvShape
from tinyq.ops.windows import Window
from tinyq.target import Core


@dataclass(frozen=True)
class Conv2dDynamicAttrs:
    """Input int8 [1, H, W, I], its parameters int32 [3], weights OHWI [O, kh, kw, I / groups]."""

    window: Window
    groups: int

    def __str__(self) -> str:
        w = self.window
        return f"stride={w.stride_hw} dilation={w.dilation_hw} pads={w.pads} groups={self.groups}"


class Conv2dDynamic(Operator):
    """The operator ``conv2d_dynamic``: sums of (x - zero point) * w; padding adds nothing."""

    name: ClassVar[str] = "conv2d_dynamic"
    summary: ClassVar[str] = "Convolution of a tensor quantized at run time"
    onnx: ClassVar[tuple[str, ...]] = ("ConvInteger",)

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """[1, OH, OW, O] int32."""
        x, w, a = node.input(0).type.shape, node.input(2).type.shape, attrs_of(node)
        if len(x) != 4 or len(w) != 4 or w[3] * a.groups != x[3] or w[0] % a.groups:
            raise InvalidGraphError(f"conv2d_dynamic '{node.name}': input {x} and weights {w}")
        window = a.window
        size = output_hw(x[1:3], w[1:3], window.stride_hw, window.dilation_hw, window.pads)
        return (TensorType((x[0], *size, w[0]), DType.INT32),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Sums of products of the centred input."""
        a, (x, scale, weights) = attrs_of(node), inputs
        centred = x.astype(np.int64) - int(scale[2])
        size = node.output.type.shape[1:3]
        return (sums_of_products(centred, weights, a.window, a.groups, size, 0).astype(np.int32),)

    def macs(self, node: Node) -> int:
        """One a tap and output element."""
        _, height, width, depth = node.input(2).type.shape
        return node.output.type.elements * height * width * depth


def attrs_of(node: Node) -> Conv2dDynamicAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, Conv2dDynamicAttrs):
        raise InvalidGraphError(f"'{node.name}' has no Conv2dDynamicAttrs")
    return node.attrs


class Conv2dDynamicColumns(Kernel):
    """Columns of int16 by two output channels."""

    name: ClassVar[str] = "conv2d_dynamic"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, x, y = attrs_of(node), node.input(0).type.shape, node.output.type.shape
        w = a.window
        shape = ConvShape(
            *(x[1], x[2], x[3]), *(y[1], y[2], y[3]),
            *w.kernel_hw, *w.stride_hw, *w.dilation_hw, *w.pads[:2], a.groups,
        )  # fmt: skip
        return accumulate_call(self.name, node, shape, core)


Conv2dDynamic.kernels = (Conv2dDynamicColumns(),)
