"""Convolutions for cores with the DSP extension: gathered columns, or one vector."""

from __future__ import annotations

from tinyq.ir import Node
from tinyq.ops import dsp, linear
from tinyq.ops.base import Kernel, KernelCall, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.dsp import Effort
from tinyq.ops.dsp_params import ColumnsParams
from tinyq.ops.dsp_products import columns_call, vector_call
from tinyq.ops.params import Conv2dParams
from tinyq.target import Core


class Conv2dS8Dsp(Kernel):
    """Three columns by two output channels at a time: any convolution."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.name = f"conv2d_s8_dsp{effort.suffix}"  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses sizes beyond the reach of the instructions."""
        requant, p = linear.requant_of(node), conv2d_params(node)
        refusal = dsp.refuses(core)
        if refusal:
            return refusal
        weights = dsp.weights_of(node).reshape(p.out_c, -1)
        if takes_input_whole(p):
            return vector_call(self.name, weights, requant, self.effort)
        return columns_call(
            self.name, geometry_of(p), weights, requant, self.effort, paired=core.pairs
        )


def takes_input_whole(p: Conv2dParams) -> bool:
    """Whether there is one output pixel, and its patch is the input (see the product kernels)."""
    return (
        (p.out_h, p.out_w, p.groups, p.pad_top, p.pad_left) == (1, 1, 1, 0, 0)
        and (p.kernel_h, p.kernel_w) == (p.in_h, p.in_w)
        and p.dilation_h * p.dilation_w == 1
    )


def geometry_of(p: Conv2dParams) -> ColumnsParams:
    """The same shape by the names of the templates for the DSP extension."""
    return ColumnsParams(
        h=p.in_h, w=p.in_w, c=p.in_c,
        oh=p.out_h, ow=p.out_w, o=p.out_c,
        kh=p.kernel_h, kw=p.kernel_w,
        sh=p.stride_h, sw=p.stride_w,
        dh=p.dilation_h, dw=p.dilation_w,
        pt=p.pad_top, pl=p.pad_left,
        in_zp=p.x_zero_point,
        groups=p.groups,
    )  # fmt: skip
