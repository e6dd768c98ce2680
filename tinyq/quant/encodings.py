"""Encodings of weights below eight bits: codes of 1 to 5 bits and the integers they stand for.

A tensor of integers is recognised from its values alone: divided by their greatest common divisor,
they are a signed integer of few bits, powers of two, sums of two powers, or a codebook. Encodings
are lossless: ``levels[code]`` is the integer itself, the common divisor included.

Layout of packed codes: a little-endian stream of bits. Code k occupies the bits k * bits to
(k + 1) * bits - 1, counted from the lowest bit of the first byte; the last byte is padded with
zeros. With 4 bits the lower half of a byte holds the earlier code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer]
Codes = npt.NDArray[np.uint8]

Kind = Literal["binary", "ternary", "int", "pot", "apot", "codebook"]

MOST_BITS = 5
"""Longer codes are stored as int8."""


@dataclass(frozen=True)
class Encoding:
    """Codes of ``bits`` bits; ``levels`` holds the integer of every code, unused codes 0.

    kind ``binary``: code 0 is -s, 1 is s, with s the common divisor. ``ternary``: as ``int`` of
    2 bits without its lowest value. ``int``: two's complement times s. ``pot``: the highest bit is
    the sign, the others an exponent e, magnitude (1 << e) >> 1. ``apot``: a sign and the two
    exponents of :func:`apot_magnitudes`. ``codebook``: the values in ascending order.
    """

    kind: Kind
    bits: int
    levels: tuple[int, ...]

    @property
    def name(self) -> str:
        """``ternary``, ``int4``, ``pot3``, ``codebook5``."""
        return self.kind if self.kind in ("binary", "ternary") else f"{self.kind}{self.bits}"

    def packed_bytes(self, count: int) -> int:
        """Bytes of ``count`` codes, without the levels."""
        return (count * self.bits + 7) // 8

    def encode(self, values: Integers) -> Codes:
        """The codes of integers that are all levels; ValueError for others."""
        order = np.argsort(self.levels, kind="stable")
        sorted_levels = np.asarray(self.levels, np.int64)[order]
        flat = values.astype(np.int64)
        at = np.minimum(np.searchsorted(sorted_levels, flat), len(order) - 1)
        if np.any(sorted_levels[at] != flat):
            raise ValueError(f"a value is no level of {self.name}")
        return np.asarray(order[at], np.uint8)

    def decode(self, codes: Codes) -> npt.NDArray[np.int64]:
        """The integers of codes."""
        return np.asarray(self.levels, np.int64)[codes]


def recognise(values: Integers) -> Encoding | None:
    """The encoding of fewest bits that holds ``values`` (of any shape); None beyond five bits.

    Among equal widths: integers before powers of two, sums of powers and codebooks.
    """
    distinct = np.unique(values)
    if distinct.size == 0 or distinct.size > 1 << MOST_BITS:
        return None
    step = math.gcd(*(int(v) for v in distinct)) or 1
    present = [int(v) // step for v in distinct]
    if present == [-1, 1]:
        return Encoding("binary", 1, (-step, step))
    for bits in range(1, MOST_BITS + 1):
        for kind, levels in _structured(bits, present):
            if set(present) <= set(levels):
                whole = [step * level for level in levels]
                # What lies beyond int8 is not present: with {-127, 0, 127} code 2 would be -254.
                return Encoding(kind, bits, tuple(v if -128 <= v <= 127 else 0 for v in whole))
        if len(present) <= 1 << bits:
            padding = (0,) * ((1 << bits) - len(present))
            return Encoding("codebook", bits, (*(int(v) for v in distinct), *padding))
    return None


def _structured(bits: int, present: list[int]) -> list[tuple[Kind, tuple[int, ...]]]:
    """The level sets of ``bits`` bits, by code, that are not codebooks."""
    if bits < 2:
        return []
    half = 1 << (bits - 1)
    kind: Kind = "ternary" if bits == 2 and min(present) >= -1 else "int"
    found: list[tuple[Kind, tuple[int, ...]]] = [(kind, (*range(half), *range(-half, 0)))]
    if bits in (3, 4):
        found.append(("pot", _signed(tuple((1 << e) >> 1 for e in range(half)))))
    if bits in (4, 5):
        found.append(("apot", _signed(apot_magnitudes(bits))))
    return found


def _signed(magnitudes: tuple[int, ...]) -> tuple[int, ...]:
    return (*magnitudes, *(-m for m in magnitudes))


def apot_magnitudes(bits: Literal[4, 5] | int) -> tuple[int, ...]:
    """Magnitudes of additive powers of two by their code of ``bits`` - 1 bits.

    4 bits: the lower two bits choose 0, 1, 4 or 8, the next one adds 2. 5 bits: two exponents i
    (low) and j of two bits, p(i) + 2 * p(j) with p = 0, 1, 4, 16. Source of the sets: Li et al.,
    Additive Powers-of-Two Quantization, 2020, and its published code.
    """
    if bits == 4:
        return tuple(a + b for b in (0, 2) for a in (0, 1, 4, 8))
    if bits == 5:
        powers = (0, 1, 4, 16)
        return tuple(i + 2 * j for j in powers for i in powers)
    raise ValueError(f"sums of powers of two have 4 or 5 bits here, not {bits}")


def pack(codes: Codes, bits: int) -> Codes:
    """Codes (flattened) as the stream of bits described above."""
    planes = (codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(data: Codes, bits: int, count: int) -> Codes:
    """The first ``count`` codes of a stream."""
    planes = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    return np.asarray((planes << np.arange(bits, dtype=np.uint8)).sum(axis=1), np.uint8)
