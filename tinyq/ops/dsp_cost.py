"""Instructions of the kernels for the DSP extension, as functions of the shape.

The inner parts are assembly, so that their counts follow from the templates; the C around them
(gathering, planes) is fitted to counts of arm-none-eabi-gcc 12.2 -O2 on an emulated cortex-m4. All
results are instructions of one call.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyq.ops.packing import MatmulMode
from tinyq.quant import Ties

_TIES: dict[Ties, int] = {"up": 0, "even": 2, "odd": 3}
_PAIR_STEP = {"plain": 19, "mixed": 17, "wide": 16}
_PAIRED_STEP = {"plain": 19, "mixed": 22, "wide": 22}
_SINGLE_STEP = {"plain": 11, "mixed": 11, "wide": 9}
_LANES_STEP: dict[MatmulMode, dict[int, int]] = {
    "plain": {4: 18, 2: 10, 1: 6},
    "mixed": {4: 14, 2: 8, 1: 6},
    "wide": {4: 11, 2: 7, 1: 5},
}


@dataclass(frozen=True)
class Epilogue:
    """What follows a sum: shift, clamps beyond [-128, 127], ties, what a guard takes an output."""

    pre_shift: int = 0
    qmin: int = -128
    qmax: int = 127
    ties: Ties = "up"
    guard: int = 0

    @property
    def finish(self) -> int:
        """Multiply, saturate, store, ties or guard, and a clamp of three for each end in need."""
        clamps = 3 * (self.qmin > -128) + 3 * (self.qmax < 127)
        return 3 + clamps + _TIES[self.ties] + self.guard

    @property
    def spoils(self) -> int:
        """1 where a register has to be restored behind it."""
        return int(self.ties != "up" or self.guard > 0)

    def prepare(self, odd_channel: bool, mode: MatmulMode) -> int:
        """Before the multiplication: the shift, and for a mixed odd channel its separation."""
        if odd_channel and mode == "mixed":
            return 1 + (self.pre_shift != 8)
        return int(self.pre_shift > 0)


def matmul_cost(
    k4: int, channels: int, mode: MatmulMode, unroll: int, end: Epilogue, paired: bool = False
) -> int:
    """matmul_s8_dsp.c.j2: three columns by ``channels``."""
    steps = k4 // 4
    turns = 0 if unroll == steps else steps // unroll
    both = end.prepare(False, mode) + end.prepare(True, mode) + 2 * end.finish
    step = (_PAIRED_STEP if paired else _PAIR_STEP)[mode]
    moves = 2 * (steps // unroll) if paired and mode != "plain" else 0
    pair = steps * step + moves + (6 + 3 * turns if turns else 0) + 3 * both + 7 + end.spoils
    single = steps * _SINGLE_STEP[mode] + (3 + 3 * turns if turns else 0) + 2
    single += 3 * (end.prepare(False, "plain") + end.finish)
    return 17 + channels // 2 * pair + channels % 2 * single


def matvec_cost(k4: int, channels: int, mode: MatmulMode, unroll: int, end: Epilogue) -> int:
    """matvec_s8_dsp.c.j2: one column by ``channels``."""
    steps = k4 // 4
    turns = 0 if unroll == steps else steps // unroll

    def block(lanes: int) -> int:
        loop = lanes + 3 * turns if turns else 0
        pairs = lanes // 2 * (end.prepare(False, mode) + end.prepare(True, mode) + 1)
        alone = lanes % 2 * (end.prepare(False, "plain") + 1)
        return steps * _LANES_STEP[mode][lanes] + loop + pairs + alone + lanes * end.finish + 1

    total = channels // 4 * (block(4) + 5)
    total += block(2) if channels % 4 >= 2 else 0
    return 20 + total + (block(1) if channels % 2 else 0)


def dense_cost(
    inputs: int, channels: int, mode: MatmulMode, unroll: int, end: Epilogue, direct: bool = False
) -> int:
    """dense_s8_dsp.c.j2: expansion of the input, then the product, or both at once."""
    k4 = (inputs + 3) // 4 * 4
    product = matvec_cost(k4, channels, mode, unroll, end)
    if direct:
        return 15 + product + 2 * (k4 // 4) * -(-channels // 4)
    return 15 + inputs * 21 // 16 + product


@dataclass(frozen=True)
class ConvShape:
    """Geometry of a convolution; a column is gathered from ``runs`` runs of ``run`` input bytes.

    ``border_pixels`` is the number of outputs whose patch reaches outside the input.
    """

    pixels: int
    border_pixels: int
    run: int
    runs: int
    channels_out: int
    groups: int = 1
    pointwise: bool = False

    @property
    def k4(self) -> int:
        """Length of a column, a multiple of four."""
        whole = self.run // 4 * 4
        return self.runs * whole + (self.runs * (self.run - whole) + 3) // 4 * 4


def conv_cost(
    shape: ConvShape, mode: MatmulMode, unroll: int, end: Epilogue, paired: bool = False
) -> int:
    """conv_s8_dsp.c.j2: columns and products, over all blocks of three outputs."""
    blocks = -(-shape.pixels // 3)
    words, rest = shape.run // 4, shape.run % 4
    if shape.pointwise:
        gather = 3 * (words * 5 + rest * 3) + words + 12
        column_total = blocks * gather
    else:
        column = shape.runs * (words * 5 + 4) + shape.runs * rest * 2 + 26
        patch = shape.runs * (24 + shape.run) + 20
        column_total = shape.pixels * column + shape.border_pixels * patch + blocks * 8
    channels = shape.channels_out // shape.groups
    products = blocks * matmul_cost(shape.k4, channels, mode, unroll, end, paired)
    tail = (2 * shape.channels_out + 20) if shape.pixels % 3 else 0
    return 30 + shape.groups * (column_total + products + tail)


def _expand(in_hw: tuple[int, int]) -> int:
    """One channel into its plane: a load and a store an element, unrolled over rows up to 32."""
    h, w = in_hw
    return h * (2 * w + (4 if w <= 32 else 8 + w * 5 // 4))


def plane3x3_cost(
    in_hw: tuple[int, int], out_hw: tuple[int, int], channels: int, unroll: int, end: Epilogue,
    paired: bool = False,
) -> int:  # fmt: skip
    """depthwise_s8_dsp.c.j2, variant plane3x3."""
    (oh, ow), steps = out_hw, out_hw[1] // 2
    turns = 0 if steps in (unroll, 0) else steps // unroll
    each = end.finish + int(end.pre_shift > 0)
    wide = int(channels > 255)
    row = steps * (15 + 3 * paired + 2 * each + wide) + ow % 2 * (9 + each + wide) + 3
    row += 3 + 3 * turns - ow % 2 if turns else 0
    fill = (oh + 2) * ((ow + 3) // 2) * 3
    return 25 + fill + channels * (_expand(in_hw) + oh * row + 36)


def plane_cost(
    in_hw: tuple[int, int],
    out_hw: tuple[int, int],
    kernel_hw: tuple[int, int],
    stride_w: int,
    channels: int,
    end: Epilogue,
) -> int:
    """depthwise_s8_dsp.c.j2, variant plane; ``channels`` are the outputs'."""
    (oh, ow), (kh, kw) = out_hw, kernel_hw
    words = kw // 2 + 1 if stride_w == 1 else (kw + 1) // 2
    each = end.finish + int(end.pre_shift > 0)
    group = kh * (1 + 6 * words if stride_w == 1 else 3 + 6 * words) + 4 * each + 4
    tail = (kh * (1 + 4 * words) + ow % 4 * each) if ow % 4 else 0
    table = kh * (kw + 3 * words)
    return 60 + channels * (_expand(in_hw) + table + oh * (ow // 4 * group + tail + 6) + 24)


def planar_cost(
    in_hw: tuple[int, int],
    out_hw: tuple[int, int],
    kernel_hw: tuple[int, int],
    channels: int,
    end: Epilogue,
) -> int:
    """depthwise_s8_dsp.c.j2, variant planar; ``channels`` are the outputs'."""
    (oh, ow), (kh, kw) = out_hw, kernel_hw
    output = (kh * (3 * kw + 5) if kh > 1 else 2 * kw + 2) + 8 + end.finish
    return 60 + channels * (_expand(in_hw) + oh * ow * output + 12)


def depthwise3x3s2_cost(out_hw: tuple[int, int], channels: int, unroll: int, end: Epilogue) -> int:
    """depthwise3x3s2_s8_dsp.c.j2."""
    oh, ow = out_hw
    each = 15 + end.finish + int(end.pre_shift > 0) + int(channels > 127) + int(channels > 255)
    turns = ow // unroll if ow // unroll > 1 else 0
    row = ow * each + (3 * turns + 3 if turns else 0) + 4
    return 20 + channels * (oh * row + 34)


def _finish_bytes(end: Epilogue) -> int:
    """One output: shift, multiply, saturate, store, clamps (a compare, IT and move of 8 bytes)."""
    form = 4 * _TIES[end.ties] + 30 * (end.guard > 0)
    return 12 + form + 4 * (end.pre_shift > 0) + 8 * (end.qmin > -128) + 8 * (end.qmax < 127)


def matmul_bytes(
    channels: int, mode: MatmulMode, unroll: int, end: Epilogue, paired: bool = False
) -> int:
    """Code of matmul_s8_dsp.c.j2."""
    step = (_PAIRED_STEP if paired else _PAIR_STEP)[mode]
    pair = 4 * unroll * (step - 4) + 6 * _finish_bytes(end) + 24 * (mode == "mixed")
    single = 4 * unroll * (_SINGLE_STEP[mode] - 4) + 3 * _finish_bytes(end)
    return 90 + (pair if channels > 1 else 0) + (single if channels % 2 else 0)


def matvec_bytes(channels: int, mode: MatmulMode, unroll: int, end: Epilogue) -> int:
    """Code of matvec_s8_dsp.c.j2."""
    lanes = [4] * (channels >= 4) + [2] * (channels % 4 >= 2) + [1] * (channels % 2)
    each = [4 * unroll * _LANES_STEP[mode][n] + n * (_finish_bytes(end) + 8) + 30 for n in lanes]
    return 70 + sum(each)


def dense_bytes(inputs: int, channels: int, mode: MatmulMode, unroll: int, end: Epilogue) -> int:
    """Code of dense_s8_dsp.c.j2 with its product."""
    return 90 + matvec_bytes(channels, mode, unroll, end)


def conv_bytes(
    shape: ConvShape, mode: MatmulMode, unroll: int, end: Epilogue, paired: bool = False
) -> int:
    """Code of conv_s8_dsp.c.j2 with its product."""
    words = shape.run // 4
    copied = min(words, 4 if shape.pointwise else 16) * (36 if shape.pointwise else 12)
    rest = shape.runs * (shape.run % 4) * 6
    code = 120 + copied + rest
    code += 250 if shape.border_pixels else 0
    code += 100 if shape.pixels % 3 else 0
    return code + matmul_bytes(shape.channels_out // shape.groups, mode, unroll, end, paired)


def expand_bytes(width: int) -> int:
    """Code of depthwise_s8_dsp.c.j2 without its channel."""
    return 120 + (6 * width if width <= 32 else 60)


def plane3x3_bytes(out_width: int, unroll: int, end: Epilogue, paired: bool = False) -> int:
    """Code of plane3x3_s8_dsp.c.j2."""
    pair = 60 + 12 * paired + 2 * _finish_bytes(end)
    return 110 + unroll * pair + (out_width % 2) * (36 + _finish_bytes(end))


def plane_bytes(out_width: int, kernel_hw: tuple[int, int], stride_w: int, end: Epilogue) -> int:
    """Code of plane_s8_dsp.c.j2 with its table."""
    kh, kw = kernel_hw
    words = kw // 2 + 1 if stride_w == 1 else (kw + 1) // 2
    whole = kh * (4 + 24 * words) + 4 * _finish_bytes(end) if out_width >= 4 else 0
    left = out_width % 4
    tail = kh * (4 + 16 * words) + left * _finish_bytes(end) if left else 0
    return 80 + whole + tail + kh * words * 20


def planar_bytes(kernel_width: int) -> int:
    """Code of the channel of depthwise_s8_dsp.c.j2, variant planar."""
    return 110 + 10 * kernel_width


def depthwise3x3s2_bytes(
    out_hw: tuple[int, int], unroll: int, top: int, bottom: bool, end: Epilogue
) -> int:
    """Code of depthwise3x3s2_s8_dsp.c.j2."""
    output = 64 + _finish_bytes(end)
    row = 40 + output * (unroll + out_hw[1] % unroll + 2)
    return 130 + row * (1 + (top > 0) + bottom)
