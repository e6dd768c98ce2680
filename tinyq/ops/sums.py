"""Convolutions without multiplications: weights as sums of signed powers of two.

For every output channel and power there are lists of the inputs to add and to subtract; sums are
doubled from one power to the next (Horner). The lists are made from packed codes, in scratch, for a
block of channels that then serves all pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, Node
from tinyq.ops import dsp, linear
from tinyq.ops.base import InnerFunction, Kernel, KernelCall, PackedConstant, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.conv2d_scalar import columns_call
from tinyq.ops.packed import encoding_of, store_codes
from tinyq.ops.packed_params import ListParams, PackedParams, SumsParams
from tinyq.quant.encodings import Codes, Encoding
from tinyq.target import Core

_BLOCK = 4_608
"""Bytes of lists in scratch."""


def signed_digits(value: int) -> tuple[int, int]:
    """Masks of the powers of two to add and to subtract: the fewest, no two of them neighbours."""
    triple = 3 * abs(value)
    plus, minus = (triple & ~abs(value)) >> 1, (abs(value) & ~triple) >> 1
    return (plus, minus) if value >= 0 else (minus, plus)


@dataclass(frozen=True, eq=False)
class _Digits:
    """The digits of an encoding: masks uint8 [2, codes], in units of ``step``."""

    masks: Codes
    step: int

    @property
    def powers(self) -> int:
        return int(self.masks.max()).bit_length()

    def count(self, codes: AnyArray) -> AnyArray:
        """Digits of each code."""
        both = np.unpackbits(self.masks[:, :, None], axis=2).sum(axis=(0, 2))
        return np.asarray(both[codes], np.int64)


def _digits_of(encoding: Encoding) -> _Digits:
    step = math.gcd(*encoding.levels) or 1
    masks = [signed_digits(level // step) for level in encoding.levels]
    return _Digits(np.array(masks).T.astype(np.uint8), step)


class Conv2dS8Sums(Kernel):
    """Additions alone: for cores whose multiplier takes many cycles."""

    name: ClassVar[str] = "conv2d_s8_sums"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses fast multipliers, groups, and more than 32 values of weights."""
        if core.mul_cycles == 1:
            return "the core multiplies in one cycle"
        encoding, p = encoding_of(node.input(1)), conv2d_params(node)
        if encoding is None:
            return "the weights have more than 32 values"
        if p.groups > 1:
            return "it has groups"
        digits, volume = _digits_of(encoding), p.kernel_h * p.kernel_w * p.in_c
        weights = node.input(1).array.reshape(p.out_c, volume).astype(np.int8)
        counts = digits.count(encoding.encode(weights)).sum(axis=1)
        index = "uint8_t" if volume <= 256 else "uint16_t"
        size = 1 if volume <= 256 else 2
        stride = (4 * digits.powers + size * int(counts.max()) + 3) // 4 * 4
        blocks = next(
            (n for n in range(1, p.out_c + 1)
             if p.out_c % n == 0 and p.out_c // n * stride + volume <= _BLOCK), 0,
        )  # fmt: skip
        if blocks == 0 or counts.max() > 65_535:
            return f"the lists of a channel take more than {_BLOCK} bytes"
        channels = p.out_c // blocks
        codes = store_codes(encoding, weights.reshape(blocks, -1))
        requant = linear.linear_requant_of(node)
        outer = PackedParams(
            bits=encoding.bits, mixed=False, blocks=blocks, channels=channels, table_bytes=0,
            weight_bytes=-(-(channels * stride + volume) // 4) * 4, code_type=f"{codes.dtype}_t",
            block_codes=codes.size // blocks, turns=0, shifts=p.requant.post_shift is None,
            inner_scratch=True, advances=False,
        )  # fmt: skip
        lists = ListParams(
            encoding.bits, volume, channels, digits.powers, stride, index, outer.code_type
        )
        sums = SumsParams(
            channels, digits.powers, digits.step, stride, index, blocks > 1, p.requant
        )
        inner = columns_call("conv2d_s8_columns", node, p, core)
        pixels = p.out_h * p.out_w
        gather = 40 + 12 * p.kernel_h + volume * (0.6 if p.in_c % 4 == 0 else 5)
        # Measured on cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        work = pixels * (3.3 * counts.sum() + p.out_c * (60 + 12 * digits.powers))
        work += pixels * blocks * gather + weights.size * (12 + 16 * digits.powers)
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
            reason=f"{encoding.name} weights as {counts.sum() / weights.size:.2f} additions each",
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
