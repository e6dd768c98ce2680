"""Means: AveragePool, GlobalAveragePool and ReduceMean.

A mean over a window is a sum requantized by its count; a mean over other axes is a pool of a
reshaped tensor, [1, outer, reduced, inner] with a window of 1 by ``reduced``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tinyq.errors import error
from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, QuantParams, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, Wide, c_type, width_of
from tinyq.ops.fixed_point import FixedPointAttrs, FixedPointMean
from tinyq.ops.layout import from_nhwc, reshape, to_nhwc, transpose
from tinyq.ops.linear import LinearRequant, clamped_limits, output_limits, requantized
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import AvgPool2dParams, CountRequant, window_counts
from tinyq.ops.windows import Window, onnx_window, overlap_distance
from tinyq.quant import (
    FLOAT32_UNIT,
    FixedPointLinear,
    Rounding,
    WideRequant,
    build_staircase,
    synthesize,
    wide_requant,
)
from tinyq.quant.fixed_point import mean_multiplier, rounded_mean
from tinyq.target import Core

MeanRule = Literal["image", "window", "axes", "away", "unsigned", "twice"]
"""How the oracle rounds a mean. onnxruntime: over the whole image (GlobalAveragePool, and
AveragePool with such a window), over smaller windows (AveragePool), or over any axes (ReduceMean).
TensorFlow Lite: AVERAGE_POOL_2D of int8 (halves of the raw mean away from zero) and of uint8 (the
same about the zero of its own), MEAN (the fixed-point rule that rounds twice)."""

_NOISE = 1e-5
"""Distance from a half, in output units, within which float32 sums of dequantized elements may
round either way."""


@dataclass(frozen=True)
class MeanOracle:
    """Sums of ``count`` int8 values to outputs int64[1, n], as onnxruntime rounds them.

    image: integer sum times one float32 factor, rounded half to even, then the zero point; exact.
    window: the mean of dequantized float32 elements, the zero point added before rounding.
    axes: the same with the zero point added after rounding.
    away, unsigned, twice: TensorFlow Lite's, in integers alone; exact.
    window and axes are computed from the exact sum: where the result lies on a half, onnxruntime's
    own sum of rounded elements may fall to either side (:meth:`ambiguous` counts those sums).
    """

    count: int
    x: QuantParams
    y: QuantParams
    qmin: int
    qmax: int
    rule: MeanRule

    def __call__(self, acc: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Outputs of raw sums."""
        if self.rule == "twice":
            return self.fixed_point()(acc)
        if self.rule in ("away", "unsigned"):
            base = 128 * (self.rule == "unsigned")
            return np.clip(rounded_mean(acc + base * self.count, self.count) - base, *self.limits)
        centred = (acc - self.count * self.x.zero_point).astype(np.float32)
        x_scale, y_scale = np.float32(self.x.scale), np.float32(self.y.scale)
        if self.rule == "image":
            levels = np.rint(centred * (x_scale / (y_scale * np.float32(self.count))))
            levels += self.y.zero_point
        else:
            real = centred * x_scale / np.float32(self.count) / y_scale
            if self.rule == "window":
                levels = np.rint(real + np.float32(self.y.zero_point))
            else:
                levels = np.rint(real) + self.y.zero_point
        return np.asarray(np.clip(levels.astype(np.int64), self.qmin, self.qmax), np.int64)

    @property
    def scale(self) -> float:
        """Output units for one unit of the sum."""
        return self.x.scale / (self.y.scale * self.count)

    @property
    def limits(self) -> tuple[int, int]:
        """The output's range."""
        return self.qmin, self.qmax

    def fixed_point(self) -> FixedPointLinear:
        """The rule ``twice`` as parameters of one channel."""
        multiplier, shift = mean_multiplier(self.x.scale, self.y.scale, self.count)
        return FixedPointLinear(
            np.array([multiplier]), np.array([shift]), np.zeros(1, np.int64),
            np.array([-self.count * self.x.zero_point]), self.y.zero_point, Rounding.TWICE,
            *self.limits,
        )  # fmt: skip

    def ambiguous(self) -> int:
        """Reachable sums at which onnxruntime's float32 arithmetic may round either way."""
        if self.rule not in ("window", "axes"):
            return 0
        acc = np.arange(-128 * self.count, 127 * self.count + 1)
        real = (acc - self.count * self.x.zero_point) * self.scale
        inside = (real + self.y.zero_point > self.qmin - 1) & (
            real + self.y.zero_point < self.qmax + 1
        )
        near = np.abs(real - np.floor(real) - 0.5) < _NOISE
        return int(np.count_nonzero(near & inside))


