"""Sums and means for cores with Helium."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tinyq.ir import Node
from tinyq.ops import mve
from tinyq.ops.add import AddS8
from tinyq.ops.average_pool2d import AveragePool2dS8
from tinyq.ops.base import Kernel, KernelCall, Refusal
from tinyq.ops.params import AddParams, AvgPool2dParams
from tinyq.target import Core

_MOST_FIXES = 4
"""Corrected pairs of a sum; each costs an instruction an element."""

_MOST_TAPS = 255
"""Sums of as many int8 fit 16 bits."""


class AddS8Mve(Kernel):
    """Four elements at a time."""

    name: ClassVar[str] = "add_s8_mve"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses broadcasting and more than a few corrected pairs."""
        if not core.mve:
            return "the core has no Helium"
        call = AddS8().plan(node, core)
        if isinstance(call, Refusal):
            return call
        p: AddParams = call.params
        if len(p.loops.shape) > 1 or (p.loops.a_strides[0], p.loops.b_strides[0]) != (1, 1):
            return "the operands differ in shape"
        if p.fix_table or len(p.fixes) > _MOST_FIXES:
            return f"more than {_MOST_FIXES} corrected pairs"
        extra = 4 * len(p.fixes) + (4 if p.tie_window else 0) + (1 if p.zero_point else 0)
        return replace(
            call,
            kernel=self.name,
            template="ops/add_s8_mve.c.j2",
            instructions=25 + node.output.type.elements * (10 + extra) // 4,
            code_bytes=140 + 8 * extra + (90 if p.loops.shape[0] % 4 else 0),
            includes=mve.INCLUDES,
            reason="four elements at a time",
        )


class AveragePool2dS8Mve(Kernel):
    """Eight channels at a time, summed in 16 bits."""

    name: ClassVar[str] = "avg_pool2d_s8_mve"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses windows that reach outside the image, and those of more than 255 taps."""
        if not core.mve:
            return "the core has no Helium"
        call = AveragePool2dS8().plan(node, core)
        if isinstance(call, Refusal):
            return call
        p: AvgPool2dParams = call.params
        below = (p.out_h - 1) * p.stride_h + p.kernel_h - p.in_h
        right = (p.out_w - 1) * p.stride_w + p.kernel_w - p.in_w
        if max(p.pad_top, p.pad_left, below, right) > 0 or len(p.requants) > 1:
            return "windows reach outside the image"
        taps = p.kernel_h * p.kernel_w
        if taps > _MOST_TAPS:
            return f"windows of more than {_MOST_TAPS} taps"
        if p.requants[0].ties == "twice":
            return "it rounds twice"
        step = 4 if p.channels % 8 else 3
        block = step * taps + 3 * p.kernel_h + 35 + 8 * len(p.requants[0].fixes)
        return replace(
            call,
            kernel=self.name,
            template="ops/avg_pool2d_s8_mve.c.j2",
            instructions=30 + p.out_h * p.out_w * (12 + -(-p.channels // 8) * block),
            code_bytes=260 + 12 * min(p.kernel_w, 8),
            includes=mve.INCLUDES,
            reason="eight channels at a time",
        )
