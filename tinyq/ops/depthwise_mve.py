"""Depthwise convolutions for cores with Helium: sixteen channels across the lanes of a vector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, Node
from tinyq.ops import dsp, linear, mve
from tinyq.ops.base import Kernel, KernelCall, PackedConstant, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.conv2d_dsp import geometry_of
from tinyq.ops.dsp_params import ColumnsParams, Corrections, EpilogueParams
from tinyq.ops.guards import guard_headers
from tinyq.ops.mve import LANES
from tinyq.ops.packing import Int8
from tinyq.quant import Requant, raw_levels
from tinyq.target import Core

_MOST_TAPS = 64
"""Taps are unrolled: some 30 bytes of code each."""

_EXACT = 32767 // 128
"""Sum of |weights| whose products with int8 fit 16 bits."""

_ORDER = np.array([0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15])
"""Lanes of the four accumulators of a block, as the widening instructions leave them."""


@dataclass(frozen=True)
class DepthwiseMveParams(EpilogueParams):
    """``ops/depthwise_s8_mve.c.j2``; sizes in elements, ``row`` and ``span`` are the ring's."""

    h: int
    w: int
    c: int
    oh: int
    ow: int
    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    pt: int
    pl: int
    in_zp: int
    row: int
    span: int
    groups: tuple[int, ...]
    flat: bool
    narrow_levels: bool
    fixes: Corrections


