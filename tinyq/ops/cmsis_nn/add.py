"""Sums through ``arm_elementwise_add_s8``."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import Node
from tinyq.ops.add import AddAttrs
from tinyq.ops.base import KernelCall, Refusal
from tinyq.ops.binary import CODES, apply_fixes, same_size_inputs
from tinyq.ops.cmsis_nn.calls import CmsisElementwiseParams, CmsisKernel, by_isa, uses
from tinyq.ops.cmsis_nn.elementwise import differing_pairs, operands_of, three_quants
from tinyq.ops.fixed_point import ADD_LEFT_SHIFT, Differences, FixedPointAdd
from tinyq.quant import Rounding
from tinyq.target import Core


class CmsisAdd(CmsisKernel):
    """Sums of two tensors of one shape."""

    name: ClassVar[str] = "cmsis_add_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses broadcasts and differences."""
        made, differences = node.attrs, Differences()
        if isinstance(made, AddAttrs):
            found = sum_rounded_once(node, made)
            if isinstance(found, str):
                return found
            made, differences = found
        params = CmsisElementwiseParams(
            node.output.type.elements,
            -made.a_zero_point,
            -made.b_zero_point,
            made.zero_point,
            (made.a.multiplier, made.b.multiplier, made.y.multiplier),
            (made.a.shift, made.b.shift, made.y.shift),
            ADD_LEFT_SHIFT,
            made.qmin,
            made.qmax,
            node.input(1).is_constant,
        )
        return KernelCall(
            self.name,
            "ops/cmsis_add_s8.c.j2",
            params,
            operands_of(node),
            instructions=int(by_isa(core, 110, 81, 9) * node.output.type.elements),
            code_bytes=700,
            in_place=same_size_inputs(node),
            reason="CMSIS-NN",
            library=uses("arm_elementwise_add_s8", made.rounding.value, differences),
        )


def sum_rounded_once(node: Node, attrs: AddAttrs) -> tuple[FixedPointAdd, Differences] | Refusal:
    """The library's sum for another oracle, and where it differs."""
    if attrs.multiplier_a < 0 or attrs.multiplier_b < 0:
        return "CMSIS-NN has no subtraction"
    quants = three_quants(node)
    if isinstance(quants, str):
        return quants
    a, b, y = quants
    made = FixedPointAdd.of(
        (a.scale, b.scale, y.scale),
        (a.zero_point, b.zero_point, y.zero_point),
        (attrs.qmin, attrs.qmax),
        Rounding.ONCE,
    )
    if problem := made.problem():
        return problem
    rows, columns = CODES[:, None], CODES[None, :]
    levels = apply_fixes(attrs.levels(rows, columns), rows, columns, attrs.fixes)
    return made, differing_pairs(made, np.clip(levels, attrs.qmin, attrs.qmax))
