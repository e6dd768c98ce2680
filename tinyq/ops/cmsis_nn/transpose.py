"""Transposes through ``arm_transpose_s8``."""

from __future__ import annotations

from typing import ClassVar

from tinyq.ir import Node
from tinyq.ops.base import KernelCall, Refusal
from tinyq.ops.cmsis_nn.calls import CmsisKernel, CmsisTransposeParams, by_isa, uses
from tinyq.ops.params import merged_permutation
from tinyq.ops.transpose import permutation
from tinyq.target import Core

_UINT16 = 2**16 - 1


class CmsisTranspose(CmsisKernel):
    """Permutations of two to four axes that are really moved."""

    name: ClassVar[str] = "cmsis_transpose_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses more axes, other types than int8, and copies."""
        x = node.input(0).type
        if x.dtype.value != "int8":
            return f"the function is for int8, not {x.dtype.value}"
        shape, perm = merged_permutation(x.shape, permutation(node))
        if not 2 <= len(shape) <= 4:
            return f"{len(shape)} axes to move; CMSIS-NN moves two to four"
        if max(shape) > _UINT16:
            return "a size is beyond 16 bits"
        return KernelCall(
            self.name,
            "ops/cmsis_transpose_s8.c.j2",
            CmsisTransposeParams(tuple(shape), tuple(perm)),
            instructions=int(by_isa(core, 14, 9, 3) * x.elements),
            code_bytes=1500,
            reason="CMSIS-NN",
            library=uses("arm_transpose_s8"),
        )
