"""Maxima over windows through ``arm_max_pool_s8``."""

from __future__ import annotations

from typing import ClassVar

from tinyq.ir import Node
from tinyq.ops.base import KernelCall, Refusal
from tinyq.ops.cmsis_nn.calls import CmsisKernel, CmsisPoolParams, by_isa, uses
from tinyq.ops.max_pool2d import window_of
from tinyq.target import Core


class CmsisMaxPool2d(CmsisKernel):
    """Windows without dilation that always see an element."""

    name: ClassVar[str] = "cmsis_max_pool_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses dilation, other types than int8, and windows in the padding alone."""
        w, y = window_of(node), node.output.type
        _, in_h, in_w, channels = node.input(0).type.shape
        if y.dtype.value != "int8":
            return f"the function is for int8, not {y.dtype.value}"
        if w.dilation_hw != (1, 1):
            return "CMSIS-NN's pools have no dilation"
        if any(w.pads[k] >= w.kernel_hw[k % 2] for k in range(4)):
            return "a window lies in the padding alone"
        params = CmsisPoolParams(
            "arm_max_pool_s8", (in_h, in_w, channels), (y.shape[1], y.shape[2]), w.kernel_hw,
            w.stride_hw, w.pads[:2], -128, 127, 0,
        )  # fmt: skip
        taps = w.kernel_hw[0] * w.kernel_hw[1]
        each = by_isa(core, 7, 4, 0.5) * taps + by_isa(core, 14, 6, 1)
        return KernelCall(
            self.name,
            "ops/cmsis_pool_s8.c.j2",
            params,
            instructions=int(each * y.elements),
            code_bytes=600,
            reason="CMSIS-NN",
            library=uses("arm_max_pool_s8"),
        )
