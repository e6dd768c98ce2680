"""Level sets: the integers that a quantized value may take, and how they are found.

Every set here is integers times one scale, so that any network quantized with it is an ordinary
integer network: a standard runtime computes it, and a kernel may store an index, a sign and an
exponent, or two exponents instead. A set found in data (k-means, quantile, companding, a user's
list) is rounded to such integers first, and trained on what it became.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyq.errors import error

Values = npt.NDArray[np.float64]

# Codebooks found in data become integers up to this: int8 weights, symmetric.
CODEBOOK_MAX = 127


@dataclass(frozen=True)
class LevelSet:
    """Sorted distinct integers that one tensor's values may take, before its scale.

    ``name`` is the quantizer's; ``uniform`` says that every integer from the lowest to the highest
    is a level, so that rounding replaces searching.
    """

    name: str
    integers: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.integers) < 2 or list(self.integers) != sorted(set(self.integers)):
            raise ValueError(f"levels must be sorted, distinct and at least two: {self.integers}")

    @property
    def largest(self) -> int:
        """Largest magnitude: the clipping threshold over it is the scale."""
        return max(abs(self.integers[0]), abs(self.integers[-1]))

    @property
    def uniform(self) -> bool:
        """Whether the levels are consecutive integers."""
        return self.integers[-1] - self.integers[0] + 1 == len(self.integers)

    @property
    def container_bits(self) -> int:
        """Bits of the smallest two's complement integer that holds every level."""
        low, high = self.integers[0], self.integers[-1]
        return 1 + max(int(high).bit_length(), int(-low - 1).bit_length() if low < 0 else 0)


def _mirrored(magnitudes: Iterable[int]) -> tuple[int, ...]:
    positive = sorted(set(magnitudes))
    return tuple(sorted({-m for m in positive} | set(positive)))


def _need_bits(bits: int, low: int, high: int, what: str) -> None:
    if not low <= bits <= high:
        raise error("TQ652", f"{what} has {low} to {high} bits, not {bits}")


def uniform(bits: int, *, signed: bool = True, narrow: bool = True) -> LevelSet:
    """Consecutive integers: 2^bits of them, or one fewer when ``narrow`` (symmetric) and signed."""
    _need_bits(bits, 2, 16, "the uniform quantizer")
    if not signed:
        return LevelSet("uniform", tuple(range(2**bits)))
    high = 2 ** (bits - 1) - 1
    return LevelSet("uniform", tuple(range(-high if narrow else -high - 1, high + 1)))


def binary() -> LevelSet:
    """Minus one and one: no zero (XNOR-Net)."""
    return LevelSet("binary", (-1, 1))


def ternary() -> LevelSet:
    """Minus one, zero, one (TWN)."""
    return LevelSet("ternary", (-1, 0, 1))


def pot_magnitudes(bits: int) -> tuple[int, ...]:
    """Zero and powers of two: 2^(bits-1) magnitudes, the sign taking one bit (INQ)."""
    return (0, *(2**k for k in range(2 ** (bits - 1) - 1)))


def pot(bits: int) -> LevelSet:
    """Signed powers of two of ``bits`` bits, 2 to 5; 4 fits int8, 5 int16.

    INQ's rule counts one exponent less at each width, see :func:`inq`.
    """
    _need_bits(bits, 2, 5, "the power-of-two quantizer")
    return LevelSet("pot", _mirrored(pot_magnitudes(bits)))


def inq(bits: int) -> LevelSet:
    """INQ's powers of two: n1 - n2 + 1 = 2^(bits-2) exponents and zero (Zhou et al., 2017)."""
    _need_bits(bits, 3, 6, "INQ")
    return LevelSet("inq", _mirrored((0, *(2**k for k in range(2 ** (bits - 2))))))


def inq_exponent(largest: float) -> int:
    """INQ's n1 for a tensor whose largest magnitude is ``largest``: floor(log2(4/3 of it))."""
    return math.floor(math.log2(4.0 * largest / 3.0)) if largest > 0.0 else 0


def apot_magnitudes(bits: int) -> tuple[int, ...]:
    """Sums of powers of two with ``2^(bits-1)`` magnitudes, in units of the smallest (APoT).

    The published code builds magnitudes of m = bits - 1 bits: m = 2 is one set of powers, m even
    two or three interleaved sets, m odd adds one power between the second and third of each set.
    The authors stop at m = 6; m = 7 continues their pattern. Row ``bits + 1`` is also the unsigned
    set of activations at ``bits`` bits.
    """
    _need_bits(bits, 2, 8, "additive powers of two")
    sets: dict[int, list[list[int]]] = {
        1: [[0, 1]],
        2: [[0, 1, 2, 4]],
        3: [[0, 1, 4, 8], [0, 2]],
        4: [[0, 2, 8, 32], [0, 1, 4, 16]],
        5: [[0, 2, 16, 64], [0, 1, 8, 32], [0, 4]],
        6: [[0, 4, 32, 256], [0, 2, 16, 128], [0, 1, 8, 64]],
        7: [[0, 4, 64, 512], [0, 2, 32, 256], [0, 1, 16, 128], [0, 8]],
    }
    sums = {sum(parts) for parts in itertools.product(*sets[bits - 1])}
    return tuple(sorted(sums))


