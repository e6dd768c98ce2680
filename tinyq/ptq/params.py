"""Scales and zero points: from a range to integers and back (affine, round half to even)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
DTYPE_RANGE = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ActivationParams:
    """Per-tensor affine parameters: real = (integer - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: str

    @property
    def real_range(self) -> tuple[float, float]:
        """Lowest and highest real value that the type can hold."""
        low, high = DTYPE_RANGE[self.dtype]
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    def quantize(self, x: Floats) -> npt.NDArray[np.int32]:
        """Integers of ``x``, as ONNX QuantizeLinear computes them (float32, half to even)."""
        low, high = DTYPE_RANGE[self.dtype]
        q = np.rint(x / np.float32(self.scale)) + self.zero_point
        integers: npt.NDArray[np.int32] = np.clip(q, low, high).astype(np.int32)
        return integers


def activation_params(low: float, high: float, dtype: str, symmetric: bool) -> ActivationParams:
    """Parameters whose range covers ``[low, high]`` and holds zero exactly.

    A range of nothing but zero gets the scale 1.0. int16 is always symmetric, as int16 kernels
    have no zero point. A symmetric uint8 tensor has the zero point 128, or 0 if no value is
    negative.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    qmin, qmax = DTYPE_RANGE[dtype]
    middle = 128 if dtype == "uint8" else 0
    if low == high:
        return ActivationParams(1.0, middle if symmetric else 0, dtype)
    if symmetric or dtype == "int16":
        if dtype == "uint8" and low == 0.0:
            return ActivationParams(_as_scale(high / qmax), 0, dtype)
        return ActivationParams(_as_scale(max(-low, high) / (qmax - middle)), middle, dtype)
    scale = _as_scale((high - low) / (qmax - qmin))
    zero_point = int(np.clip(np.rint(qmin - low / scale), qmin, qmax))
    return ActivationParams(scale, zero_point, dtype)


def _as_scale(value: float) -> float:
    return float(np.float32(max(value, _SMALLEST_SCALE)))


FIXED_OUTPUT: dict[str, dict[str, ActivationParams]] = {
    # The outputs' bounds are known, so the field fixes these scales (TFLite's rules too).
    op: {
        "int8": ActivationParams(1 / 256, -128, "int8"),
        "uint8": ActivationParams(1 / 256, 0, "uint8"),
        "int16": ActivationParams(1 / 32768, 0, "int16"),
    }
    for op in ("Softmax", "Sigmoid")
} | {
    "Tanh": {
        "int8": ActivationParams(1 / 128, 0, "int8"),
        "uint8": ActivationParams(1 / 128, 128, "uint8"),
        "int16": ActivationParams(1 / 32768, 0, "int16"),
    }
}


def weight_scales(weight: Floats, bits: int, per_channel: bool, search: bool) -> Floats:
    """Symmetric steps of a weight tensor ``[O, ...]``: shape [O], equal if not per channel.

    Args:
        weight: output channels first.
        bits: the integers are in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
        per_channel: one step for each output channel.
        search: try 80 clippings and keep the least squared error, instead of max|w|.
    """
    rows = weight.reshape(weight.shape[0], -1) if per_channel else weight.reshape(1, -1)
    levels = 2 ** (bits - 1) - 1
    largest = np.abs(rows).max(axis=1) if rows.size else np.zeros(rows.shape[0], np.float32)
    steps = np.where(largest > 0, largest / levels, 1.0).astype(np.float32)
    steps = np.maximum(steps, np.float32(_SMALLEST_SCALE))
    if search:
        steps = _search_steps(rows, steps, levels)
    return np.broadcast_to(steps, (weight.shape[0],)).astype(np.float32)


def _search_steps(rows: Floats, steps: Floats, levels: int) -> Floats:
    best, best_error = steps, np.full(len(steps), np.inf)
    for factor in np.linspace(1.0, 0.21, 80, dtype=np.float32):
        trial = (steps * factor).astype(np.float32)
        q = np.clip(np.rint(rows / trial[:, None]), -levels, levels)
        error = np.square(q * trial[:, None] - rows, dtype=np.float64).sum(axis=1)
        better = error < best_error
        best = np.where(better, trial, best)
        best_error = np.where(better, error, best_error)
    return best.astype(np.float32)


def round_weights(weight: Floats, steps: Floats, bits: int) -> npt.NDArray[np.int8]:
    """Nearest integers of ``weight`` [O, ...] at ``steps`` [O], symmetric, half to even."""
    levels = 2 ** (bits - 1) - 1
    shaped = steps.reshape(-1, *([1] * (weight.ndim - 1)))
    integers: npt.NDArray[np.int8] = np.clip(np.rint(weight / shaped), -levels, levels).astype(
        np.int8
    )
    return integers
