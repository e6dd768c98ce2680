"""Convolutions and dense layers without multiplications: weights as sums of signed powers of two.

For cores whose multiplier takes many cycles; selection asks these kernels there, or where the user
does. Two ways: for every output channel and power there are lists of the inputs to add and to
subtract, and sums are doubled from one power to the next (Horner); the lists are made in scratch,
from packed codes, for a block of channels that then serves all pixels. Where there are few pixels,
inputs are added up by the code of their weight instead, and the sums of the codes are added by
powers. Weights of any int8 values have at most four digits, and half bytes as codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, Node
from tinyq.ops import dsp, linear
from tinyq.ops.base import InnerFunction, Kernel, KernelCall, PackedConstant, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.conv2d_scalar import columns_call, plane_of, rows_as_pixels
from tinyq.ops.dense import dense_params
from tinyq.ops.packed import encoding_of, store_codes
from tinyq.ops.packed_params import (
    BucketsParams,
    DepthwiseSumsParams,
    ListParams,
    PackedParams,
    SumsParams,
)
from tinyq.ops.params import Conv2dParams
from tinyq.quant.encodings import Codes, pack
from tinyq.target import Core

_BLOCK = 4_608
"""Bytes of lists in scratch."""

_BYTE_LEVELS = (*range(128), *range(-128, 0))
_HALF_BYTE_LEVELS = (*range(16), *(16 * h for h in range(8)), *(16 * h for h in range(-8, 0)))


def signed_digits(value: int) -> tuple[int, int]:
    """Masks of the powers of two to add and to subtract: the fewest, no two of them neighbours."""
    triple = 3 * abs(value)
    plus, minus = (triple & ~abs(value)) >> 1, (abs(value) & ~triple) >> 1
    return (plus, minus) if value >= 0 else (minus, plus)


@dataclass(frozen=True, eq=False)
class _Digits:
    """The digits of levels: masks uint8 [2, levels], in units of ``step``."""

    masks: Codes
    step: int

    @property
    def powers(self) -> int:
        return int(self.masks.max()).bit_length()

    @property
    def total(self) -> int:
        """Digits of all levels."""
        return int(np.unpackbits(self.masks).sum())

    def count(self, codes: AnyArray) -> AnyArray:
        """Digits of each code."""
        both = np.unpackbits(self.masks[:, :, None], axis=2).sum(axis=(0, 2))
        return np.asarray(both[codes], np.int64)

    def lists(self) -> Codes:
        """The header of buckets_s8.c.j2: how many levels a power and sign, then which ones."""
        groups = [
            np.flatnonzero((mask >> power) & 1)
            for power in reversed(range(self.powers))
            for mask in self.masks
        ]
        counts = [len(group) for group in groups]
        return np.concatenate([counts, *groups]).astype(np.uint8)


@lru_cache(maxsize=64)
def _digits_of(levels: tuple[int, ...]) -> _Digits:
    """The fewest digits of each level."""
    step = math.gcd(*levels) or 1
    masks = [signed_digits(level // step) for level in levels]
    return _Digits(np.array(masks).T.astype(np.uint8), step)


@dataclass(frozen=True, eq=False)
class _Coded:
    """Weights [O, K] as codes uint8 of ``bits`` bits; ``levels`` by code."""

    name: str
    bits: int
    levels: tuple[int, ...]
    codes: Codes

    @classmethod
    def of(cls, node: Node) -> _Coded | Refusal:
        """The packed encoding where there is one, else bytes."""
        array = node.input(1).array
        if array.dtype != np.int8:
            return "weights of 16 bits"
        weights = array.reshape(len(array), -1).astype(np.int8)
        encoding = encoding_of(node.input(1))
        if encoding is None:
            return cls("int8", 8, _BYTE_LEVELS, weights.view(np.uint8))
        return cls(encoding.name, encoding.bits, encoding.levels, encoding.encode(weights))

    def rows(self) -> Codes:
        """The codes of every channel in whole bytes, one after another."""
        if self.bits == 8:
            return self.codes.reshape(-1)
        return np.concatenate([pack(row, self.bits) for row in self.codes])

    def reason(self, digits: float) -> str:
        """For the report."""
        return f"{self.name} weights as {digits:.2f} additions each"


class Conv2dS8Sums(Kernel):
    """Additions alone: for cores whose multiplier takes many cycles."""

    name: ClassVar[str] = "conv2d_s8_sums"
    takes_fixed_point: ClassVar[bool] = True
    without_products: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses depthwise ones, weights of 16 bits, and very long lists."""
        coded, p = _Coded.of(node), conv2d_params(node)
        if isinstance(coded, str):
            return coded
        if p.in_c == p.groups > 1:
            return "depthwise"
        digits, volume = _digits_of(coded.levels), coded.codes.shape[1]
        counts = digits.count(coded.codes).sum(axis=1)
        index = "uint8_t" if volume <= 256 else "uint16_t"
        size = 1 if volume <= 256 else 2
        stride = (4 * digits.powers + size * int(counts.max()) + 3) // 4 * 4
        blocks = next(
            (n for n in range(p.groups, p.out_c + 1, p.groups)
             if p.out_c % n == 0 and p.out_c // n * stride + volume <= _BLOCK), 0,
        )  # fmt: skip
        if blocks == 0 or counts.max() > 65_535:
            return f"the lists of a channel take more than {_BLOCK} bytes"
        channels = p.out_c // blocks
        codes = stored_blocks(coded, blocks)
        requant = linear.linear_requant_of(node)
        outer = PackedParams(
            bits=coded.bits, mixed=False, blocks=blocks, channels=channels, table_bytes=0,
            weight_bytes=-(-(channels * stride + volume) // 4) * 4, code_type=f"{codes.dtype}_t",
            block_codes=codes.size // blocks, turns=0, shifts=p.requant.post_shift is None,
            inner_scratch=True, advances=False,
            group_blocks=blocks // p.groups if p.groups > 1 else 0,
            group_inputs=p.in_c // p.groups,
        )  # fmt: skip
        lists = ListParams(
            coded.bits, volume, channels, digits.powers, stride, index, outer.code_type
        )
        sums = SumsParams(
            channels, digits.powers, digits.step, stride, index, blocks > 1, p.requant
        )
        inner = columns_call("conv2d_s8_columns", node, p, core)
        pixels = p.out_h * p.out_w
        gather = 40 + 12 * p.kernel_h + volume * (0.6 if p.in_c % 4 == 0 else 5)
        # Measured on cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        work = pixels * (3.3 * counts.sum() + p.out_c * (60 + 12 * digits.powers))
        work += pixels * blocks * gather + coded.codes.size * (12 + 16 * digits.powers)
        alone = blocks == 1
        return KernelCall(
            self.name,
            "ops/packed_s8.c.j2",
            outer,
            (
                PackedConstant("codes", codes, outer.code_type),
                PackedConstant("digits", digits.masks.view(np.int8), "int8_t"),
                *linear.requant_constants(requant),
            ),
            scratch_bytes=outer.weight_bytes + inner.scratch_bytes,
            instructions=int(work),
            code_bytes=760,
            in_place=inner.in_place if alone else (),
            overlap=inner.overlap if alone else None,
            includes=dsp.INCLUDES,
            reason=coded.reason(counts.sum() / coded.codes.size),
            encoding=coded.name,
            cores=(
                InnerFunction("product", "sums_s8", "ops/sums_s8.c.j2", sums),
                InnerFunction("unpack", "digit_lists", "ops/digit_lists.c.j2", lists),
                InnerFunction(
                    "inner", "conv2d_s8_columns_sums", inner.template,
                    replace(inner.params, blocks=blocks), True,
                ),
            ),
            multiplies=False,
        )  # fmt: skip


def stored_blocks(coded: _Coded, blocks: int) -> AnyArray:
    """The codes of blocks of channels, each padded to whole turns."""
    return store_codes(coded.codes.reshape(blocks, -1), coded.bits)


class BucketSums(Kernel):
    """Additions alone where few pixels share a weight; ``name`` is that of the kernel."""

    takes_fixed_point: ClassVar[bool] = True
    without_products: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses weights of 16 bits and depthwise ones."""
        coded = _Coded.of(node)
        if isinstance(coded, str):
            return coded
        p = conv2d_params(node) if node.op == "conv2d" else rows_as_pixels(dense_params(node))
        if p.in_c == p.groups > 1:
            return "depthwise"
        return _buckets_call(self.name, node, replace(p, weight_type="uint8_t"), coded, core)


def _buckets_call(
    name: str, node: Node, p: Conv2dParams, coded: _Coded, core: Core
) -> KernelCall:  # fmt: skip
    digits = _digits_of(coded.levels if coded.bits < 8 else _HALF_BYTE_LEVELS)
    header, volume = digits.lists(), coded.codes.shape[1]
    pixels = p.out_h * p.out_w
    columns = 1 if pixels == 1 else 2
    product = BucketsParams(
        volume, p.out_c // p.groups, coded.bits, columns, digits.powers, header.size, digits.step,
        p.groups > 1, p.requant,
    )  # fmt: skip
    inner = columns_call(name, node, p, core)
    # Measured on cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
    each = (12.0, 19.5)[columns - 1] * (2.0 if coded.bits == 8 else 1.0)
    levels = 32 if coded.bits == 8 else 2**coded.bits
    output = 80 * columns + 4.5 * columns * levels + 12 * digits.powers + 8 * digits.total
    steps = -(-pixels // columns)
    gather = 40 + 12 * p.kernel_h + volume * (0.6 if p.in_c % 4 == 0 else 5)
    return replace(
        inner,
        params=replace(inner.params, indexed=True),
        constants=(
            PackedConstant("codes", np.concatenate([header, coded.rows()]), "uint8_t"),
            *linear.requant_constants(linear.linear_requant_of(node)),
        ),
        instructions=int(steps * p.out_c * (each * volume + output) + pixels * p.groups * gather),
        code_bytes=640,
        reason=f"{coded.name} weights: inputs added up by code",
        encoding=coded.name,
        cores=(InnerFunction("product", "buckets_s8", "ops/buckets_s8.c.j2", product),),
        multiplies=False,
    )


class DepthwiseS8Sums(Kernel):
    """Depthwise convolutions by additions alone."""

    name: ClassVar[str] = "depthwise_s8_sums"
    takes_fixed_point: ClassVar[bool] = True
    without_products: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses what is not depthwise, weights of 16 bits, and very large planes."""
        coded, p = _Coded.of(node), conv2d_params(node)
        if isinstance(coded, str):
            return coded
        plane = plane_of(p)
        if isinstance(plane, str):
            return plane
        rows, width = plane
        digits, taps = _digits_of(coded.levels), p.kernel_h * p.kernel_w
        offsets = tuple(
            ky * p.dilation_h * width + kx * p.dilation_w
            for ky in range(p.kernel_h)
            for kx in range(p.kernel_w)
        )
        counts = digits.count(coded.codes).sum(axis=1)
        index, size = ("uint8_t", 1) if offsets[-1] <= 255 else ("uint16_t", 2)
        stride = (4 * digits.powers + size * int(counts.max()) + 3) // 4 * 4
        lists = ListParams(coded.bits, taps, 1, digits.powers, stride, index, "uint8_t", offsets)
        sums = SumsParams(1, digits.powers, digits.step, stride, index, True, p.requant)
        outer = DepthwiseSumsParams(p, (taps * coded.bits + 7) // 8, -(-(stride + taps) // 4) * 4)
        outputs = p.out_h * -(-p.out_w // 2) * 2
        # Measured on cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        work = outputs * (3.3 * counts.sum() + p.out_c * (75 + 12 * digits.powers))
        work += p.out_c * (taps * (12 + 16 * digits.powers) + 6 * p.in_h * p.in_w)
        requant = linear.linear_requant_of(node)
        inside = p.out_c == p.in_c and p.out_h * p.out_w <= p.in_h * p.in_w
        return KernelCall(
            self.name,
            "ops/depthwise_sums_s8.c.j2",
            outer,
            (
                PackedConstant("codes", coded.rows(), "uint8_t"),
                PackedConstant("digits", digits.masks.view(np.int8), "int8_t"),
                *linear.requant_constants(requant),
            ),
            scratch_bytes=outer.list_bytes + rows * width,
            instructions=int(work),
            code_bytes=820,
            in_place=(0,) if inside else (),
            phase=p.in_c if p.out_c == p.in_c else 0,
            includes=dsp.INCLUDES,
            reason=coded.reason(counts.sum() / coded.codes.size),
            encoding=coded.name,
            cores=(
                InnerFunction("product", "sums_s8", "ops/sums_s8.c.j2", sums),
                InnerFunction("unpack", "digit_lists", "ops/digit_lists.c.j2", lists),
            ),
            multiplies=False,
        )
