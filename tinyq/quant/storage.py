"""Tensors of few values in memory: codes of 1, 2 or 4 bits, several to a byte.

A row of elements is cut into groups that fill four bytes. Byte i of a group holds its elements i,
i + 4, i + 8 and so on, the first in the lowest bits, so that one mask takes four elements out of a
word whatever the order of its bytes. The last group of a row is padded with zeros: every row begins
at a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]
Uint8 = npt.NDArray[np.uint8]

WIDTHS = (1, 2, 4)
"""Bits of a code."""

WORD = 4
"""Bytes of a group."""


@dataclass(frozen=True)
class Storage:
    """Code k, of ``bits`` bits, stands for the int8 ``levels[k]``; levels increase."""

    bits: int
    levels: tuple[int, ...]

    @classmethod
    def of(cls, values: Iterable[int]) -> Storage | None:
        """The narrowest codes for these values, None where they are too many."""
        levels = tuple(sorted(set(values)))
        bits = next((b for b in WIDTHS if len(levels) <= 1 << b), None)
        return cls(bits, levels) if bits is not None and levels else None

    @property
    def is_consecutive(self) -> bool:
        """Whether levels are a run of integers: no table is needed then."""
        return self.levels[-1] - self.levels[0] < len(self.levels)

    @property
    def group(self) -> int:
        """Elements of a group."""
        return 8 * WORD // self.bits

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row."""
        return -(-elements // self.group) * WORD

    def codes(self) -> Uint8:
        """The code of every int8 [256], indexed by its bit pattern; 0 where it is no level."""
        table = np.zeros(256, np.uint8)
        table[np.array(self.levels, np.int8).view(np.uint8)] = np.arange(len(self.levels))
        return table

    def pack(self, rows: Int8) -> Int8:
        """Rows [n, elements] as int8 [n, row_bytes]."""
        codes: Uint8 = self.codes()[rows.view(np.uint8)]
        return self.pack_codes(codes)

    def pack_codes(self, codes: Uint8) -> Int8:
        """Rows of codes [n, elements] as int8 [n, row_bytes]."""
        count, elements = codes.shape
        groups = -(-elements // self.group)
        padded = np.zeros((count, groups * self.group), np.uint8)
        padded[:, :elements] = codes
        by_byte = padded.reshape(count, groups, 8 // self.bits, WORD)
        shifts = self.bits * np.arange(8 // self.bits, dtype=np.uint8)[:, None]
        packed: Uint8 = np.bitwise_or.reduce(by_byte << shifts, axis=2).astype(np.uint8)
        joined: Int8 = packed.reshape(count, -1).view(np.int8)
        return joined

    def unpack(self, packed: Int8, elements: int) -> Int8:
        """The rows [n, elements] of packed ones."""
        count = len(packed)
        words = packed.view(np.uint8).reshape(count, -1, 1, WORD)
        shifts = self.bits * np.arange(8 // self.bits, dtype=np.uint8)[:, None]
        codes = ((words >> shifts) & ((1 << self.bits) - 1)).reshape(count, -1)[:, :elements]
        table = np.zeros(1 << self.bits, np.int8)
        table[: len(self.levels)] = self.levels
        elements_of: Int8 = table[codes]
        return elements_of
