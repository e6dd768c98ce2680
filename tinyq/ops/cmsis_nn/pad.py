"""Constant padding through ``arm_pad_s8``."""

from __future__ import annotations

from typing import ClassVar

from tinyq.ir import Node
from tinyq.ops.base import KernelCall, Refusal
from tinyq.ops.cmsis_nn.calls import CmsisKernel, CmsisPadParams, by_isa, uses
from tinyq.ops.pad import attrs_of
from tinyq.target import Core


class CmsisPad(CmsisKernel):
    """Padding of up to four axes."""

    name: ClassVar[str] = "cmsis_pad_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses more axes and other types than int8."""
        a, x = attrs_of(node), node.input(0).type
        if len(x.shape) > 4:
            return f"{len(x.shape)} axes; CMSIS-NN pads four"
        if x.dtype.value != "int8":
            return f"the function is for int8, not {x.dtype.value}"
        ahead = (0,) * (4 - len(x.shape))
        shape = (*(1 for _ in ahead), *x.shape)
        return KernelCall(
            self.name,
            "ops/cmsis_pad_s8.c.j2",
            CmsisPadParams(shape, (*ahead, *a.before), (*ahead, *a.after), a.value),
            instructions=int(by_isa(core, 3, 2, 0.4) * node.output.type.elements),
            code_bytes=400,
            reason="CMSIS-NN",
            library=uses("arm_pad_s8"),
        )
