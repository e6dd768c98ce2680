"""Convolutions and dense layers with int16 tensors for cores with the DSP extension.

Two int16 values are a word as they lie in memory, so nothing is widened but the weights: SMLAD
multiplies two pairs, and SMLALD does where sums need 64 bits.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import Node
from tinyq.ops import dsp, linear
from tinyq.ops.base import Kernel, KernelCall, PackedConstant, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.conv2d_dsp import geometry_of
from tinyq.ops.dense import dense_params
from tinyq.ops.dsp_params import WideColumnsParams
from tinyq.ops.dsp_products import overlap_of
from tinyq.ops.params import Conv2dParams
from tinyq.target import Core

_MOST_STEPS = 4


class Conv2dS16Dsp(Kernel):
    """Two pixels by two channels at a time, patches gathered where they do not lie in one piece."""

    name: ClassVar[str] = "conv2d_s16_dsp"
    widths: ClassVar[frozenset[int]] = frozenset({16})

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses groups and weights of 16 bits."""
        return _call(self.name, node, core, conv2d_params(node))


class DenseS16Dsp(Kernel):
    """A dense layer as a 1x1 convolution over its rows."""

    name: ClassVar[str] = "dense_s16_dsp"
    widths: ClassVar[frozenset[int]] = frozenset({16})

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses weights of 16 bits."""
        p = dense_params(node)
        rows = Conv2dParams(
            1, p.rows, p.in_features, 1, p.rows, p.out_features, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0,
            p.weight_type, p.requant, p.x_type, p.acc_type,
        )  # fmt: skip
        return _call(self.name, node, core, rows)


def _call(name: str, node: Node, core: Core, p: Conv2dParams) -> KernelCall | Refusal:
    if not core.dsp:
        return "the core has no DSP extension"
    if p.groups > 1:
        return f"{p.groups} groups"
    if p.weight_type != "int8_t":
        return "weights of 16 bits"
    taps, pixels = p.kernel_h * p.kernel_w * p.in_c, p.out_h * p.out_w
    k4 = -(-taps // 4) * 4
    pointwise = (p.kernel_h, p.kernel_w, p.stride_h, p.stride_w) == (1, 1, 1, 1)
    same = (p.out_h, p.out_w, p.pad_top, p.pad_left) == (p.in_h, p.in_w, 0, 0)
    whole = pixels == 1 and (p.kernel_h, p.kernel_w) == (p.in_h, p.in_w) and p.pad_top == 0
    in_one_piece = (pointwise and same) or (whole and p.pad_left == 0)
    direct = in_one_piece and k4 == taps and p.x_type == "int16_t"
    sizes = (node.input(0).type.dtype.bytes, node.output.type.dtype.bytes)
    per = 2 if pixels > 1 else 4
    weights = packed_pairs(node.input(1).array.reshape(p.out_c, taps), per)
    unroll = dsp.largest_unroll(k4 // 4, _MOST_STEPS)
    # A step is 18 (one column: 19) instructions for 16 products, counted on cortex-m4. GCC 12.2
    # keeps half of the sums of 64 bits on the stack.
    step = 40 if p.acc_type == "int64_t" else 19 + 3 / unroll
    products = int(pixels * k4 * p.out_c * step / 16)
    gather = 0 if direct else pixels * (taps * (1 if p.x_type == "int16_t" else 4) + 60)
    return KernelCall(
        name, "ops/conv_s16_dsp.c.j2", WideColumnsParams(p, k4, direct, unroll),
        (
            PackedConstant("weights", weights, "int8_t"),
            *linear.requant_constants(linear.linear_requant_of(node)),
        ),
        scratch_bytes=0 if direct else 4 * k4,
        instructions=products + gather + 14 * pixels * p.out_c,
        code_bytes=700 if pixels > 1 else 500,
        overlap=None if direct else overlap_of(geometry_of(p), 2, sizes),
        includes=("tinyq_dsp.h",),
        reason=f"columns of {k4}, {'in place' if direct else 'gathered'}, {p.acc_type} sums",
    )  # fmt: skip


def packed_pairs(weights: npt.NDArray[np.generic], per: int) -> npt.NDArray[np.int8]:
    """Weights [O, K] in blocks of ``per`` channels, fours of taps as bytes k0 k2 k1 k3."""
    channels, taps = weights.shape
    k4 = -(-taps // 4) * 4
    padded = np.zeros((channels, k4), np.int8)
    padded[:, :taps] = weights
    fours = padded.reshape(channels, k4 // 4, 4)[:, :, [0, 2, 1, 3]]
    blocks = [fours[c : c + per].transpose(1, 0, 2).ravel() for c in range(0, channels, per)]
    return np.concatenate(blocks)