def apot(bits: int) -> LevelSet:
    """Signed additive powers of two of ``bits`` bits; 2 bits are ternary, 7 and 8 need int16."""
    return LevelSet("apot", _mirrored(apot_magnitudes(bits)))


def apot_unsigned(bits: int) -> LevelSet:
    """Additive powers of two for values that are never negative: 2^bits magnitudes, bits <= 5."""
    _need_bits(bits, 2, 5, "additive power-of-two activations")  # 6 bits reach 448: not uint8
    return LevelSet("apot", apot_magnitudes(bits + 1))


def pot_unsigned(bits: int) -> LevelSet:
    """Zero and powers of two for values that are never negative: 2^bits magnitudes, bits <= 3."""
    _need_bits(bits, 2, 3, "power-of-two activations")
    return LevelSet("pot", pot_magnitudes(bits + 1))


def to_integers(values: Iterable[float], largest: int = CODEBOOK_MAX) -> tuple[int, ...]:
    """Round real levels to integers so that the largest magnitude is ``largest``."""
    reals = np.asarray(list(values), dtype=np.float64)
    if not np.isfinite(reals).all() or not np.abs(reals).max(initial=0.0) > 0.0:
        raise error("TQ652", "codebook levels must be finite and not all zero")
    integers = np.rint(reals * (largest / np.abs(reals).max()))
    return tuple(sorted({int(v) for v in integers}))


def kmeans(values: Values, bits: int, *, iterations: int = 1000) -> tuple[LevelSet, float]:
    """Centroids of Lloyd's algorithm in one dimension, and the clipping threshold they span.

    Starts at quantile means, which makes it deterministic and leaves no cluster empty at first. On
    sorted data a cluster is a slice and its sum a difference of two partial sums.
    """
    data = _sample(values)
    partial = np.concatenate([[0.0], np.cumsum(data)])
    centroids = _bin_means(data, 2**bits)
    for _ in range(iterations):
        cuts = np.searchsorted(data, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], cuts, [len(data)]])
        count = np.diff(ends)
        moved = np.where(count > 0, np.diff(partial[ends]) / np.maximum(count, 1), centroids)
        settled = np.allclose(moved, centroids, rtol=0.0, atol=1e-7 * np.abs(moved).max())
        centroids = moved
        if settled:
            break
    return LevelSet("kmeans", to_integers(centroids)), float(np.abs(centroids).max())


def quantile(values: Values, bits: int) -> tuple[LevelSet, float]:
    """Bins that hold equally many values, each at its mean, and the threshold they span."""
    means = _bin_means(_sample(values), 2**bits)
    return LevelSet("quantile", to_integers(means)), float(np.abs(means).max())


def codebook(source: Sequence[float] | Callable[[int], float], bits: int) -> LevelSet:
    """Return a user's levels: a list of reals, or a rule giving the level of each code 0..2^bits-1.

    Whole numbers within int16 stay as they are; anything else is rounded to int8 by its largest.
    """
    values = [float(source(c)) for c in range(2**bits)] if callable(source) else list(source)
    if len(set(values)) < 2 or len(set(values)) > 2**bits:
        raise error("TQ652", f"a codebook of {bits} bits has 2 to {2**bits} distinct levels")
    whole = all(float(v).is_integer() and abs(v) < 2**15 for v in values)
    integers = tuple(sorted({int(v) for v in values})) if whole else to_integers(values)
    return LevelSet("codebook", integers)


def _sample(values: Values, limit: int = 200_000) -> Values:
    """Sorted finite values as float64, thinned evenly to ``limit``."""
    data = np.sort(np.asarray(values, np.float64).ravel())
    if not np.isfinite(data).all():
        raise error("TQ653", "values hold NaN or infinity")
    return data if len(data) <= limit else data[:: len(data) // limit + 1]


def _bin_means(data: Values, count: int) -> Values:
    """Means of ``count`` equally filled bins of sorted data; equal neighbours are merged later."""
    return np.array([part.mean() for part in np.array_split(data, count) if len(part)])


def sqnr_db(values: npt.ArrayLike, quantized: npt.ArrayLike) -> float:
    """Signal to quantization noise ratio in decibels; infinite without noise."""
    signal, other = (np.asarray(a, np.float64) for a in (values, quantized))
    noise = float(np.square(signal - other).sum())
    return 10.0 * math.log10(float(np.square(signal).sum()) / noise) if noise else math.inf
