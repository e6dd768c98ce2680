"""Dense layers through ``arm_fully_connected_wrapper_s8``."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import Node
from tinyq.ops.base import KernelCall, PackedConstant, Refusal
from tinyq.ops.cmsis_nn.calls import (
    CmsisDenseParams,
    CmsisKernel,
    by_isa,
    linear_constants,
    quants_of,
    uses,
)
from tinyq.ops.cmsis_nn.conv2d import activation_of, library_parameters
from tinyq.ops.fixed_point import differing_accumulators
from tinyq.target import Core


class CmsisDense(CmsisKernel):
    """Dense layers of int8 weights."""

    name: ClassVar[str] = "cmsis_dense_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses what the library cannot represent."""
        found = quants_of(node)
        if found is None:
            return "an operand has no quantization"
        made = library_parameters(node)
        if isinstance(made, str):
            return made
        differences = differing_accumulators(node, made)
        weights = node.input(1).array
        out_features, in_features = weights.shape
        rows = node.output.type.elements // out_features
        alike = bool(
            np.all(made.multiplier == made.multiplier[0]) and np.all(made.shift == made.shift[0])
        )
        constants = [PackedConstant("weights", weights, "int8_t"), *linear_constants(made)]
        if core.mve:
            sums = (made.bias + made.offset).astype(np.int32)
            constants.append(PackedConstant("kernel_sums", sums, "int32_t"))
        macs = node.output.type.elements * in_features
        cost = by_isa(core, 6, 2, 0.47) * macs + by_isa(core, 80, 42, 14) * rows * out_features
        return KernelCall(
            self.name,
            "ops/cmsis_dense_s8.c.j2",
            CmsisDenseParams(
                rows,
                in_features,
                out_features,
                activation_of(made, found[0].zero_point),
                not alike,
                core.mve,
            ),
            tuple(constants),
            instructions=int(cost),
            code_bytes=1200,
            reason="CMSIS-NN",
            library=uses("arm_fully_connected_wrapper_s8", made.rounding.value, differences),
        )
