"""Convolutions and dense layers for cores without SIMD: two columns by two channels; planes."""

from __future__ import annotations

from typing import ClassVar

from tinyq.ir import Node
from tinyq.ops import linear
from tinyq.ops.base import InnerFunction, Kernel, KernelCall, Refusal
from tinyq.ops.conv2d import conv2d_params, weights_constant
from tinyq.ops.conv2d_dsp import geometry_of
from tinyq.ops.dense import dense_params
from tinyq.ops.dsp_products import overlap_of
from tinyq.ops.params import Conv2dParams, DenseParams
from tinyq.ops.scalar_params import ColumnsParams, PlanesParams, ProductParams
from tinyq.target import Core

_COLUMNS = 2
_LARGEST_PLANE = 16_384
"""Bytes of scratch that a depthwise kernel may ask for."""


class Conv2dS8Columns(Kernel):
    """Two columns of int8 by two output channels: any convolution, on every core."""

    name: ClassVar[str] = "conv2d_s8_columns"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible, but pointless where a group has one channel."""
        p = conv2d_params(node)
        if p.in_c == p.groups and p.groups > 1:
            return "depthwise"
        return columns_call(self.name, node, p, core)


class DenseS8Rows(Kernel):
    """Rows of a dense layer as the pixels of a 1x1 convolution, two at a time."""

    name: ClassVar[str] = "dense_s8_rows"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses a single row."""
        d = dense_params(node)
        if d.rows == 1:
            return "there is one row"
        return columns_call(self.name, node, rows_as_pixels(d), core)


class DepthwiseS8Planes(Kernel):
    """One channel at a time from a padded plane, on every core."""

    name: ClassVar[str] = "depthwise_s8_planes"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses what is no depthwise convolution of int8 weights, and very large planes."""
        p = conv2d_params(node)
        if p.weight_type != "int8_t":
            return "weights of 16 bits"
        plane = plane_of(p)
        if isinstance(plane, str):
            return plane
        rows, width = plane
        element = "int16_t" if core.long_multiply else "int32_t"
        taps = p.kernel_h * p.kernel_w
        scratch = 4 * taps + rows * width * (2 if element == "int16_t" else 4)
        if scratch > _LARGEST_PLANE:
            return f"its plane takes more than {_LARGEST_PLANE} bytes"
        outputs = p.out_h * p.out_w
        # Measured on cortex-m3 and cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        tap, output = (3, 14) if core.long_multiply else (4, 45)
        each = outputs * (tap * taps + output) + 6 * p.in_h * p.in_w + 8 * taps
        inside = p.out_c == p.in_c and outputs <= p.in_h * p.in_w
        return KernelCall(
            self.name,
            "ops/depthwise_s8.c.j2",
            PlanesParams(p, element),
            (weights_constant(node), *linear.requant_constants(linear.linear_requant_of(node))),
            scratch_bytes=scratch,
            instructions=p.out_c * each + 3 * rows * width,
            code_bytes=260 + 8 * min(taps, 16),
            in_place=(0,) if inside else (),
            phase=p.in_c if p.out_c == p.in_c else 0,
            includes=("tinyq_dsp.h",),
            reason="one channel at a time",
        )


def rows_as_pixels(d: DenseParams) -> Conv2dParams:
    """A dense layer as a 1x1 convolution whose pixels are the rows."""
    one = (1, 1)
    return Conv2dParams(
        1, d.rows, d.in_features, 1, d.rows, d.out_features, *one, *one, *one, 0, 0, 1, 0,
        d.weight_type, d.requant,
    )  # fmt: skip


def plane_of(p: Conv2dParams) -> tuple[int, int] | Refusal:
    """Rows and columns of the padded plane that a depthwise convolution reads."""
    if p.groups != p.in_c:
        return "not depthwise"
    rows = (p.out_h - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1
    width = (p.out_w - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1
    if rows <= p.pad_top or width <= p.pad_left:
        return "no output reads the input"
    return rows, width


def columns_call(name: str, node: Node, p: Conv2dParams, core: Core) -> KernelCall:
    """A call of columns_s8.c.j2 for a convolution, or for a dense layer described as one."""
    volume = p.kernel_h * p.kernel_w * (p.in_c // p.groups)
    product = ProductParams(volume, p.out_c // p.groups, p.weight_type, p.groups > 1, p.requant)
    pixels = p.out_h * p.out_w
    distance = overlap_of(geometry_of(p), _COLUMNS)
    # Measured on cortex-m3 and cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
    tap, output = (2.4, 14) if core.long_multiply else (3.7, 45)
    gather = 40 + 12 * p.kernel_h + volume * (0.6 if p.in_c % 4 == 0 else 5)
    work = pixels * (p.out_c * (tap * volume + output) + p.groups * gather)
    return KernelCall(
        name,
        "ops/columns_s8.c.j2",
        ColumnsParams(p),
        (weights_constant(node), *linear.requant_constants(linear.linear_requant_of(node))),
        scratch_bytes=_COLUMNS * (-(-volume // 4) * 4),
        instructions=int(work),
        code_bytes=470,
        in_place=(0,) if distance is not None and distance <= 0 else (),
        overlap=distance,
        includes=("tinyq_dsp.h",),
        reason=f"two columns of {volume}",
        cores=(InnerFunction("product", "product_s8", "ops/product_s8.c.j2", product),),
    )
