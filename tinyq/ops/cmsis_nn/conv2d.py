"""Convolutions through ``arm_convolve_wrapper_s8`` and ``arm_depthwise_conv_wrapper_s8``."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import DType, Node
from tinyq.ops.base import KernelCall, PackedConstant, Refusal
from tinyq.ops.cmsis_nn.buffers import (
    ConvGeometry,
    convolve_bytes,
    depthwise_bytes,
    takes_wrong_row,
    takes_wrong_window,
)
from tinyq.ops.cmsis_nn.calls import (
    Activation,
    CmsisConvParams,
    CmsisKernel,
    by_isa,
    linear_constants,
    uses,
)
from tinyq.ops.fixed_point import differing_accumulators, fixed_point_linear
from tinyq.quant import FixedPointLinear, Rounding
from tinyq.target import Core

_UINT16 = 2**16 - 1


def geometry_of(node: Node) -> ConvGeometry:
    """The shape of a conv2d node."""
    a, x, w, y = node.attrs, node.input(0).type.shape, node.input(1).type.shape, node.output.type
    return ConvGeometry(*x[1:], *y.shape[1:], *w[1:4], *a.stride_hw, *a.pads[:2], *a.dilation_hw)


def is_depthwise(node: Node) -> bool:
    """Whether every input channel has filters of its own."""
    return bool(
        node.attrs.groups == node.input(0).type.shape[3] and node.input(1).type.shape[3] == 1
    )


def library_parameters(node: Node) -> FixedPointLinear | Refusal:
    """Parameters in the library's form, or why it cannot take this linear node."""
    if node.input(1).type.dtype is not DType.INT8:
        return "CMSIS-NN has no int16 weights"
    return fixed_point_linear(node, Rounding.ONCE)


def activation_of(made: FixedPointLinear, x_zero_point: int) -> Activation:
    """Offsets and clamp of a linear call."""
    return Activation(-x_zero_point, made.zero_point, made.qmin, made.qmax)


class CmsisConv2d(CmsisKernel):
    """Any convolution of int8 weights, grouped ones too."""

    name: ClassVar[str] = "cmsis_convolve_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses depthwise convolutions and what the library cannot represent."""
        g = geometry_of(node)
        if is_depthwise(node) and g.in_c > 1:
            return "depthwise"
        if max(vars(g).values()) > _UINT16:
            return "a size is beyond 16 bits"
        if takes_wrong_row(g, core.isa):
            return "CMSIS-NN's 1xN function for Helium mistakes its right border"
        made = library_parameters(node)
        if isinstance(made, str):
            return made
        differences = differing_accumulators(node, made)
        size = convolve_bytes(g, core.isa)
        macs = g.out_h * g.out_w * g.out_c * g.kernel_h * g.kernel_w * g.filter_c
        outputs = g.out_h * g.out_w * g.out_c
        taps = g.out_h * g.out_w * g.kernel_h * g.kernel_w * (not g.is_pointwise)
        cost = (
            by_isa(core, 6.6, 1.55, 0.2) * macs
            + by_isa(core, 85, 41, 12.5) * outputs
            + (by_isa(core, 10, 4, 1) * g.in_c + by_isa(core, 0, 0, 20)) * taps
        )
        return KernelCall(
            self.name,
            "ops/cmsis_convolve_s8.c.j2",
            CmsisConvParams(g, activation_of(made, node.attrs.x_zero_point), size),
            (PackedConstant("weights", node.input(1).array, "int8_t"), *linear_constants(made)),
            scratch_bytes=size,
            instructions=int(cost),
            code_bytes=3000,
            reason="CMSIS-NN",
            library=uses("arm_convolve_wrapper_s8", made.rounding.value, differences),
        )


class CmsisDepthwise(CmsisKernel):
    """Depthwise convolutions of int8 weights, with any channel multiplier."""

    name: ClassVar[str] = "cmsis_depthwise_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses other convolutions and what the library cannot represent."""
        g = geometry_of(node)
        if not is_depthwise(node):
            return "not depthwise"
        if max(vars(g).values()) > _UINT16:
            return "a size is beyond 16 bits"
        if takes_wrong_window(g, core.isa):
            return "CMSIS-NN's function for this window mistakes its right border"
        made = library_parameters(node)
        if isinstance(made, str):
            return made
        differences = differing_accumulators(node, made)
        size = depthwise_bytes(g, core.isa)
        # From [O, kh, kw, 1] to [kh, kw, O].
        weights = np.ascontiguousarray(node.input(1).array[..., 0].transpose(1, 2, 0))
        outputs, taps = g.out_h * g.out_w * g.out_c, g.kernel_h * g.kernel_w
        cost = outputs * (by_isa(core, 20, 6.6, 1.3) * taps + by_isa(core, 110, 45, 9))
        return KernelCall(
            self.name,
            "ops/cmsis_depthwise_s8.c.j2",
            CmsisConvParams(g, activation_of(made, node.attrs.x_zero_point), size),
            (PackedConstant("weights", weights, "int8_t"), *linear_constants(made)),
            scratch_bytes=size,
            instructions=int(cost),
            code_bytes=3000,
            reason="CMSIS-NN",
            library=uses("arm_depthwise_conv_wrapper_s8", made.rounding.value, differences),
        )
