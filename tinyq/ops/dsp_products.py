"""Calls of the matrix products for the DSP extension: columns of patches, and one vector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinyq.ops import dsp, dsp_cost, linear
from tinyq.ops.base import InnerFunction, KernelCall, Refusal
from tinyq.ops.dsp import Effort
from tinyq.ops.dsp_params import (
    ColumnsParams,
    EpilogueParams,
    ProductParams,
    VectorDenseParams,
    VectorParams,
)
from tinyq.ops.packing import (
    PIXELS_PER_BLOCK,
    MatmulMode,
    Weights,
    column_order,
    conv_scratch_bytes,
    dense_scratch_bytes,
    gathers_rows,
    pack_matmul,
    pack_matvec,
)
from tinyq.quant import Requant

_LONGEST_COLUMN = 10_920
"""Three int16 columns stay below 64 KiB, the reach of the assembly's constants."""

_LONGEST_VECTOR = 32_764

_LONGEST_EXPANDED = 256
"""Longer vectors are read as int8 by every four channels: an eighth more work, no scratch."""

_MOST_CHANNELS = 2040
"""Three rows of outputs lie within the offset of a store."""


def columns_call(
    name: str, geometry: ColumnsParams, weights: Weights, requant: Requant, effort: Effort,
    layout: MatmulMode | None = None, paired: bool = False,
) -> KernelCall | Refusal:  # fmt: skip
    """A convolution with weights [O, K] in OHWI order; ``geometry`` lacks fixes and group_bytes.

    ``layout`` of the weights, by default the fastest; ``paired`` as in :class:`ProductParams`.
    """
    g = geometry
    if g.o > _MOST_CHANNELS:
        return f"more than {_MOST_CHANNELS} output channels"
    group_in, group_out = g.c // g.groups, g.o // g.groups
    order = column_order((g.kh, g.kw), group_in, gathers_rows(g.groups, g.kw, g.dw))
    k4 = order.size
    if k4 > _LONGEST_COLUMN:
        return f"patches of more than {_LONGEST_COLUMN} values"
    by_group = weights.reshape(g.groups, group_out, -1)
    mode = layout or dsp.mode_for(by_group, weights.shape[1], effort)
    packed = [pack_matmul(w, order, mode) for w in by_group]
    unroll = dsp.largest_unroll(k4 // 4, effort.steps)
    within = inside(g)
    params = replace(g, group_bytes=packed[0].size, fixes=dsp.corrections_of(requant))
    core = ProductParams(
        k4=k4, o=group_out, paired=paired, y_stride=g.o, mode=mode, unroll=unroll,
        **EpilogueParams.of(requant),
    )  # fmt: skip
    pixels = g.oh * g.ow
    shape = _shape_of(g)
    distance = overlap_of(g)
    instructions = dsp_cost.conv_cost(shape, mode, unroll, dsp.epilogue_of(requant), paired)
    return KernelCall(
        name,
        "ops/conv_s8_dsp.c.j2",
        params,
        (dsp.packed(np.concatenate(packed)), *linear.requant_constants(requant)),
        scratch_bytes=conv_scratch_bytes(
            k4, 0 if within else weights.shape[1], g.o if pixels % 3 else 0
        ),
        instructions=instructions + 3 * pixels * len(params.fixes),
        code_bytes=dsp_cost.conv_bytes(shape, mode, unroll, dsp.epilogue_of(requant), paired),
        in_place=(0,) if distance is not None and distance <= 0 else (),
        overlap=distance,
        includes=dsp.INCLUDES,
        reason=f"columns of {k4}, weights {mode}",
        cores=(InnerFunction("mm", "matmul_s8_dsp", "ops/matmul_s8_dsp.c.j2", core),),
    )


def vector_call(
    name: str, weights: Weights, requant: Requant, effort: Effort,
    layout: MatmulMode | None = None,
) -> KernelCall | Refusal:  # fmt: skip
    """One vector by weights [O, K]."""
    channels, inputs = weights.shape
    k4 = -(-inputs // 4) * 4
    if k4 > _LONGEST_VECTOR:
        return f"more than {_LONGEST_VECTOR} inputs"
    mode: MatmulMode = layout or dsp.mode_for(weights[None], inputs, effort)
    unroll = dsp.largest_unroll(k4 // 4, effort.steps)
    direct = inputs > _LONGEST_EXPANDED and inputs % 4 == 0
    params = VectorDenseParams(inputs, direct, dsp.corrections_of(requant))
    core = VectorParams(
        k4=k4, o=channels, mode=mode, unroll=unroll, direct=direct, **EpilogueParams.of(requant)
    )
    end = dsp.epilogue_of(requant)
    return KernelCall(
        name,
        "ops/dense_s8_dsp.c.j2",
        params,
        (dsp.packed(pack_matvec(weights, mode)), *linear.requant_constants(requant)),
        scratch_bytes=0 if direct else dense_scratch_bytes(inputs),
        instructions=dsp_cost.dense_cost(inputs, channels, mode, unroll, end, direct)
        + 4 * len(params.fixes),
        code_bytes=dsp_cost.dense_bytes(inputs, channels, mode, unroll, end),
        in_place=() if direct else (0,),
        overlap=None if direct else -inputs,
        includes=dsp.INCLUDES,
        reason=f"four channels at a time, weights {mode}",
        cores=(InnerFunction("mv", "matvec_s8_dsp", "ops/matvec_s8_dsp.c.j2", core),),
    )


def overlap_of(
    g: ColumnsParams, block: int = PIXELS_PER_BLOCK, bytes_xy: tuple[int, int] = (1, 1)
) -> int | None:
    """Least bytes by which y has to begin before x, see :class:`KernelCall`.

    The pixels of a block (of ``block``) are read before its outputs are written, and what later
    blocks read must not be written yet. None with groups, which go over the input one by one.
    ``bytes_xy``: sizes of one element of x and one of y.
    """
    if g.groups > 1:
        return None
    pixels = np.arange(g.oh * g.ow)
    top = np.maximum(pixels // g.ow * g.sh - g.pt, 0)
    left = np.maximum(pixels % g.ow * g.sw - g.pl, 0)
    reads = (top * g.w + left) * g.c
    later = np.minimum.accumulate(reads[::-1])[::-1]
    written = np.arange(block, pixels.size, block)
    if written.size == 0:
        return -g.h * g.w * g.c * bytes_xy[0]
    return int((written * g.o * bytes_xy[1] - later[written] * bytes_xy[0]).max())


def inside(g: ColumnsParams) -> bool:
    """Whether no patch reaches outside the input."""
    return (
        g.pt == 0
        and g.pl == 0
        and (g.oh - 1) * g.sh + (g.kh - 1) * g.dh < g.h
        and (g.ow - 1) * g.sw + (g.kw - 1) * g.dw < g.w
    )


def _within(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> int:
    """Outputs along one axis whose patch lies inside the input."""
    last = size - 1 - (kernel - 1) * dilation
    return sum(0 <= k * stride - before <= last for k in range(out))


def _shape_of(g: ColumnsParams) -> dsp_cost.ConvShape:
    rows = gathers_rows(g.groups, g.kw, g.dw)
    group_in = g.c // g.groups
    inner = _within(g.h, g.oh, g.kh, g.sh, g.dh, g.pt) * _within(g.w, g.ow, g.kw, g.sw, g.dw, g.pl)
    return dsp_cost.ConvShape(
        pixels=g.oh * g.ow,
        border_pixels=g.oh * g.ow - inner,
        run=g.kw * g.c if rows else group_in,
        runs=g.kh if rows else g.kh * g.kw,
        channels_out=g.o,
        groups=g.groups,
        pointwise=(g.kh, g.kw, g.sh, g.sw, g.groups) == (1, 1, 1, 1, 1)
        and inside(g)
        and (g.oh, g.ow) == (g.h, g.w),
    )