@dataclass(frozen=True, eq=False)
class AveragePool2dAttrs:
    """The window, whether padding counts, and the requantization for every count that occurs.

    ``ambiguous`` counts the sums, over all counts, at which the oracle may round either way.
    """

    window: Window
    count_include_pad: bool
    x: QuantParams
    qmin: int
    qmax: int
    rule: MeanRule
    requants: tuple[tuple[int, LinearRequant], ...] = ()
    ambiguous: int = 0

    def __str__(self) -> str:
        return f"window={self.window} include_pad={self.count_include_pad} rule={self.rule}"


class AveragePool2d(Operator):
    """The operator ``average_pool2d`` over [1, H, W, C]."""

    name: ClassVar[str] = "average_pool2d"
    summary: ClassVar[str] = "Means: average pools (both counts of padding), global, over any axes"
    onnx: ClassVar[tuple[str, ...]] = (
        "AveragePool", "GlobalAveragePool", "ReduceMean",
        "QLinearAveragePool", "QLinearGlobalAveragePool",
    )  # fmt: skip

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The pooled shape, of the type that the node says."""
        if isinstance(node.attrs, FixedPointMean):
            n, _, _, c = node.input(0).type.shape
            return (TensorType((n, *node.attrs.out_hw, c), DType.INT8, node.output.type.quant),)
        x, w = node.input(0).type, attrs_of(node).window
        size = [
            (x.shape[k + 1] + w.pads[k] + w.pads[k + 2] - w.kernel_hw[k]) // w.stride_hw[k] + 1
            for k in (0, 1)
        ]
        shape = (x.shape[0], *size, x.shape[3])
        return (node.output.type.with_shape(shape),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Sum, then requantize by the count of each position."""
        if isinstance(node.attrs, FixedPointAttrs):
            return (node.attrs.compute(inputs),)
        a, x = attrs_of(node), inputs[0].astype(np.int64)
        rows, columns = counts_of(node)
        # Taps outside the padding of a count that includes it add nothing.
        sums = _window_sums(x, a, node.output.type.shape)
        counts = np.outer(rows, columns)
        result = np.zeros(sums.shape, node.output.type.dtype.numpy)
        for count, requant in a.requants:
            at = counts == count
            result[:, at] = requantized(requant, sums[:, at][..., None])[..., 0]
        return (result,)

    def synthesize(self, node: Node) -> AveragePool2dAttrs | FixedPointMean:
        """Attributes with one requantization a count."""
        if isinstance(node.attrs, FixedPointMean):
            return node.attrs
        a, y = attrs_of(node), node.output.type.quant
        if y is None:
            raise InvalidGraphError(f"'{node.name}' has no output quantization")
        rows, columns = counts_of(node)
        requants: list[tuple[int, LinearRequant]] = []
        ambiguous = 0
        for count in sorted({r * c for r in rows for c in columns}):
            if width_of(node) > 8:
                requants.append((count, _wide_mean(node, count)))
                continue
            oracle = MeanOracle(count, a.x, y, a.qmin, a.qmax, a.rule)
            ambiguous += oracle.ambiguous()
            low, high = np.array([-128 * count]), np.array([127 * count])
            stair = build_staircase(oracle, low, high, a.qmin, a.qmax)
            found = synthesize(stair, np.array([oracle.scale]))
            literal = a.rule == "twice" and not found.exact
            requants.append((count, oracle.fixed_point() if literal else found))
        return replace(a, requants=tuple(requants), ambiguous=ambiguous)

    def real_levels(
        self, node: Node, inputs: tuple[AnyArray, ...]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """Of means with an int16 tensor."""
        y = node.output.type.quant
        if width_of(node) == 8 or y is None:
            return None
        a, shape = attrs_of(node), node.output.type.shape
        centred = inputs[0].astype(np.int64) - a.x.zero_point
        plain = replace(a, x=QuantParams.per_tensor(a.x.scale, 0))
        counts = np.outer(*counts_of(node))[:, :, None]
        factor = a.x.scale / (y.scale * counts)
        levels = _window_sums(centred, plain, shape) * factor + y.zero_point
        magnitudes = _window_sums(np.abs(centred), plain, shape) * factor + abs(y.zero_point)
        return levels, 1.01 * (counts + 6) * FLOAT32_UNIT * magnitudes


def _wide_mean(node: Node, count: int) -> WideRequant:
    """The requantization of sums over ``count`` elements; raises TQ205 where there is none."""
    a, x, y = attrs_of(node), node.input(0).type, node.output.type.quant
    assert y is not None
    ratio = np.float64(a.x.scale) / (np.float64(y.scale) * count)
    constant = y.zero_point - count * a.x.zero_point * Fraction(float(ratio))
    low, high = (np.array([end * count]) for end in x.dtype.limits)
    try:
        return wide_requant(np.array([ratio]), [constant], low, high, a.qmin, a.qmax)
    except ValueError as reason:
        raise error("TQ205", str(reason), node=node.name, operator=node.op) from None


def attrs_of(node: Node) -> AveragePool2dAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, AveragePool2dAttrs):
        raise InvalidGraphError(f"'{node.name}' has no AveragePool2dAttrs")
    return node.attrs


