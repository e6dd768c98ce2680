"""Sums of products of a tensor whose zero point is found at run time: the kernel of both layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyq.ir import Node
from tinyq.ops.base import KernelCall, PackedConstant
from tinyq.ops.params import ConvShape
from tinyq.ops.reals import INCLUDES
from tinyq.target import Core

LARGEST_OPERAND = 255
"""Of an int8 integer less its zero point."""


@dataclass(frozen=True)
class AccumulateParams:
    """``ops/accumulate_s8.c.j2``; ``column_bytes`` of int8, ``wide`` elements of int16 a column."""

    shape: ConvShape
    weight_type: str
    dsp: bool
    columns: int
    column_bytes: int
    wide: int


def fits_accumulator(weights: npt.NDArray[np.int64]) -> bool:
    """Whether no partial sum of an output [O, ...] can leave int32."""
    largest = np.abs(weights.reshape(len(weights), -1)).sum(axis=1).max(initial=0)
    return int(largest) * LARGEST_OPERAND < 2**31


def accumulate_call(kernel: str, node: Node, shape: ConvShape, core: Core) -> KernelCall:
    """The call for ``node``, whose second constant-free operand holds the input's parameters."""
    weights = node.input(2).array
    volume = shape.kernel_h * shape.kernel_w * shape.in_c // shape.groups
    pixels = shape.out_h * shape.out_w
    columns = min(2, pixels)
    round4 = -(-volume // 4) * 4
    params = AccumulateParams(shape, f"{weights.dtype}_t", core.dsp, columns, round4, round4)
    tap = 1.4 if core.dsp else 2.8 if core.long_multiply else 5
    gather = 60 + 12 * shape.kernel_h + (4.5 if core.long_multiply else 7) * volume
    # Measured on cortex-m4, cortex-m3 and cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
    work = pixels * (shape.out_c * (tap * volume + 10) + shape.groups * gather)
    return KernelCall(
        kernel, "ops/accumulate_s8.c.j2", params,
        (PackedConstant("weights", weights, f"{weights.dtype}_t"),),
        scratch_bytes=round4 * (1 + 2 * columns), instructions=int(work), code_bytes=600,
        includes=INCLUDES, reason=f"columns of {volume}{', DSP' if core.dsp else ''}",
    )  # fmt: skip
