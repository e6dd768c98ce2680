"""Oracles: what a framework's float arithmetic gives for a raw accumulator.

Each is a frozen dataclass called with raw accumulators int64[C, n] (the plain sum of x * w over
int8 values, no zero point and no bias) that returns outputs int64[C, n]. All arithmetic is float32
in the order in which onnxruntime does it; docs/arithmetic.md says how each rule was found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyq.quant.staircase import Int64

Float32 = NDArray[np.float32]


def ort_scale(x_scale: float, w_scale: Float32, y_scale: float, channels: int) -> Float32:
    """Return the multiplier float32[C] of QLinearConv and QGemm: (x_scale * w_scale) / y_scale.

    Both operations round to float32, in this order. ``w_scale`` is float32[] or float32[C].
    """
    product = np.float32(x_scale) * np.asarray(w_scale, np.float32)
    return np.broadcast_to(product / np.float32(y_scale), (channels,)).astype(np.float32)


def ort_bias(bias: Float32, x_scale: float, w_scale: Float32) -> Int64:
    """Quantize a float bias [C] as onnxruntime does for a convolution: int64[C] in int32's range.

    round_half_even(bias / (x_scale * w_scale)) with both operations in float32.
    """
    scale = np.float32(x_scale) * np.asarray(w_scale, np.float32)
    levels: Int64 = np.rint(np.asarray(bias, np.float32) / scale).astype(np.int64)
    return levels


def quantize_linear(
    real: Float32, scale: np.float32, zero_point: int, qmin: int, qmax: int
) -> Int64:
    """ONNX QuantizeLinear: divide in float32, round half to even, add the zero point, saturate."""
    return _saturate(np.rint(real / scale), zero_point, qmin, qmax)


def _saturate(levels: Float32, zero_point: int, qmin: int, qmax: int) -> Int64:
    clipped = np.clip(levels, qmin - zero_point, qmax - zero_point)
    outputs: Int64 = clipped.astype(np.int64) + zero_point
    return outputs


@dataclass(frozen=True, eq=False)
class OrtLinear:
    """QLinearConv and QGemm with a quantized output.

    y = clamp(round_half_even(float32(acc + offset) * scale) + zero_point, qmin, qmax)

    scale: float32[C], see :func:`ort_scale`. bias, offset: int64[C]; what is added to the raw
    accumulator is ``bias + offset``, where the offset is ``-x_zero_point * sum(w)``.
    A fused Relu or Clip is a narrower [qmin, qmax].
    """

    scale: Float32
    bias: Int64
    offset: Int64
    zero_point: int
    qmin: int = -128
    qmax: int = 127

    def __call__(self, acc: Int64) -> Int64:
        """Outputs int64[C, n] of raw accumulators int64[C, n]."""
        real = (acc + (self.bias + self.offset)[:, None]).astype(np.float32)
        levels = np.rint(real * self.scale[:, None])
        return _saturate(levels, self.zero_point, self.qmin, self.qmax)


@dataclass(frozen=True, eq=False)
class OrtMatMulFloatBias:
    """MatMulIntegerToFloat, then Add of a float bias, then QuantizeLinear.

    r = epilogue(float32(acc + offset) * scale + bias)
    y = clamp(round_half_even(r / y_scale) + zero_point, qmin, qmax)

    scale: float32[C], ``x_scale * w_scale`` rounded to float32. bias: float32[C], dequantized.
    offset: int64[C], ``-x_zero_point * sum(w)``. Every operation rounds to float32.
    real_min, real_max: a Relu (0, inf) or Clip in real units before the quantization.
    """

    scale: Float32
    bias: Float32
    offset: Int64
    y_scale: float
    zero_point: int
    qmin: int = -128
    qmax: int = 127
    real_min: float = -np.inf
    real_max: float = np.inf

    def __call__(self, acc: Int64) -> Int64:
        """Outputs int64[C, n] of raw accumulators int64[C, n]."""
        product = (acc + self.offset[:, None]).astype(np.float32) * self.scale[:, None]
        real = np.clip(
            product + self.bias[:, None], np.float32(self.real_min), np.float32(self.real_max)
        )
        return quantize_linear(
            real, np.float32(self.y_scale), self.zero_point, self.qmin, self.qmax
        )


def clamp_levels(
    real_min: float,
    real_max: float,
    *,
    scale: float,
    zero_point: int,
    qmin: int = -128,
    qmax: int = 127,
) -> tuple[int, int]:
    """Output levels (qmin, qmax) that a Relu or Clip in real units before quantizing leaves.

    Quantizing is monotone, so clipping before it equals clamping to the quantized limits after it.
    """
    limits = np.array([real_min, real_max], np.float32)
    low, high = quantize_linear(limits, np.float32(scale), zero_point, qmin, qmax)
    return int(low), int(high)
