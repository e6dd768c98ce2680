"""Products through ``arm_elementwise_mul_s8``."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import Node
from tinyq.ops.base import KernelCall, Refusal
from tinyq.ops.binary import CODES, apply_fixes, same_size_inputs
from tinyq.ops.cmsis_nn.calls import CmsisElementwiseParams, CmsisKernel, by_isa, uses
from tinyq.ops.cmsis_nn.elementwise import differing_pairs, operands_of, three_quants
from tinyq.ops.fixed_point import Differences, FixedPointMul
from tinyq.ops.mul import MulAttrs
from tinyq.quant import Rounding
from tinyq.target import Core


class CmsisMul(CmsisKernel):
    """Products of two tensors of one shape."""

    name: ClassVar[str] = "cmsis_mul_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses broadcasts."""
        made, differences = node.attrs, Differences()
        if isinstance(made, MulAttrs):
            found = product_rounded_once(node, made)
            if isinstance(found, str):
                return found
            made, differences = found
        params = CmsisElementwiseParams(
            node.output.type.elements,
            -made.a_zero_point,
            -made.b_zero_point,
            made.zero_point,
            (made.y.multiplier,),
            (made.y.shift,),
            0,
            made.qmin,
            made.qmax,
            node.input(1).is_constant,
        )
        return KernelCall(
            self.name,
            "ops/cmsis_mul_s8.c.j2",
            params,
            operands_of(node),
            instructions=int(by_isa(core, 45, 30, 5) * node.output.type.elements),
            code_bytes=500,
            in_place=same_size_inputs(node),
            reason="CMSIS-NN",
            library=uses("arm_elementwise_mul_s8", made.rounding.value, differences),
        )


def product_rounded_once(
    node: Node, attrs: MulAttrs
) -> tuple[FixedPointMul, Differences] | Refusal:
    """The library's product for another oracle, and where it differs."""
    quants = three_quants(node)
    if isinstance(quants, str):
        return quants
    a, b, y = quants
    limits = (attrs.requant.qmin, attrs.requant.qmax)
    made = FixedPointMul.of(
        (a.scale, b.scale, y.scale),
        (a.zero_point, b.zero_point, y.zero_point),
        limits,
        Rounding.ONCE,
    )
    if problem := made.problem():
        return problem
    rows, columns = CODES[:, None], CODES[None, :]
    levels = apply_fixes(attrs.levels(rows, columns), rows, columns, attrs.fixes)
    return made, differing_pairs(made, np.clip(levels, *limits))
