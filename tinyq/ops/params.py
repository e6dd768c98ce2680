"""Parameters of the portable kernels: what ``p`` is in each template of ``templates/ops``.

Each class says which template takes it and which constants the C function reads, in order. All
activations are int8 [N=1, H, W, C], row major, unless a field says otherwise: ``x_type`` and
``y_type``, or ``type`` of both, are ``int8_t`` or ``int16_t``. Sizes are elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tinyq.ops.guards import GuardParams, guard_params
from tinyq.quant import Fix, FixedPointLinear, Requant, Ties, WideRequant

Shape = tuple[int, ...]


@dataclass(frozen=True)
class RequantParams:
    """How accumulators of a linear operator become outputs, without the arrays M and a.

    y = clamp((mulhi(acc << pre_shift, M[c]) + a[c]) >> post_shift, qmin, qmax). ``fixes`` are
    (channel, accumulator, delta), delta added before the clamp. ``ties`` other than ``up``: exact
    halves go to even (or, with an odd zero point, odd) outputs, see :class:`tinyq.quant.Requant`,
    as for ``guard``. ``twice``: the form of :class:`tinyq.quant.FixedPointLinear`, acc + addend
    rescaled by the multiplier and a signed shift (positive to the left, as uint8), then
    ``zero_point``; ``post_shift`` is None and the kernel reads a further constant
    ``uint8_t shifts[C]``. ``wide``: the form of :class:`tinyq.quant.WideRequant`, whose arrays are
    ``int32_t multipliers[C]`` and ``int64_t addends[C]`` in the place of ``tinyq_requant_t``.
    ``y_type`` is the C type of outputs.
    """

    pre_shift: int
    post_shift: int | None
    qmin: int
    qmax: int
    fixes: tuple[Fix, ...] = ()
    ties: Ties | Literal["twice", "wide"] = "up"
    zero_point: int = 0
    y_type: str = "int8_t"
    guard: GuardParams | None = None

    @classmethod
    def of(
        cls, requant: Requant | FixedPointLinear | WideRequant, y_type: str = "int8_t"
    ) -> RequantParams:
        """The scalar part of synthesised parameters."""
        if isinstance(requant, WideRequant):
            limits = (requant.qmin, requant.qmax)
            return cls(0, requant.shift, *limits, ties="wide", y_type=y_type)
        if isinstance(requant, FixedPointLinear):
            limits = (requant.qmin, requant.qmax)
            return cls(0, None, *limits, ties="twice", zero_point=requant.zero_point)
        shifts = (requant.pre_shift, requant.post_shift)
        limits = (requant.qmin, requant.qmax)
        guard = guard_params(requant)
        return cls(*shifts, *limits, requant.fixes, requant.ties, guard=guard)


@dataclass(frozen=True)
class ConvShape:
    """Sizes of a convolution; a dense layer of n rows is one of 1 x 1 over 1 x n pixels."""

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_top: int
    pad_left: int
    groups: int


@dataclass(frozen=True)
class Conv2dParams(ConvShape):
    """``ops/conv2d_s8.c.j2``; constants: weights OHWI [O, kh, kw, I/groups] of ``weight_type``
    (``int8_t`` or ``int16_t``), ``tinyq_requant_t`` [O], and ``uint8_t`` shifts [O] when
    ``requant.post_shift`` is None.

    A padded tap counts as ``x_zero_point`` times its weight. Depthwise is groups == in_c. Sums are
    of ``acc_type`` (``int32_t`` or ``int64_t``).
    """

    x_zero_point: int
    weight_type: str
    requant: RequantParams
    x_type: str = "int8_t"
    acc_type: str = "int32_t"


@dataclass(frozen=True)
class DenseParams:
    """``ops/dense_s8.c.j2``: y [rows, O] from x [rows, I]; constants: weights [O, I] of
    ``weight_type``, ``tinyq_requant_t`` [O], and ``uint8_t`` shifts [O] without a post_shift.
    """

    rows: int
    in_features: int
    out_features: int
    weight_type: str
    requant: RequantParams
    x_type: str = "int8_t"
    acc_type: str = "int32_t"


@dataclass(frozen=True)
class LutParams:
    """``ops/lut_s8.c.j2``: y = table[channel][(uint8_t)x]; constant: ``y_type`` [channels, 256].

    Entry 0 is for x = 0, 127 for 127, 128 for -128, 255 for -1 (for uint8 inputs simply x). The
    tensor is [elements / (channels * inner), channels, inner].
    """

    elements: int
    channels: int = 1
    x_type: str = "int8_t"
    y_type: str = "int8_t"
    inner: int = 1


@dataclass(frozen=True)
class Broadcast:
    """Loops over two operands: output ``shape`` and each operand's stride per axis (0 repeats).

    Made by :func:`broadcast`; the last axis is the innermost loop. The C function is FN(a, b, y),
    or FN(a, y, b) with the kernel's ``b_constant``.
    """

    shape: Shape
    a_strides: Shape
    b_strides: Shape


@dataclass(frozen=True)
class AddParams:
    """``ops/add_s8.c.j2``: y = clamp((a * multiplier_a + b * multiplier_b + addend) >> shift).

    Everything fits int32 for all a, b in int8. ``fixes`` are (a, b, delta), delta added before the
    clamp. A sum whose level is odd is lowered by ``tie_window`` before the shift, then
    ``zero_point`` is added. With ``b_constant`` the second operand is a constant, read after y.
    With
    ``fix_table`` the fixes are two further constants, see :func:`tinyq.ops.binary.fix_constants`.
    """

    loops: Broadcast
    multiplier_a: int
    multiplier_b: int
    addend: int
    shift: int
    qmin: int = -128
    qmax: int = 127
    fixes: tuple[tuple[int, int, int], ...] = ()
    tie_window: int = 0
    zero_point: int = 0
    b_constant: bool = False
    fix_table: bool = False


@dataclass(frozen=True)
class PairTwiceParams:
    """``ops/add_twice_s8.c.j2`` (multipliers and shifts of a, b and y) and
    ``ops/mul_twice_s8.c.j2`` (of y), for two tensors of ``elements``; constant: b int8 when
    ``constant_b``. The rescaled operands of a sum have 20 more bits.
    """

    elements: int
    a_zero_point: int
    b_zero_point: int
    zero_point: int
    multipliers: tuple[int, ...]
    shifts: tuple[int, ...]
    qmin: int
    qmax: int
    constant_b: bool


@dataclass(frozen=True)
class WidePairParams:
    """``ops/wide_pair_s16.c.j2``, all sums in int64.

    ``add``: y = clamp((a * multipliers[0] + b * multipliers[1] + addend) >> shift). ``mul``:
    y = clamp(((a - zero_points[0]) * (b - zero_points[1]) * multipliers[0] + addend) >> shift).
    ``types`` are those of a, b and y.
    """

    loops: Broadcast
    kind: str
    types: tuple[str, str, str]
    multipliers: tuple[int, ...]
    zero_points: tuple[int, int]
    addend: int
    shift: int
    qmin: int
    qmax: int
    b_constant: bool = False


@dataclass(frozen=True)
class RescaleParams:
    """``ops/rescale_s16.c.j2``: y = clamp((x * multiplier + addend) >> shift, qmin, qmax).

    A sum whose level is odd is lowered by ``tie_window`` before the shift, then ``zero_point`` is
    added. ``fixes`` are (x, delta), delta added before the clamp.
    """

    elements: int
    multiplier: int
    addend: int
    shift: int
    qmin: int
    qmax: int
    fixes: tuple[tuple[int, int], ...]
    x_type: str
    y_type: str
    tie_window: int = 0
    zero_point: int = 0


@dataclass(frozen=True)
class CurveParams:
    """``ops/curve_s16.c.j2``: y = (base + slope * (x - start)) >> shift of the last line whose
    start is not above x; constants: ``uint16_t`` first [256], ``int16_t`` starts [lines],
    ``tinyq_line_t`` (base, slope) [lines].
    """

    elements: int
    lines: int
    shift: int
    y_type: str


@dataclass(frozen=True)
class MulParams:
    """``ops/mul_s8.c.j2``: acc = (a - a_zero_point) * (b - b_zero_point), then
    y = clamp((mulhi(acc << pre_shift, multiplier) + addend) >> post_shift, qmin, qmax).

    ``fixes`` are (a, b, delta), delta added before the clamp. With ``b_constant`` operand b is a
    constant, read after y. With ``fix_table`` the fixes are two further constants, see
    :func:`tinyq.ops.binary.fix_constants`.
    """

    loops: Broadcast
    a_zero_point: int
    b_zero_point: int
    multiplier: int
    addend: int
    pre_shift: int
    post_shift: int
    qmin: int = -128
    qmax: int = 127
    fixes: tuple[tuple[int, int, int], ...] = ()
    b_constant: bool = False
    ties: Ties = "up"
    fix_table: bool = False


@dataclass(frozen=True)
class ExtremumParams:
    """``ops/extremum_s8.c.j2``: y = max(a, b) or min(a, b) (``kind``), one quantization for all."""

    loops: Broadcast
    kind: str
    b_constant: bool = False
    type: str = "int8_t"


@dataclass(frozen=True)
class SoftmaxParams:
    """``ops/softmax_s8.c.j2``: rows of ``depth``; constant: ``uint32_t`` exp [256].

    y = clamp(floor(levels * e / sum + 1/2) + zero_point). Input and output may be one buffer.
    """

    rows: int
    depth: int
    levels: int
    zero_point: int
    qmin: int
    qmax: int


@dataclass(frozen=True)
class SoftmaxFixedParams:
    """``ops/softmax_s8_fixed.c.j2``: rows of ``depth``, at most 511; constant: ``int32_t``
    exp [256]. gemmlowp's arithmetic; the output has scale 1/256 and zero point -128. May be in
    place.
    """

    rows: int
    depth: int


@dataclass(frozen=True)
class SoftmaxWideParams:
    """``ops/softmax_s16.c.j2``: rows of ``depth``; constants: ``uint32_t`` high and low [256].

    The arithmetic is that of :class:`tinyq.ops.softmax.WideSoftmaxAttrs`.
    """

    rows: int
    depth: int
    levels: int
    zero_point: int
    qmin: int
    qmax: int
    x_type: str
    y_type: str


@dataclass(frozen=True)
class MatMulParams:
    """``ops/matmul_s8.c.j2``: y [batch, m, n] from a [batch, m, k] and b [batch, k, n].

    acc sums (a - a_zero_point) * (b - b_zero_point); constant: ``tinyq_requant_t`` [1].
    """

    batch: int
    m: int
    k: int
    n: int
    a_zero_point: int
    b_zero_point: int
    requant: RequantParams


@dataclass(frozen=True)
class TransposeParams:
    """``ops/transpose_s8.c.j2``: y = transpose(x [shape], perm); up to 6 axes after merging."""

    shape: Shape
    perm: tuple[int, ...]
    type: str = "int8_t"


@dataclass(frozen=True)
class ConcatParams:
    """``ops/concat_s8.c.j2``: inputs [outer, inner_k] joined to y [outer, sum of inner].

    The inputs with an index in ``constants`` are constants, read after y in this order.
    """

    outer: int
    inner: tuple[int, ...]
    constants: tuple[int, ...] = ()
    type: str = "int8_t"


@dataclass(frozen=True)
class SliceParams:
    """``ops/slice_s8.c.j2``: y [sizes] = x [shape] from ``starts`` in ``steps`` (may be negative).

    ``starts`` are indices inside the input, one an axis.
    """

    shape: Shape
    starts: tuple[int, ...]
    steps: tuple[int, ...]
    sizes: Shape
    type: str = "int8_t"


@dataclass(frozen=True)
class PadParams:
    """``ops/pad_s8.c.j2``: x [shape] with ``before`` and ``after`` elements of ``value`` added."""

    shape: Shape
    before: tuple[int, ...]
    after: tuple[int, ...]
    value: int
    type: str = "int8_t"


@dataclass(frozen=True)
class MaxPool2dParams:
    """``ops/max_pool2d_s8.c.j2``; padding never wins. ``channels`` is the last axis."""

    in_h: int
    in_w: int
    channels: int
    out_h: int
    out_w: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_top: int
    pad_left: int
    type: str = "int8_t"


@dataclass(frozen=True)
class ArgMaxParams:
    """``ops/arg_max_s8.c.j2``: y [outer, inner] from x [outer, depth, inner]; ``y_type`` is
    ``int32_t`` or ``int64_t``.
    """

    outer: int
    depth: int
    inner: int
    y_type: str
    x_type: str = "int8_t"


@dataclass(frozen=True)
class CountRequant:
    """Requantization of sums over ``count`` elements: multiplier, addend, and sums to correct.

    ``fixes`` are (sum, delta), delta added before the clamp. ``ties`` "twice" and "wide": see
    :class:`RequantParams`, ``post_shift`` being the signed shift of "twice".
    """

    count: int
    multiplier: int
    addend: int
    pre_shift: int
    post_shift: int
    fixes: tuple[tuple[int, int], ...] = ()
    ties: Ties | Literal["twice", "wide"] = "up"
    zero_point: int = 0


@dataclass(frozen=True)
class AvgPool2dParams:
    """``ops/avg_pool2d_s8.c.j2``: acc = sum over the window, requantized by its count.

    The count is the number of taps inside the image, or, with ``count_include_pad``, inside the
    image and its padding (whose elements count as ``x_zero_point``). ``requants`` has one entry for
    every count that occurs (:func:`window_counts`). Means over other axes are pools too.
    """

    in_h: int
    in_w: int
    channels: int
    out_h: int
    out_w: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    pad_bottom: int
    pad_right: int
    count_include_pad: bool
    x_zero_point: int
    requants: tuple[CountRequant, ...]
    qmin: int = -128
    qmax: int = 127
    x_type: str = "int8_t"
    y_type: str = "int8_t"
    acc_type: str = "int32_t"


@dataclass(frozen=True)
class ResizeNearestParams:
    """``ops/resize_nearest_s8.c.j2``: y[i, j] = x[rows[i], columns[j]]; constants: ``uint16_t``
    rows [out_h] and columns [out_w], indices into the input.
    """

    in_h: int
    in_w: int
    channels: int
    out_h: int
    out_w: int
    type: str = "int8_t"


@dataclass(frozen=True)
class RebaseParams:
    """``ops/rebase_s8.c.j2``: y = x ^ 0x80, which is int8 from uint8 less 128 and back.

    ``x_type`` and ``y_type`` are ``int8_t`` or ``uint8_t``; input and output may be one buffer.
    """

    elements: int
    x_type: str
    y_type: str


@dataclass(frozen=True)
class PackParams:
    """``ops/pack_s8.c.j2`` and ``ops/unpack_s8.c.j2``: rows of elements as codes of ``bits`` bits.

    Code k is ``low`` + k, or given by a table. ``aligned``: every row of elements begins at a word.
    """

    rows: int
    elements: int
    bits: int
    low: int
    by_table: bool
    aligned: bool


@dataclass(frozen=True)
class CopyParams:
    """``ops/copy_s8.c.j2``: y = x for ``bytes`` bytes; the types only name the operands."""

    bytes: int
    x_type: str = "int8_t"
    y_type: str = "int8_t"


def broadcast(shape: Shape, a_shape: Shape, b_shape: Shape) -> Broadcast:
    """Loops of an elementwise operator with numpy broadcasting, neighbouring axes merged."""
    axes: list[tuple[int, int, int]] = []
    a_strides, b_strides = _strides(shape, a_shape), _strides(shape, b_shape)
    for size, a, b in zip(shape, a_strides, b_strides, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == a * size and axes[-1][2] == b * size:
            axes[-1] = (axes[-1][0] * size, a, b)
        else:
            axes.append((size, a, b))
    sizes, a_merged, b_merged = zip(*(axes or [(1, 0, 0)]), strict=True)
    return Broadcast(sizes, a_merged, b_merged)


def _strides(shape: Shape, operand: Shape) -> Shape:
    padded = (1,) * (len(shape) - len(operand)) + operand
    strides, step = [], 1
    for size, wanted in zip(reversed(padded), reversed(shape), strict=True):
        if size not in (1, wanted):
            raise ValueError(f"{operand} does not broadcast to {shape}")
        strides.append(0 if size == 1 else step)
        step *= size
    return tuple(reversed(strides))


def window_counts(
    in_size: int, out_size: int, kernel: int, stride: int, before: int, after: int, padded: bool
) -> tuple[int, ...]:
    """Taps that each output position averages along one axis; ``padded`` counts padding too."""
    low, high = (-before, in_size + after) if padded else (0, in_size)
    starts = [k * stride - before for k in range(out_size)]
    return tuple(min(s + kernel, high) - max(s, low) for s in starts)


def merged_permutation(shape: Shape, perm: tuple[int, ...]) -> tuple[Shape, tuple[int, ...]]:
    """The same transpose with fewest axes: axes that stay together are one, ones are dropped."""
    order = [axis for axis in perm if shape[axis] != 1]
    if not order:
        return (1,), (0,)
    rank_of = {axis: k for k, axis in enumerate(sorted(order))}
    groups = [[order[0]]]
    for left, right in pairwise(order):
        if rank_of[right] == rank_of[left] + 1:
            groups[-1].append(right)
        else:
            groups.append([right])
    by_input = sorted(range(len(groups)), key=lambda g: groups[g][0])
    sizes = []
    for g in by_input:
        size = 1
        for axis in groups[g]:
            size *= shape[axis]
        sizes.append(size)
    return tuple(sizes), tuple(by_input.index(g) for g in range(len(groups)))
