"""What sums and products of two tensors share when CMSIS-NN computes them."""

from __future__ import annotations

import numpy as np

from tinyq.ir import Node, QuantParams
from tinyq.ops.base import PackedConstant
from tinyq.ops.binary import CODES, constant_operands
from tinyq.ops.fixed_point import Differences, FixedPointAttrs
from tinyq.quant.staircase import Int64


def three_quants(node: Node) -> tuple[QuantParams, QuantParams, QuantParams] | str:
    """Quantization of both operands and the result, or why the library cannot take the node."""
    if node.input(0).type.shape != node.input(1).type.shape:
        return "CMSIS-NN has no broadcasting"
    found = [value.type.quant for value in (*node.present_inputs, node.output)]
    a, b, y = found
    if a is None or b is None or y is None or not all(q.is_per_tensor for q in (a, b, y)):
        return "an operand has no quantization"
    return a, b, y


def differing_pairs(made: FixedPointAttrs, wanted: Int64) -> Differences:
    """Where ``made`` differs from ``wanted`` [256, 256], over all 65,536 pairs of operands."""
    a, b = CODES.astype(np.int8)[:, None], CODES.astype(np.int8)[None, :]
    gaps = np.abs(made.compute((a, b)).astype(np.int64) - wanted)
    return Differences(int(np.count_nonzero(gaps)), gaps.size, int(gaps.max()))


def operands_of(node: Node) -> tuple[PackedConstant, ...]:
    """The second operand when it is constant."""
    return constant_operands(node)
