"""What the kernels for the DSP extension share: refusals, corrections, unrolling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyq.ir import Node
from tinyq.ops.base import PackedConstant, Refusal
from tinyq.ops.dsp_cost import Epilogue
from tinyq.ops.dsp_params import Correction, Corrections
from tinyq.ops.guards import guard_cost
from tinyq.ops.packing import Int8, MatmulMode, Weights, allows_mixed
from tinyq.quant import Requant, raw_levels
from tinyq.target import Core

INCLUDES = ("tinyq_dsp.h",)

_SHORT_COLUMN = 12
"""Columns up to this length multiply faster by int16 weights, at little cost of flash."""


@dataclass(frozen=True)
class Effort:
    """How much code a kernel may spend: ``suffix`` of its name, largest unrolled loop body."""

    suffix: str
    steps: int
    outputs: int


FAST = Effort("", 16, 6)
SHORT = Effort("_short", 4, 2)
COMPACT = Effort("_compact", 1, 1)
EFFORTS = (FAST, SHORT, COMPACT)


def refuses(core: Core) -> Refusal:
    """Why no kernel of this kind can serve, or an empty text."""
    return "" if core.dsp else "the core has no DSP extension"


def epilogue_of(requant: Requant) -> Epilogue:
    """What follows a sum, for the cost model."""
    limits = (requant.qmin, requant.qmax)
    guard = 0 if requant.guard is None else 2 + round(guard_cost(requant))
    return Epilogue(requant.pre_shift, *limits, requant.ties, guard)


def corrections_of(requant: Requant) -> Corrections:
    """The fixes of a requantization as outputs to replace; without those that the clamp hides."""
    channels = len(requant.multiplier)
    found = []
    for fix in requant.fixes:
        acc = np.full(channels, fix.accumulator, np.int64)
        level = int(raw_levels(requant, acc)[fix.channel])
        before, after = (
            min(max(value, requant.qmin), requant.qmax) for value in (level, level + fix.delta)
        )
        if before != after:
            found.append(Correction(fix.channel, fix.accumulator, before, after))
    return tuple(found)


def largest_unroll(steps: int, limit: int) -> int:
    """The largest divisor of ``steps`` up to ``limit``."""
    return max(u for u in range(1, min(limit, max(steps, 1)) + 1) if steps % u == 0)


def mode_for(weight_groups: Weights, length: int, effort: Effort) -> MatmulMode:
    """Layout of weights [groups, O, K] for columns of ``length``."""
    if weight_groups.dtype == np.int16 or (length <= _SHORT_COLUMN and effort is FAST):
        return "wide"
    return "mixed" if all(allows_mixed(w) for w in weight_groups) else "plain"


def weights_of(node: Node) -> Weights:
    """The weights as the graph holds them."""
    array = node.input(1).array
    if array.dtype == np.int16:
        return array.astype(np.int16, copy=False)
    return array.astype(np.int8, copy=False)


def packed(weights: Int8) -> PackedConstant:
    """Weights as bytes."""
    return PackedConstant("weights", weights, "int8_t")
