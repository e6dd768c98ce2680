"""What kernels need to compute an oracle's rule where a guard asks for it (tinyq.quant.Guard)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tinyq.quant import (
    FixedPointLinear,
    Guard,
    OrtLinear,
    OrtMatMulFloatBias,
    Requant,
    Rounding,
    Staircase,
)

Rule = Literal["float", "float_bias", "once", "twice"]
Int32 = npt.NDArray[np.int32]

_SLOW = {"float": 130, "float_bias": 330, "once": 45, "twice": 45}
"""Instructions of one accumulator, counted on cortex-m4 with arm-none-eabi-gcc 12.2 -O2."""

_INT32 = 2**31


@dataclass(frozen=True)
class GuardParams:
    """A guard for templates: ``tinyq_level_RULE`` of tinyq_reals.h decides where ``mask`` is 0.

    Behind the ``channels`` entries of the requantization lie as many with the rule's own numbers,
    of some rules twice as many. ``y_scale``: the bits of a float32.
    """

    rule: Rule
    mask: int
    channels: int
    zero_point: int
    y_scale: int = 0


def has_rule(oracle: object, stair: Staircase) -> bool:
    """Whether kernels can compute an oracle, whose own sums must then fit int32."""
    if not isinstance(oracle, OrtLinear | OrtMatMulFloatBias | FixedPointLinear):
        return False
    offset = oracle.offset + (0 if isinstance(oracle, OrtMatMulFloatBias) else oracle.bias)
    low, high = stair.lo + offset, stair.hi + offset
    if isinstance(oracle, FixedPointLinear):
        left = np.maximum(oracle.shift, 0)
        low, high = low << left, high << left
    return bool(low.min() >= -_INT32 and high.max() < _INT32)


def guard_params(requant: Requant) -> GuardParams | None:
    """The scalars of a requantization's guard."""
    guard = requant.guard
    if guard is None:
        return None
    oracle = guard.oracle
    assert isinstance(oracle, OrtLinear | OrtMatMulFloatBias | FixedPointLinear)
    scale = oracle.y_scale if isinstance(oracle, OrtMatMulFloatBias) else 0.0
    bits = int(np.float32(scale).view(np.uint32))
    mask, channels = guard.mask(requant.post_shift), len(requant.multiplier)
    return GuardParams(_rule_of(guard), mask, channels, oracle.zero_point, bits)


def guard_headers(requant: Requant) -> tuple[str, ...]:
    """What declares the rule."""
    return ("tinyq_reals.h",) if requant.guard is not None else ()


def rule_pairs(requant: Requant) -> tuple[Int32, ...]:
    """The rule's own numbers, int32[C, 2] each, in the order in which tinyq_reals.h reads them."""
    if requant.guard is None:
        return ()
    oracle = requant.guard.oracle
    if isinstance(oracle, FixedPointLinear):
        first = (oracle.bias + oracle.offset, oracle.multiplier)
        return _pairs(*first), _pairs(oracle.shift, np.zeros_like(oracle.shift))
    if isinstance(oracle, OrtMatMulFloatBias):
        bias = oracle.bias.astype(np.float32).view(np.int32)
        return _pairs(oracle.offset, _bits(oracle.scale)), _pairs(bias, np.zeros_like(bias))
    assert isinstance(oracle, OrtLinear)
    return (_pairs(oracle.bias + oracle.offset, _bits(oracle.scale)),)


def guard_cost(requant: Requant) -> float:
    """Instructions that the rule takes of an output, on average over all accumulators alike."""
    guard = requant.guard
    if guard is None:
        return 0.0
    share = max(requant.proof.guarded / max(1, requant.proof.reachable), 2.0**-guard.bits)
    return share * _SLOW[_rule_of(guard)]


def _rule_of(guard: Guard) -> Rule:
    if isinstance(guard.oracle, FixedPointLinear):
        return "once" if guard.oracle.rounding is Rounding.ONCE else "twice"
    return "float_bias" if isinstance(guard.oracle, OrtMatMulFloatBias) else "float"


def _bits(reals: npt.NDArray[np.float32]) -> Int32:
    return reals.astype(np.float32).view(np.int32)


def _pairs(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> Int32:
    return np.stack([first, second], axis=1).astype(np.int32)
