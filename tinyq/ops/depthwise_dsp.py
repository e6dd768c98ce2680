"""Depthwise convolutions for cores with the DSP extension: channel by channel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tinyq.ir import Node
from tinyq.ops import dsp, dsp_cost, linear
from tinyq.ops.base import InnerFunction, Kernel, KernelCall, PackedConstant, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.conv2d_dsp import geometry_of
from tinyq.ops.dsp import Effort
from tinyq.ops.dsp_params import (
    ColumnsParams,
    DepthwiseParams,
    EpilogueParams,
    Plane3x3Params,
    PlaneParams,
    Stride2Params,
)
from tinyq.ops.packing import depthwise_plane_width, depthwise_scratch_bytes
from tinyq.quant import Requant
from tinyq.target import Core

_REACH = 4095
"""Largest offset of a load or store, in bytes."""


class DepthwiseS8Dsp(Kernel):
    """One channel at a time: from a padded int16 plane, or (3x3, stride 2) from the input."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.name = f"depthwise_s8_dsp{effort.suffix}"  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses what is no depthwise convolution of int8 weights."""
        requant, p = linear.requant_of(node), conv2d_params(node)
        refusal = dsp.refuses(core)
        if refusal:
            return refusal
        if p.groups != p.in_c:
            return "not depthwise"
        if node.input(1).array.dtype != np.int8:
            return "weights of 16 bits"
        task = _Task(self.name, _along_rows(geometry_of(p)), requant, self.effort, core.pairs)
        made = [_stride2(task), _plane3x3(task), _plane(task), _planar(task)]
        calls = [call for call in made if call is not None]
        if self.effort is dsp.COMPACT:
            best = min(calls, key=lambda call: call.code_bytes)
        else:
            best = min(calls, key=lambda call: call.instructions)
        weights = PackedConstant("weights", node.input(1).array.reshape(p.out_c, -1), "int8_t")
        return replace(best, constants=(weights, *linear.requant_constants(requant)))


@dataclass(frozen=True, eq=False)
class _Task:
    name: str
    shape: ColumnsParams
    requant: Requant
    effort: Effort
    paired: bool

    @property
    def multiplier(self) -> int:
        return self.shape.o // self.shape.c

    def call(self, planes: DepthwiseParams, instructions: int, code_bytes: int,
             core: InnerFunction | None = None) -> KernelCall:  # fmt: skip
        """A call of depthwise_s8_dsp.c.j2."""
        g = self.shape
        alone = self.multiplier == 1 and g.oh * g.ow <= g.h * g.w
        return KernelCall(
            self.name,
            "ops/depthwise_s8_dsp.c.j2",
            planes,
            scratch_bytes=depthwise_scratch_bytes(
                (g.oh, g.ow), (g.kh, g.kw), (g.sh, g.sw), (g.dh, g.dw)
            ),
            instructions=instructions + 4 * g.oh * g.ow * len(planes.fixes),
            code_bytes=code_bytes,
            in_place=(0,) if alone else (),
            phase=g.c if self.multiplier == 1 else 0,
            includes=dsp.INCLUDES,
            reason=f"one channel at a time, {planes.variant}",
            cores=() if core is None else (core,),
        )

    def planes(self, variant: str) -> DepthwiseParams:
        """Parameters of depthwise_s8_dsp.c.j2."""
        g = self.shape
        return DepthwiseParams(
            variant=variant, h=g.h, w=g.w, c=g.c, oh=g.oh, ow=g.ow, multiplier=self.multiplier,
            kh=g.kh, kw=g.kw, sh=g.sh, sw=g.sw, dh=g.dh, dw=g.dw, pt=g.pt, pl=g.pl,
            in_zp=g.in_zp, fixes=dsp.corrections_of(self.requant),
            **EpilogueParams.of(self.requant),
        )  # fmt: skip


def _along_rows(g: ColumnsParams) -> ColumnsParams:
    """A convolution along a column of width 1 as one along a row: the bytes are the same."""
    if (g.w, g.kw, g.ow, g.pl) != (1, 1, 1, 0):
        return g
    return replace(
        g, h=1, w=g.h, oh=1, ow=g.oh, kh=1, kw=g.kh, sh=1, sw=g.sh, dh=1, dw=g.dh, pt=0, pl=g.pt
    )


