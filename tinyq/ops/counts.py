"""Convolutions and dense layers that count bits: weights of two or three values, inputs of few.

An input of at most four values is the sum of at most three bits, each worth the distance of two
values; a weight is plus or minus a step, or zero, which are two masks. The sum of the products of
32 inputs and weights is then the number of ones of a word for each of these bits, and no
multiplication. Bits of the input are made once, a row at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, Node
from tinyq.ops import dsp, linear
from tinyq.ops.base import InnerFunction, Kernel, KernelCall, PackedConstant, Refusal
from tinyq.ops.conv2d import Conv2dAttrs, conv2d_params
from tinyq.ops.conv2d_dsp import geometry_of
from tinyq.ops.conv2d_scalar import rows_as_pixels
from tinyq.ops.dense import DenseAttrs, dense_params
from tinyq.ops.dsp_products import inside
from tinyq.ops.packed import encoding_of
from tinyq.ops.packed_params import Adding, CountedProductParams, CountsParams, Starts, Turn
from tinyq.ops.params import Conv2dParams
from tinyq.quant.encodings import Encoding
from tinyq.target import Core

Int64 = npt.NDArray[np.int64]

_MOST_VALUES = 4
_MANY_PIXELS = 8
_MANY_BYTES = 64
"""Of a channel's weights."""
_MOST_WEIGHT = 7
"""Of all bits together, in units of the least: sums of bytes would soon be full."""


def counted_encoding(node: Node) -> Encoding | None:
    """The encoding of the node's weights if they have two or three values, else None."""
    if node.op not in ("conv2d", "dense") or not node.input(1).is_constant:
        return None
    encoding = encoding_of(node.input(1))
    return encoding if encoding is not None and encoding.kind in ("binary", "ternary") else None


