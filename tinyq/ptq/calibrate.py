"""Calibrators: from a tensor's histogram to the range that its integers cover."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinyq.ptq.observe import HALF_BINS, Histogram
from tinyq.ptq.params import activation_params

Range = tuple[float, float]
_KL_BINS = 2048  # with 128 levels: the setting at which the entropy calibrator has candidates
_KL_LEVELS = 128
_MSE_STEPS = 64


def tensor_range(
    histogram: Histogram, calibrator: str, percentile: float, dtype: str, symmetric: bool
) -> Range:
    """Range of a tensor by one of the calibrators ``max``, ``percentile``, ``entropy``, ``mse``."""
    if histogram.limit == 0.0 or calibrator == "max":
        return histogram.low, histogram.high
    if calibrator == "percentile":
        return percentile_range(histogram, percentile, symmetric)
    if calibrator == "entropy":
        return entropy_range(histogram)
    return mse_range(histogram, dtype, symmetric)


def _with_zeros(histogram: Histogram) -> npt.NDArray[np.int64]:
    counts = histogram.counts.copy()
    counts[HALF_BINS] += histogram.zeros
    return counts


def _inside(histogram: Histogram, low: float, high: float) -> Range:
    return max(low, histogram.low), min(high, histogram.high)


def percentile_range(histogram: Histogram, percentile: float, symmetric: bool) -> Range:
    """The range that ``percentile`` percent of the values lie in, to the width of a bin.

    What is cut is split evenly between both ends, or taken by magnitude if ``symmetric``.
    """
    counts, edges = _with_zeros(histogram), histogram.edges
    keep = percentile / 100
    if symmetric:
        folded = counts[HALF_BINS:] + counts[:HALF_BINS][::-1]
        reached = np.cumsum(folded) / histogram.total
        bound = edges[HALF_BINS + 1 + int(np.searchsorted(reached, keep - 1e-12))]
        return _inside(histogram, -float(bound), float(bound))
    reached = np.cumsum(counts) / histogram.total
    cut = (1 - keep) / 2
    high = int(np.searchsorted(reached, 1 - cut - 1e-12))
    low = int(np.searchsorted(reached, cut, side="right"))
    return _inside(histogram, float(edges[low]), float(edges[high + 1]))


def entropy_range(histogram: Histogram) -> Range:
    """The clipping whose quantized distribution has the least KL divergence from the original.

    Symmetric windows around zero grow bin by bin; inside each, what is clipped is counted at the
    ends of the reference, and the candidate spreads each level's count over its occupied bins
    (Migacz, "8-bit Inference with TensorRT", 2017).
    """
    counts = _with_zeros(histogram).reshape(_KL_BINS, -1).sum(axis=1).astype(np.float64)
    edges = np.linspace(-histogram.limit, histogram.limit, _KL_BINS + 1)
    middle = _KL_BINS // 2
    best, bound = np.inf, histogram.limit
    for half in range(_KL_LEVELS // 2, middle + 1):
        divergence = _kl(counts, middle - half, min(middle + half + 1, _KL_BINS))
        if divergence < best:
            best, bound = divergence, float(edges[min(middle + half + 1, _KL_BINS)])
    return _inside(histogram, -bound, bound)


def _kl(counts: npt.NDArray[np.float64], start: int, stop: int) -> float:
    window = counts[start:stop]
    reference = window.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    occupied = reference > 0
    # Levels of equal width, to a bin: a last level that took the remainder would be too cheap.
    level = np.arange(len(window)) * _KL_LEVELS // len(window)
    mass = np.bincount(level, weights=window, minlength=_KL_LEVELS)
    bins = np.bincount(level, weights=occupied, minlength=_KL_LEVELS)
    candidate = np.where(occupied, (mass / np.maximum(bins, 1))[level], 0.0)
    p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1.0)
    # An occupied bin that the candidate lost has no finite divergence: count it as one value.
    q = np.where(occupied & (q == 0), 1 / reference.sum(), q)
    p, q = p[occupied], q[occupied]
    return float(np.sum(p * np.log(p / q)))


def mse_range(histogram: Histogram, dtype: str, symmetric: bool) -> Range:
    """The clipping with the least mean squared error of the quantized values.

    Both ends shrink together, then each alone, in steps of 1/64 of the full range.
    """
    centers = histogram.centers
    used = histogram.counts > 0
    values, weights = centers[used], histogram.counts[used].astype(np.float64)
    low, high = histogram.low, histogram.high

    def loss(a: float, b: float) -> float:
        return _quantization_error(values, weights, min(a, 0.0), max(b, 0.0), dtype, symmetric)

    factors = np.linspace(1.0, 1 / _MSE_STEPS, _MSE_STEPS)
    both = min(factors, key=lambda f: loss(low * f, high * f))
    best_high = min(factors, key=lambda f: loss(low * both, high * f))
    best_low = min(factors, key=lambda f: loss(low * f, high * best_high))
    return float(low * best_low), float(high * best_high)


def _quantization_error(
    values: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    low: float,
    high: float,
    dtype: str,
    symmetric: bool,
) -> float:
    params = activation_params(low, high, dtype, symmetric)
    bottom, top = params.real_range
    if dtype == "int16":
        # Bins are wider than a step: take the noise of uniform rounding, and what is clipped.
        error = np.full(len(values), params.scale**2 / 12)
        clipped = np.clip(values, bottom, top) - values
        return float(np.sum(weights * (error + np.square(clipped))))
    rounded = np.clip(np.rint(values / params.scale) * params.scale, bottom, top)
    return float(np.sum(weights * np.square(rounded - values)))