def _stride2(task: _Task) -> KernelCall | None:
    g = task.shape
    if (g.kh, g.kw, g.sh, g.sw, g.dh, g.dw, task.multiplier) != (3, 3, 2, 2, 1, 1, 1):
        return None
    bottom = (g.oh - 1) * 2 + 3 - g.pt - g.h
    right = (g.ow - 1) * 2 + 3 - g.pl - g.w
    if max(g.pt, g.pl, bottom, right) > 1 or 2 * g.w * g.c + 2 * g.c > _REACH:
        return None
    fixes = dsp.corrections_of(task.requant)
    end = dsp.epilogue_of(task.requant)
    unroll = min(task.effort.outputs, 2)
    params = Stride2Params(
        h=g.h, w=g.w, c=g.c, oh=g.oh, ow=g.ow, pt=g.pt, pl=g.pl, in_zp=g.in_zp, unroll=unroll,
        fixes=fixes, in_place=bool(fixes), **EpilogueParams.of(task.requant),
    )  # fmt: skip
    cost = dsp_cost.depthwise3x3s2_cost((g.oh, g.ow), g.c, unroll, end)
    corrected = len({fix.channel for fix in fixes})
    return KernelCall(
        task.name,
        "ops/depthwise3x3s2_s8_dsp.c.j2",
        params,
        instructions=cost + 150 * g.oh * g.ow * corrected,
        code_bytes=dsp_cost.depthwise3x3s2_bytes((g.oh, g.ow), unroll, g.pt, bottom > 0, end),
        in_place=(0,),
        includes=dsp.INCLUDES,
        reason="one channel at a time, straight from the input",
    )


def _plane3x3(task: _Task) -> KernelCall | None:
    g = task.shape
    row = 2 * depthwise_plane_width(g.ow, 3, 1, 1)
    if (g.kh, g.kw, g.sh, g.sw, g.dh, g.dw) != (3, 3, 1, 1, 1, 1):
        return None
    if 2 * row > 1020 or row * g.oh > 65535 or g.o > 2047:
        return None
    unroll = dsp.largest_unroll(g.ow // 2, task.effort.outputs)
    params = Plane3x3Params(
        oh=g.oh,
        ow=g.ow,
        o=g.o,
        paired=task.paired,
        unroll=unroll,
        **EpilogueParams.of(task.requant),
    )
    core = InnerFunction("core", "plane3x3_s8_dsp", "ops/plane3x3_s8_dsp.c.j2", params)
    end = dsp.epilogue_of(task.requant)
    return task.call(
        task.planes("plane3x3"),
        dsp_cost.plane3x3_cost((g.h, g.w), (g.oh, g.ow), g.o, unroll, end, task.paired),
        dsp_cost.expand_bytes(g.w) + dsp_cost.plane3x3_bytes(g.ow, unroll, end, task.paired),
        core,
    )


def _plane(task: _Task) -> KernelCall | None:
    g = task.shape
    if g.sw > 2 or g.dw != 1 or g.o > 1023:
        return None
    pw = depthwise_plane_width(g.ow, g.kw, g.sw, 1)
    row = 2 * pw
    words = g.kw // 2 + 1 if g.sw == 1 else (g.kw + 1) // 2
    advance = abs(g.sh * row - g.ow // 4 * 8 * g.sw)
    reaches = max((g.kh - 1) * g.dh * row + 4 * (words + 4), g.ow // 4 * 8 * g.sw, advance)
    table = g.kh * words * (8 if g.sw == 1 else 4)
    if reaches > _REACH or table > 1020 or g.sh * row * g.oh > 65535:
        return None
    params = PlaneParams(
        oh=g.oh, ow=g.ow, o=g.o, kh=g.kh, kw=g.kw, sh=g.sh, sw=g.sw, dh=g.dh, pw=pw,
        **EpilogueParams.of(task.requant),
    )  # fmt: skip
    end = dsp.epilogue_of(task.requant)
    return task.call(
        task.planes("plane"),
        dsp_cost.plane_cost((g.h, g.w), (g.oh, g.ow), (g.kh, g.kw), g.sw, g.o, end),
        dsp_cost.expand_bytes(g.w) + dsp_cost.plane_bytes(g.ow, (g.kh, g.kw), g.sw, end),
        InnerFunction("core", "plane_s8_dsp", "ops/plane_s8_dsp.c.j2", params),
    )


def _planar(task: _Task) -> KernelCall:
    g = task.shape
    end = dsp.epilogue_of(task.requant)
    return task.call(
        task.planes("planar"),
        dsp_cost.planar_cost((g.h, g.w), (g.oh, g.ow), (g.kh, g.kw), g.o, end),
        dsp_cost.expand_bytes(g.w) + dsp_cost.planar_bytes(g.kw),
    )