@dataclass(frozen=True)
class Bits:
    """How a value becomes bits: ``limits`` are the values but the least, ascending.

    Bit j of x is whether x is at least limit j; ``folded``, of four values as far apart at both
    ends: bit 0 is the parity of these three bits, bit 1 the middle one. A value is ``base`` and
    ``unit`` times the sum of ``weights`` of its bits.
    """

    base: int
    limits: tuple[int, ...]
    folded: bool
    unit: int
    weights: tuple[int, ...]

    @classmethod
    def of(cls, values: tuple[int, ...]) -> Bits:
        """Of two to four values, ascending."""
        steps = [b - a for a, b in pairwise(values)]
        folded = len(steps) == 3 and steps[0] == steps[2]
        worth = [steps[0], steps[0] + steps[1]] if folded else steps
        unit = math.gcd(*worth)
        return cls(values[0], values[1:], folded, unit, tuple(w // unit for w in worth))

    def of_value(self, x: int) -> tuple[int, ...]:
        """The bits of a value."""
        above = [int(x >= limit) for limit in self.limits]
        return (sum(above) % 2, above[1]) if self.folded else tuple(above)


class CountedProducts(Kernel):
    """Ones of words instead of products; ``name`` is that of the kernel."""

    takes_fixed_point: ClassVar[bool] = True
    without_products: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses other weights, inputs of more than four values, and groups."""
        encoding, attrs = counted_encoding(node), node.attrs
        assert isinstance(attrs, Conv2dAttrs | DenseAttrs)
        if encoding is None:
            return "weights of more than three values"
        if not 2 <= len(attrs.x_values) <= _MOST_VALUES:
            return f"its input can take more than {_MOST_VALUES} values"
        p = conv2d_params(node) if node.op == "conv2d" else rows_as_pixels(dense_params(node))
        if p.groups > 1:
            return "grouped"
        bits = Bits.of(attrs.x_values)
        padded = not inside(geometry_of(p))
        if padded and p.x_zero_point not in attrs.x_values:
            return "its padding is none of the values of its input"
        volume = p.kernel_h * p.kernel_w * p.in_c
        if sum(bits.weights) > _MOST_WEIGHT or volume * sum(bits.weights) > 65_535:
            return "the values of its input are unevenly far apart, or too many"
        outside = bits.of_value(p.x_zero_point) if padded else ()
        return _call(self.name, node, p, bits, outside, encoding, core)


def _call(
    name: str, node: Node, p: Conv2dParams, bits: Bits, outside: tuple[int, ...],
    encoding: Encoding, core: Core,
) -> KernelCall:  # fmt: skip
    weights = node.input(1).array.astype(np.int64).reshape(p.out_c, p.kernel_h * p.kernel_w, p.in_c)
    step, planes = int(np.abs(weights).max()), len(bits.weights)
    # The rest of a padded pixel's last byte holds ones, too.
    masked = encoding.kind == "ternary" or (p.in_c % 8 > 0 and any(outside))
    masks = _masks(weights, masked=masked)
    words = masks.shape[1] // (1 + masked)
    # Found at run time, sums to begin with take no flash, and little time but for a long channel
    # of few pixels; there they take little flash.
    few = p.out_h * p.out_w < _MANY_PIXELS and masks[0].nbytes >= _MANY_BYTES
    starts = Starts(
        step * bits.base, -step * bits.unit * sum(bits.weights), None if masked else weights[0].size
    )
    stored = np.concatenate([_first_words(weights, starts), masks], axis=1) if few else masks
    turns = best_turns(bits.weights, words, masked, core.long_multiply)
    product = CountedProductParams(
        words, p.out_c, planes, turns.levels, turns.turn, turns.rest, masked, step * bits.unit,
        not few, p.requant,
    )  # fmt: skip
    outer = CountsParams(
        p, words, bits.limits, bits.folded, planes, outside, None if few else starts
    )
    requant = linear.linear_requant_of(node)
    distance = _distance(p, outer.rows)
    work = p.out_h * p.out_w * p.out_c * turns.work
    work += 0 if few else p.out_c * (words * 16 * (1 + masked) + 12)
    work += 40 * p.out_h * p.out_w * planes * p.kernel_h
    work += p.in_h * p.in_w * p.in_c * (9 if core.long_multiply else 13)
    return KernelCall(
        name,
        "ops/counts_s8.c.j2",
        outer,
        (PackedConstant("counts", stored.ravel(), "uint32_t"), *linear.requant_constants(requant)),
        scratch_bytes=outer.scratch_bytes,
        instructions=int(work),
        code_bytes=520 + 60 * planes,
        in_place=(0,) if distance <= 0 else (),
        overlap=distance,
        includes=dsp.INCLUDES,
        reason=f"{encoding.name} weights: ones of {planes} bit{'s' if planes > 1 else ''} counted",
        encoding=encoding.name,
        cores=(
            InnerFunction("product", "count_s8", "ops/count_s8.c.j2", product),
        ),
        multiplies=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Turns:
    """How the words of a column are added up; ``work`` instructions for an output."""

    levels: int
    turn: Turn
    rest: Turn | None
    work: float


@dataclass(frozen=True)
class _Costs:
    """Instructions of the steps of a turn, for a word and each of its bits, and of an output."""

    full: float
    half: float
    count: float
    level: float
    word: float
    bit: float
    output: float

    def of(self, turn: Turn) -> float:
        """Instructions of a turn."""
        each = {"full": self.full, "half": self.half, "load": self.word}
        return sum(each[step.kind] for step in turn.steps) + self.count * len(turn.counted)


# Fitted to ResNet-20 of 2 bits in turns of one, two and four words with up to three levels, within
# 17%; cortex-m0plus and cortex-m3, arm-none-eabi-gcc 12.2 -O2.
_PLAIN = _Costs(full=11, half=3, count=20, level=32, word=3, bit=4, output=45)
_LONG = _Costs(full=6.6, half=1.5, count=12, level=16, word=2, bit=3, output=29)


@lru_cache(maxsize=256)
def best_turns(weights: tuple[int, ...], words: int, masked: bool, long: bool) -> Turns:
    """The turns of least work among those of one to four words with up to three levels of sums.

    Counting the ones of a word takes twice as long as adding three words bit by bit (carry-save
    adders), of which one word is left that is worth twice as much. ``long``: the core has the
    instructions of ARMv7-M.
    """
    costs = _LONG if long else _PLAIN
    found = []
    for size in (1, 2, 4):
        for levels in range(4):
            turn, rest = turn_of(weights, size, levels), words % size
            last = turn_of(weights, rest, levels) if rest else None
            if words < size or turn.most > 255 or (last is not None and last.most > 255):
                continue
            work = costs.output + levels * costs.level + words * len(weights) * costs.bit
            work += words // size * costs.of(turn) + (0.0 if last is None else costs.of(last))
            work -= 0.0 if masked else words * (1.0 + len(weights))
            found.append(Turns(levels, turn, last, work))
    return min(found, key=lambda turns: turns.work)


def turn_of(weights: tuple[int, ...], words: int, levels: int) -> Turn:
    """Adders for ``words`` words of bits of these ``weights``, on ``levels`` words of sums."""
    waiting: dict[int, list[str]] = {}
    steps: list[Adding] = []

    def add(names: tuple[str, ...], power: int) -> None:
        carry = f"carry{len(steps)}"
        steps.append(Adding("full" if len(names) == 2 else "half", (f"sum{power}", *names, carry)))
        wait(carry, power + 1)

    def wait(name: str, power: int) -> None:
        at = waiting.setdefault(power, [])
        at.append(name)
        if power < levels and len(at) == 2:
            first, second = at
            at.clear()
            add((first, second), power)

    for word in range(words):
        steps.append(Adding("load", (str(word),)))
        for plane, weight in enumerate(weights):
            for power in range(weight.bit_length()):
                if weight >> power & 1:
                    wait(f"v{word}_{plane}", power)
    for power in range(levels):
        for name in waiting.pop(power, []):
            add((name,), power)
    counted = [(name, power - levels) for power, names in waiting.items() for name in names]
    return Turn(words, tuple(steps), tuple(counted))


def _masks(weights: Int64, *, masked: bool) -> AnyArray:
    """Which of 32 weights at a time are negative and, ``masked``, which are not zero: [O, words].

    ``weights`` [O, taps, C]; taps begin at whole bytes. The two take turns, word by word.
    """
    columns = []
    for chosen in (weights < 0, weights != 0)[: 1 + masked]:
        packed = np.packbits(chosen, axis=2, bitorder="little").reshape(len(weights), -1)
        packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
        columns.append(np.ascontiguousarray(packed).view("<u4"))
    return np.stack(columns, axis=2).reshape(len(weights), -1)


def _first_words(weights: Int64, starts: Starts) -> AnyArray:
    """What the sum of each channel begins with, as uint32 [O, 1]."""
    signs = np.sign(weights).sum(axis=(1, 2))
    found = starts.sum * signs + starts.negative * (weights < 0).sum(axis=(1, 2))
    return np.asarray(found.astype(np.int32).view(np.uint32)[:, None])


def _distance(p: Conv2dParams, reach: int) -> int:
    """Least bytes by which y has to begin before x, whose ``reach`` rows are made bits first."""
    size = -p.in_h * p.in_w * p.in_c
    needed = [
        (row + 1) * p.out_w * p.out_c - unread * p.in_w * p.in_c
        for row in range(p.out_h)
        if (unread := row * p.stride_h - p.pad_top + reach) < p.in_h
    ]
    return max(needed, default=size)
