"""Parameters of the kernels that read packed weights: what ``p`` is in their templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyq.ops.params import Conv2dParams, RequantParams


@dataclass(frozen=True)
class UnpackParams:
    """``ops/unpack_codes.c.j2``; ``mixed``: two channels in a halfword, see pack_matmul.

    ``paired``: the table is of all pairs of codes.
    """

    bits: int
    mixed: bool
    paired: bool


@dataclass(frozen=True)
class PackedParams:
    """``ops/packed_s8.c.j2``: ``blocks`` of ``channels`` outputs; constants: codes, int8 levels
    [2 ** bits], then what the inner kernel takes after its weights.

    ``turns`` of the unpacking function fill ``weight_bytes`` from the ``block_codes`` elements of a
    block. ``shifts``: there
    is one shift a channel. ``advances``: the inner kernel takes the block's requantization.
    ``group_blocks`` make up a group, which reads ``group_inputs`` channels of x; 0 where a call
    computes all groups.
    """

    bits: int
    mixed: bool
    blocks: int
    channels: int
    table_bytes: int
    weight_bytes: int
    code_type: str
    block_codes: int
    turns: int
    shifts: bool
    inner_scratch: bool
    advances: bool
    group_blocks: int = 0
    group_inputs: int = 0


@dataclass(frozen=True)
class ListParams:
    """``ops/digit_lists.c.j2``: ``k`` weights for each of ``channels``, of ``digits`` powers.

    ``offsets`` [k] are the positions of the weights' inputs where these are not 0 to k - 1.
    """

    bits: int
    k: int
    channels: int
    digits: int
    stride: int
    index_type: str
    code_type: str
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True)
class SumsParams:
    """``ops/sums_s8.c.j2``: ``o`` channels; the sums of ``digits`` powers are in units of ``step``.

    ``grouped``: the channels are one block of several.
    """

    o: int
    digits: int
    step: int
    stride: int
    index_type: str
    grouped: bool
    requant: RequantParams


@dataclass(frozen=True)
class BucketsParams:
    """``ops/buckets_s8.c.j2``: ``columns`` (1 or 2) of ``k`` by ``o`` channels.

    ``header`` bytes say which of the sums by code make up the ``powers``, in units of ``step``.
    ``grouped``: the channels are one group of several.
    """

    k: int
    o: int
    bits: int
    columns: int
    powers: int
    header: int
    step: int
    grouped: bool
    requant: RequantParams


@dataclass(frozen=True)
class DepthwiseSumsParams:
    """``ops/depthwise_sums_s8.c.j2``.

    Codes of a channel take ``row_bytes``, its lists ``list_bytes``.
    """

    shape: Conv2dParams
    row_bytes: int
    list_bytes: int


@dataclass(frozen=True)
class CodesParams:
    """``ops/codes_s8_dsp.c.j2``: blocks of ``columns`` pixels by ``channels`` at a time.

    Columns have ``k`` values, whole chunks of ``chunk``; ``crossed``: see the template.
    """

    shape: Conv2dParams
    bits: int
    columns: int
    channels: int
    k: int
    chunk: int
    crossed: bool


@dataclass(frozen=True)
class Adding:
    """A step of adding words bit by bit: ``load`` a word of a turn (its index), or an adder.

    Of adders, ``full`` or ``half``, ``names`` are the sum, what is added to it (two words, or one),
    and the carry.
    """

    kind: Literal["load", "full", "half"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """What is done with ``words`` words: ``steps``, then ones are counted, each worth a power."""

    words: int
    steps: tuple[Adding, ...]
    counted: tuple[tuple[str, int], ...]

    @property
    def most(self) -> int:
        """What a turn adds to a byte of the counter at most."""
        return sum(8 << power for _, power in self.counted)


@dataclass(frozen=True)
class CountedProductParams:
    """``ops/count_s8.c.j2``: a column of ``words`` for each of ``planes`` bits, ``o`` channels.

    ``levels`` words are carried from turn to turn, the first worth one, the next two. ``turn`` is
    done as often as there are words, ``rest`` with those left. ``masked``: weights have zeros; a
    count of one is worth ``step``. ``starts``: sums begin with those of an array, not of ``w``.
    """

    words: int
    o: int
    planes: int
    levels: int
    turn: Turn
    rest: Turn | None
    masked: bool
    step: int
    starts: bool
    requant: RequantParams


@dataclass(frozen=True)
class Starts:
    """What the sum of a channel begins with.

    ``sum`` times the positive weights less the negative ones, and ``negative`` times the latter;
    ``present`` weights there are, or None where masks say which.
    """

    sum: int
    negative: int
    present: int | None


@dataclass(frozen=True)
class CountsParams:
    """``ops/counts_s8.c.j2`` (variable ``product``: counts for one column).

    ``limits`` and ``folded`` say what the bits of a value are (tinyq.ops.counts.Bits), ``planes``
    how many; ``outside`` are the bits of a padded value, empty without padding. ``starts``: found
    before the first pixel, and not in the constants.
    """

    shape: Conv2dParams
    words: int
    limits: tuple[int, ...]
    folded: bool
    planes: int
    outside: tuple[int, ...]
    starts: Starts | None

    @property
    def pixel(self) -> int:
        """Bytes of a pixel's bits."""
        return (self.shape.in_c + 7) // 8

    @property
    def width(self) -> int:
        """Pixels of a row of bits, padding among them."""
        p = self.shape
        read = (p.out_w - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1
        return max(read, p.pad_left + p.in_w)

    @property
    def plane(self) -> int:
        """Bytes of a row of one bit."""
        return -(-self.width * self.pixel // 4) * 4

    @property
    def rows(self) -> int:
        """Rows of the input that one row of the output reads."""
        return (self.shape.kernel_h - 1) * self.shape.dilation_h + 1

    @property
    def scratch_bytes(self) -> int:
        """The starts, the columns, the rows, and one outside of the input."""
        rows = self.rows + bool(self.outside)
        starts = 4 * self.shape.out_c if self.starts is not None else 0
        return starts + 4 * self.words * self.planes + rows * self.plane * self.planes