def counts_of(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Taps that each output row and each output column averages."""
    a, x, y = attrs_of(node), node.input(0).type.shape, node.output.type.shape
    w = a.window
    rows, columns = (
        window_counts(
            x[k + 1], y[k + 1], w.kernel_hw[k], w.stride_hw[k], w.pads[k], w.pads[k + 2],
            a.count_include_pad,
        )
        for k in (0, 1)
    )  # fmt: skip
    return rows, columns


def _window_sums(
    x: npt.NDArray[np.int64], a: AveragePool2dAttrs, shape: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    w = a.window
    fill = a.x.zero_point if a.count_include_pad else 0
    widths = ((0, 0), (w.pads[0], w.pads[2]), (w.pads[1], w.pads[3]), (0, 0))
    padded = np.pad(x, widths, constant_values=fill)
    sums = np.zeros((len(x), *shape[1:]), np.int64)
    for ky in range(w.kernel_hw[0]):
        for kx in range(w.kernel_hw[1]):
            taps = padded[:, ky :: w.stride_hw[0], kx :: w.stride_hw[1]]
            sums += taps[:, : shape[1], : shape[2]]
    return sums


def _rule(island: Island, limits: tuple[int, int], fused: MeanRule) -> MeanRule:
    """onnxruntime's integer kernel takes no clamp: one that narrows the output leaves floats."""
    return fused if limits == output_limits(island, -np.inf, np.inf) else "axes"


def lower_mean(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """AveragePool, GlobalAveragePool or ReduceMean of the QDQ graph."""
    source = island.sources.get(node.input(0))
    limits = clamped_limits(emitter, island, node)
    if limits is None:
        return None
    if source is None:
        emitter.refuse("TQ202", node, f"its input '{node.input(0).name}' is not quantized")
        return None
    x = source.value
    if node.op != "AveragePool":
        return _lower_reduction(emitter, island, node, x, source.quant, limits)
    rank = len(x.type.shape)
    window = onnx_window(node, x.type.shape[2:]) if rank in (3, 4) else None
    if window is None or window.dilation_hw != (1, 1):
        emitter.refuse("TQ203", node, f"rank {rank} or dilations", "Use 1 or 2 spatial dimensions.")
        return None
    whole = window.kernel_hw == ((1,) * (4 - rank) + x.type.shape[2:]) and not any(window.pads)
    attrs = AveragePool2dAttrs(
        window,
        bool(node.attrs.get("count_include_pad", 0)),
        source.quant,
        *limits,
        rule=_rule(island, limits, "image" if whole else "window"),
    )
    nhwc = to_nhwc(emitter, node.name, x)
    shape = node.output.type.shape
    out = (shape[0], *((1,) if rank == 3 else ()), *shape[2:], shape[1])
    y = emitter.emit(
        "average_pool2d", node.name, (nhwc,), island.output_type.with_shape(out), attrs
    )
    return from_nhwc(emitter, node.name, y, shape)


def _lower_reduction(
    emitter: Emitter, island: Island, node: Node, x: Value, quant: QuantParams,
    limits: tuple[int, int],
) -> Value:  # fmt: skip
    """A mean over any axes: bring them together, pool, restore the declared shape."""
    shape = x.type.shape
    axes = _axes(node, len(shape))
    if len(shape) == 4 and axes == (2, 3):
        x = transpose(emitter, f"{node.name}:nhwc", x, (0, 2, 3, 1))
        outer, inner = 1, shape[1]
    else:
        kept = tuple(k for k in range(len(shape)) if k not in axes)
        perm = (*kept, *axes)
        if perm != tuple(range(len(shape))):
            x = transpose(emitter, f"{node.name}:last", x, perm)
        outer, inner = math.prod(shape[k] for k in kept), 1
    reduced = math.prod(shape[k] for k in axes)
    if not (len(shape) == 4 and axes == (2, 3)):
        x = reshape(emitter, f"{node.name}:rows", x, (1, outer, reduced, inner))
        window = Window((1, reduced), (1, reduced), (1, 1), (0, 0, 0, 0))
    else:
        window = Window(shape[2:4], shape[2:4], (1, 1), (0, 0, 0, 0))
    rule = _rule(island, limits, "image" if node.op == "GlobalAveragePool" else "axes")
    attrs = AveragePool2dAttrs(window, False, quant, *limits, rule=rule)
    pooled = (1, outer, 1, inner)
    y = emitter.emit(
        "average_pool2d", node.name, (x,), island.output_type.with_shape(pooled), attrs
    )
    return reshape(emitter, f"{node.name}:shape", y, node.output.type.shape)


def _axes(node: Node, rank: int) -> tuple[int, ...]:
    if node.op == "GlobalAveragePool":
        return tuple(range(2, rank))
    given = node.attrs.get("axes")
    if given is None and (value := node.optional_input(1)) is not None:
        given = tuple(int(v) for v in value.array.reshape(-1))
    if not given:
        return tuple(range(rank))
    return tuple(sorted(axis % rank for axis in given))


class AveragePool2dS8(Kernel):
    """Portable C: a sum a channel."""

    name: ClassVar[str] = "avg_pool2d_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, x, y = attrs_of(node), node.input(0).type.shape, node.output.type
        w = a.window
        taps = w.kernel_hw[0] * w.kernel_hw[1]
        params = AvgPool2dParams(
            x[1], x[2], x[3], y.shape[1], y.shape[2], *w.kernel_hw, *w.stride_hw, *w.pads[:2],
            *w.pads[2:], a.count_include_pad, a.x.zero_point,
            tuple(_count_requant(count, requant) for count, requant in a.requants),
            a.qmin, a.qmax, c_type(node.input(0)), c_type(node.output),
            "int32_t" if -taps * node.input(0).type.dtype.limits[0] < 2**31 else "int64_t",
        )  # fmt: skip
        return KernelCall(
            self.name, "ops/avg_pool2d_s8.c.j2", params,
            instructions=y.elements * (4 * taps + 20), reason="portable",
            overlap=overlap_distance(
                x[1:], y.shape[1:], w.stride_hw, w.pads[:2],
                (node.input(0).type.dtype.bytes, y.dtype.bytes),
            ),
        )  # fmt: skip


def _count_requant(count: int, requant: LinearRequant) -> CountRequant:
    if isinstance(requant, FixedPointLinear):
        return CountRequant(
            count, int(requant.multiplier[0]), int(requant.offset[0]), 0, int(requant.shift[0]),
            ties="twice", zero_point=requant.zero_point,
        )  # fmt: skip
    if isinstance(requant, WideRequant):
        return CountRequant(
            count, int(requant.multiplier[0]), int(requant.addend[0]), 0, requant.shift, ties="wide"
        )
    fixes = tuple((fix.accumulator, fix.delta) for fix in requant.fixes)
    return CountRequant(
        count, int(requant.multiplier[0]), int(requant.addend[0]), requant.pre_shift,
        int(np.asarray(requant.post_shift).reshape(-1)[0]), fixes, requant.ties,
    )  # fmt: skip


AveragePool2d.kernels = (AveragePool2dS8(), Wide(AveragePool2dS8(), "avg_pool2d_s16"))