class DepthwiseS8Mve(Kernel):
    """Sums of a few products in 16 bits, then in 32; rows pass through a small ring."""

    name: ClassVar[str] = "depthwise_s8_mve"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses what is not depthwise, and several outputs a channel."""
        requant, p = linear.requant_of(node), conv2d_params(node)
        refusal = mve.refuses(core, node)
        if refusal:
            return refusal
        if p.groups != p.in_c or p.out_c != p.in_c:
            return "not depthwise with one output a channel"
        shape = _along_columns(geometry_of(p))
        span = (shape.kh - 1) * shape.dh + 1
        if shape.kh * shape.kw > _MOST_TAPS:
            return f"more than {_MOST_TAPS} taps"
        if shape.sh > span:
            return "the stride leaves rows out"
        return _call(self.name, shape, mve.weights_of(node), requant)


def _along_columns(g: ColumnsParams) -> ColumnsParams:
    """A convolution along a single row as one along a column, whose ring is small."""
    if (g.h, g.kh, g.oh, g.pt) != (1, 1, 1, 0):
        return g
    return replace(
        g, h=g.w, w=1, oh=g.ow, ow=1, kh=g.kw, kw=1, sh=g.sw, sw=1, dh=g.dw, dw=1, pt=g.pl, pl=0
    )


def _call(name: str, g: ColumnsParams, weights: Int8, requant: Requant) -> KernelCall:
    taps, span = g.kh * g.kw, (g.kh - 1) * g.dh + 1
    flat = g.sw == 1 and LANES % g.c == 0
    by_tap = weights.reshape(g.c, taps)
    needed = (g.ow - 1) * g.sw + (g.kw - 1) * g.dw + 1
    params = DepthwiseMveParams(
        h=g.h, w=g.w, c=g.c, oh=g.oh, ow=g.ow, kh=g.kh, kw=g.kw, sh=g.sh, sw=g.sw, dh=g.dh,
        dw=g.dw, pt=g.pt, pl=g.pl, in_zp=g.in_zp, row=max(needed, g.pl + g.w) * g.c, span=span,
        groups=exact_groups(by_tap), flat=flat, narrow_levels=_fit_16_bits(by_tap, requant),
        fixes=dsp.corrections_of(requant),
        **EpilogueParams.of(requant),
    )  # fmt: skip
    distance = overlap_of(g)
    return KernelCall(
        name,
        "ops/depthwise_s8_mve.c.j2",
        params,
        (
            PackedConstant("weights", _weights(by_tap), "int8_t", LANES),
            PackedConstant(
                "requant",
                np.concatenate([_requant(requant), mve.rule_constants(requant)]),
                "int32_t",
                headers=guard_headers(requant),
            ),
        ),
        scratch_bytes=span * params.row + LANES,
        instructions=_cost(params),
        code_bytes=450 + 30 * taps + 20 * len(params.groups),
        in_place=(0,) if distance <= 0 else (),
        overlap=distance,
        includes=mve.INCLUDES,
        reason=f"sixteen {'values' if flat else 'channels'} at a time",
    )


def exact_groups(weights: Int8) -> tuple[int, ...]:
    """Numbers of taps, in order, whose products may be summed in 16 bits; weights [C, taps]."""
    sizes: list[int] = []
    total = np.zeros(len(weights), np.int64)
    for tap in np.abs(weights.astype(np.int64)).T:
        if sizes and int((total + tap).max()) <= _EXACT:
            sizes[-1] += 1
            total = total + tap
        else:
            sizes.append(1)
            total = tap
    return tuple(sizes)


def _fit_16_bits(by_tap: Int8, requant: Requant) -> bool:
    """Whether every output, or the one below, fits int16 before the clamp, whatever the input."""
    largest = 128 * np.abs(by_tap.astype(np.int64)).sum(axis=1)
    low, high = raw_levels(requant, -largest), raw_levels(requant, largest)
    return bool(low.min() > -(2**15) and high.max() < 2**15)


def overlap_of(g: ColumnsParams) -> int:
    """Least bytes by which y has to begin before x (see KernelCall): rows are copied, then read."""
    rows = np.arange(g.oh)
    read = np.maximum(rows * g.sh - g.pt + (g.kh - 1) * g.dh + 1, 0)
    ends = (rows + 1) * g.ow - read * g.w
    return int(ends[read < g.h].max(initial=-g.h * g.w)) * g.c


def _repeated(per_channel: AnyArray) -> AnyArray:
    """[C, ...] as [blocks, 16, ...]: channels that divide 16 repeat, else zeros follow."""
    channels = len(per_channel)
    if LANES % channels == 0:
        return np.tile(per_channel, (LANES // channels, 1))[None]
    padded = np.zeros((-(-channels // LANES) * LANES, per_channel.shape[1]), per_channel.dtype)
    padded[:channels] = per_channel
    return padded.reshape(-1, LANES, per_channel.shape[1])


def _weights(by_tap: Int8) -> AnyArray:
    return np.ascontiguousarray(_repeated(by_tap).transpose(0, 2, 1)).reshape(-1)


def _requant(requant: Requant) -> AnyArray:
    pairs = np.stack([requant.multiplier, requant.addend], axis=1).astype(np.int32)
    lanes = _repeated(pairs)[:, _ORDER].reshape(-1, 4, 4, 2)
    absent = lanes[..., 0] == 0
    lanes[absent, 1] = 1 << requant.post_shift >> 1  # never near a step
    return np.ascontiguousarray(lanes.transpose(0, 1, 3, 2)).reshape(-1)


def _cost(p: DepthwiseMveParams) -> int:
    taps = p.kh * p.kw
    far = sum(kx * p.dw * p.c > 127 for kx in range(p.kw)) * p.kh + (2 * taps if p.kh > 5 else 0)
    sums = 7 * taps - 3 * len(p.groups) + 8 * len(p.groups) - 4 + far
    narrow = 0 if p.narrow_levels and 1 <= p.post_shift <= 16 else 4
    tail = 6 if (p.ow * p.c if p.flat else p.c) % LANES else 0
    form = 20 if p.guard else 0 if p.ties == "up" else 12
    block = sums + 29 + form + 4 * (p.pre_shift > 0) + narrow + tail + p.kh
    per_row = mve.steps_of(p.ow * p.c) if p.flat else p.ow * mve.steps_of(p.c)
    pixels = 0 if p.flat else p.ow * (p.kh + 5)
    rows = p.oh * (30 + 8 * p.kh + p.sh * (12 + 5 * p.w * p.c // LANES))
    return 60 + rows + p.oh * (per_row * block + pixels + 4 * p.ow * len(p.fixes))
