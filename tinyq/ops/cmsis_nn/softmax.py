"""Softmax through ``arm_softmax_s8``."""

from __future__ import annotations

from typing import ClassVar

from tinyq.ir import Node
from tinyq.ops.base import KernelCall, Refusal
from tinyq.ops.cmsis_nn.calls import CmsisKernel, CmsisSoftmaxParams, by_isa, uses
from tinyq.ops.fixed_point import FixedPointSoftmax
from tinyq.target import Core


class CmsisSoftmax(CmsisKernel):
    """Softmax where the oracle is CMSIS-NN: its exponential is an approximation of its own."""

    name: ClassVar[str] = "cmsis_softmax_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses nodes of another oracle, whose differences nothing bounds."""
        made = node.attrs
        if not isinstance(made, FixedPointSoftmax):
            return "its exponential differs from the oracle's"
        y = node.output.type
        depth = y.shape[-1] if y.shape else 1
        return KernelCall(
            self.name,
            "ops/cmsis_softmax_s8.c.j2",
            CmsisSoftmaxParams(
                y.elements // depth, depth, made.multiplier, made.shift, made.diff_min
            ),
            instructions=int(by_isa(core, 900, 500, 300) * y.elements),
            code_bytes=1200,
            reason="CMSIS-NN",
            library=uses("arm_softmax_s8"),
        )
