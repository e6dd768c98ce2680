"""Integer arithmetic: requantization oracles, synthesis of its parameters, proof."""

from tinyq.quant.fixed_point import FixedPointLinear, RealLinear, Rounding
from tinyq.quant.requantize import (
    FIX_LIMIT,
    Fix,
    Guard,
    Requant,
    RequantProof,
    Ties,
    apply,
    prove,
    raw_levels,
)
from tinyq.quant.rounding import (
    OrtLinear,
    OrtMatMulFloatBias,
    clamp_levels,
    ort_bias,
    ort_scale,
    quantize_linear,
)
from tinyq.quant.staircase import (
    Oracle,
    Staircase,
    accumulator_bounds,
    accumulator_strides,
    build_staircase,
)
from tinyq.quant.synthesis import synthesize, synthesize_alike, with_guard
from tinyq.quant.wide import FLOAT32_UNIT, WideLinear, WideRequant, wide_requant

__all__ = [
    "FIX_LIMIT",
    "FLOAT32_UNIT",
    "Fix",
    "FixedPointLinear",
    "Guard",
    "Oracle",
    "OrtLinear",
    "OrtMatMulFloatBias",
    "RealLinear",
    "Requant",
    "RequantProof",
    "Rounding",
    "Staircase",
    "Ties",
    "WideLinear",
    "WideRequant",
    "accumulator_bounds",
    "accumulator_strides",
    "apply",
    "build_staircase",
    "clamp_levels",
    "ort_bias",
    "ort_scale",
    "prove",
    "quantize_linear",
    "raw_levels",
    "synthesize",
    "synthesize_alike",
    "wide_requant",
    "with_guard",
]
