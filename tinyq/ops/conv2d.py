"""Convolution, 1-D and 2-D, grouped and depthwise, over NHWC activations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops import linear
from tinyq.ops.base import (
    Kernel,
    KernelCall,
    Operator,
    PackedConstant,
    Refusal,
    RowWindow,
    Wide,
    c_type,
)
from tinyq.ops.linear import LinearOracle, LinearRequant
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import Conv2dParams, RequantParams
from tinyq.ops.windows import Window, onnx_window, overlap_distance
from tinyq.quant import FixedPointLinear
from tinyq.target import Core


@dataclass(frozen=True, eq=False)
class Conv2dAttrs:
    """Attributes of ``conv2d``: input [1, H, W, I], weights OHWI [O, kh, kw, I / groups].

    pads: top, left, bottom, right; padded taps read ``x_zero_point``. oracle and scale say what the
    requantization must equal; ``requant`` is set once it is synthesised. ``x_values``: all that the
    input can be, ascending, where they are few and a kernel asks (empty: not known).
    """

    stride_hw: tuple[int, int]
    dilation_hw: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    x_zero_point: int
    oracle: LinearOracle
    scale: npt.NDArray[np.float64]
    requant: LinearRequant | None = None
    x_values: tuple[int, ...] = ()

    @property
    def is_fixed_point(self) -> bool:
        """Whether the requantization is CMSIS-NN's own form."""
        return isinstance(self.requant, FixedPointLinear)

    def __str__(self) -> str:
        return (
            f"stride={self.stride_hw} dilation={self.dilation_hw} pads={self.pads} "
            f"groups={self.groups} {linear.describe(self.requant)}"
        )


class Conv2d(Operator):
    """The operator ``conv2d``."""

    name: ClassVar[str] = "conv2d"
    summary: ClassVar[str] = (
        "Convolution 1-D and 2-D: any kernel, stride, dilation, padding, groups; depthwise; "
        "transposed"
    )
    onnx: ClassVar[tuple[str, ...]] = ("Conv", "QLinearConv", "ConvTranspose")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """[1, OH, OW, O], int8 or int16 as the node says."""
        x, w, a = node.input(0).type.shape, node.input(1).type.shape, _attrs(node)
        if len(x) != 4 or len(w) != 4 or w[3] * a.groups != x[3] or w[0] % a.groups:
            raise InvalidGraphError(f"conv2d '{node.name}': input {x} and weights {w}")
        size = output_hw(x[1:3], w[1:3], a.stride_hw, a.dilation_hw, a.pads)
        return (node.output.type.with_shape((x[0], *size, w[0])),)

    def accumulate(self, node: Node, x: AnyArray) -> npt.NDArray[np.int64]:
        """Raw accumulators int64 [N, OH, OW, O]: sums of x * w without any zero point."""
        return _sums(node, x, node.input(1).array, _attrs(node).x_zero_point)

    def real_levels(
        self, node: Node, inputs: tuple[AnyArray, ...]
    ) -> tuple[linear.Float64, linear.Float64] | None:
        """See :func:`tinyq.ops.linear.real_levels`."""
        centred = np.abs(inputs[0].astype(np.int64) - _attrs(node).x_zero_point)
        magnitudes = _sums(node, centred, np.abs(node.input(1).array.astype(np.int64)), 0)
        sums = self.accumulate(node, inputs[0])
        return linear.real_levels(node, sums, magnitudes.astype(np.float64))

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Accumulate, then requantize."""
        return (linear.finish(node, self.accumulate(node, inputs[0])),)

    def synthesize(self, node: Node) -> Conv2dAttrs:
        """Attributes with the requantization found."""
        a, weights = _attrs(node), node.input(1).array.astype(np.int64)
        return replace(a, requant=linear.requantize(weights, a.oracle, a.scale))

    def alike(self, node: Node) -> Hashable:
        """Layers with weights of one shape share their inner functions."""
        return linear.shape_key(node)

    def synthesize_alike(self, nodes: Sequence[Node]) -> tuple[Conv2dAttrs, ...]:
        """Attributes with the same shifts for all nodes, where none loses by it."""
        found = linear.requantize_alike(nodes)
        return tuple(replace(_attrs(n), requant=r) for n, r in zip(nodes, found, strict=True))

    def row_window(self, node: Node) -> RowWindow | None:
        """The kernel's."""
        a, w = _attrs(node), node.input(1).type.shape
        return RowWindow(a.dilation_hw[0] * (w[1] - 1) + 1, a.stride_hw[0], a.pads[0])

    def attrs_of_rows(self, node: Node, top: int, bottom: int) -> Conv2dAttrs:
        """Padded by so much above and below."""
        a = _attrs(node)
        return replace(a, pads=(top, a.pads[1], bottom, a.pads[3]))

    def macs(self, node: Node) -> int:
        """One a tap and output element."""
        w = node.input(1).type.shape
        return node.output.type.elements * w[1] * w[2] * w[3]


def _sums(node: Node, x: AnyArray, weights: AnyArray, padding: int) -> npt.NDArray[np.int64]:
    """Sums of products int64 [N, OH, OW, O] over the node's windows."""
    a, size = _attrs(node), node.output.type.shape[1:3]
    window = Window((weights.shape[1], weights.shape[2]), a.stride_hw, a.dilation_hw, a.pads)
    return sums_of_products(x, weights, window, a.groups, size, padding)


def output_hw(
    x_hw: tuple[int, ...], kernel_hw: tuple[int, ...], stride_hw: tuple[int, int],
    dilation_hw: tuple[int, int], pads: tuple[int, int, int, int],
) -> tuple[int, int]:  # fmt: skip
    """Height and width of a convolution's result; pads are top, left, bottom, right."""
    height, width = (
        (x_hw[k] + pads[k] + pads[k + 2] - dilation_hw[k] * (kernel_hw[k] - 1) - 1) // stride_hw[k]
        + 1
        for k in (0, 1)
    )
    return height, width


def sums_of_products(
    x: AnyArray, weights: AnyArray, window: Window, groups: int, out_hw: tuple[int, ...],
    padding: int,
) -> npt.NDArray[np.int64]:  # fmt: skip
    """int64 [N, OH, OW, O] of x [N, H, W, I] and weights OHWI; padded taps read ``padding``."""
    w = weights.astype(np.int64)
    top, left, bottom, right = window.pads
    padded = np.pad(
        x.astype(np.int64),
        ((0, 0), (top, bottom), (left, right), (0, 0)),
        constant_values=padding,
    )
    out_h, out_w = out_hw
    group_in, group_out = w.shape[3], w.shape[0] // groups
    # Sums of products of 8- and 16-bit integers below 2^53 are exact in float64 BLAS.
    total = np.zeros((len(x), out_h, out_w, groups, group_out))
    grouped = w.reshape(groups, group_out, *w.shape[1:]).astype(np.float64)
    for ky in range(w.shape[1]):
        for kx in range(w.shape[2]):
            y0, x0 = ky * window.dilation_hw[0], kx * window.dilation_hw[1]
            patch = padded[
                :,
                y0 : y0 + (out_h - 1) * window.stride_hw[0] + 1 : window.stride_hw[0],
                x0 : x0 + (out_w - 1) * window.stride_hw[1] + 1 : window.stride_hw[1],
            ].reshape(len(x), out_h, out_w, groups, group_in)
            taps = grouped[:, :, ky, kx, :]
            if group_in == 1:
                total += patch.astype(np.float64) * taps[:, :, 0]
            else:
                moved = patch.astype(np.float64).transpose(3, 0, 1, 2, 4)
                flat = moved.reshape(groups, -1, group_in) @ taps.transpose(0, 2, 1)
                shape = (groups, len(x), out_h, out_w, group_out)
                total += flat.reshape(shape).transpose(1, 2, 3, 0, 4)
    return total.reshape(len(x), out_h, out_w, w.shape[0]).astype(np.int64)


def _attrs(node: Node) -> Conv2dAttrs:
    attrs = node.attrs
    if not isinstance(attrs, Conv2dAttrs):
        raise InvalidGraphError(f"'{node.name}' has no Conv2dAttrs")
    return attrs


def lower_conv(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Conv of the QDQ graph: NCHW or NCW activations, OIHW weights."""
    operands = linear.operands_of(emitter, island, node)
    if operands is None:
        return None
    x, found = operands
    rank = len(x.value.type.shape)
    if rank not in (3, 4):
        emitter.refuse("TQ203", node, f"{rank - 2} spatial dimensions", "1 and 2 are supported.")
        return None
    groups = int(node.attrs.get("group", 1))
    shape = found.integers.shape
    if x.value.type.shape[1] != shape[1] * groups or shape[0] % groups or len(shape) != rank:
        wanted = f"weights {list(shape)} in {groups} groups do not fit {list(x.value.type.shape)}"
        emitter.refuse("TQ103", node, wanted)
        return None
    scales = linear.per_output(found, 0, found.integers.shape[0])
    if scales is None:
        emitter.refuse("TQ204", node, "weight scales vary along an axis other than the output's")
        return None
    reader = linear.read_epilogue(emitter, island, node, 1, node.optional_input(2))
    if reader is None:
        return None
    weights = found.centred()
    if rank == 3:
        weights = weights[:, :, None, :]
    made = linear.make_linear(island, reader, x, weights.transpose(0, 2, 3, 1), scales)
    stored = linear.stored_weights(emitter, node, made)
    if stored is None:
        return None
    window = onnx_window(node, x.value.type.shape[2:], found.integers.shape[2:])
    attrs = Conv2dAttrs(
        window.stride_hw,
        window.dilation_hw,
        window.pads,
        int(node.attrs.get("group", 1)),
        x.quant.zero_point,
        made.oracle,
        made.scale,
    )
    return _emit(emitter, island, x.value, stored, attrs)


def _emit(
    emitter: Emitter, island: Island, x: Value, weights: AnyArray, attrs: Conv2dAttrs
) -> Value:
    from tinyq.ops.layout import from_nhwc, to_nhwc

    name = island.name
    nhwc = to_nhwc(emitter, name, x)
    w = emitter.constant(f"{name}:weights", weights)
    shape = island.output_shape
    out_shape = (shape[0], *((1,) if len(shape) == 3 else ()), *shape[2:], shape[1])
    y = emitter.emit("conv2d", name, (nhwc, w), island.output_type.with_shape(out_shape), attrs)
    return from_nhwc(emitter, name, y, shape)


class Conv2dS8(Kernel):
    """Portable C for every convolution on every core."""

    name: ClassVar[str] = "conv2d_s8"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        params = conv2d_params(node)
        # Measured on cortex-m4 and cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        tap = 9 if core.long_multiply else 13
        taps = Conv2d().macs(node)
        return KernelCall(
            self.name,
            "ops/conv2d_s8.c.j2",
            params,
            (weights_constant(node), *linear.requant_constants(linear.linear_requant_of(node))),
            instructions=tap * taps + 40 * node.output.type.elements,
            overlap=overlap_distance(
                node.input(0).type.shape[1:],
                node.output.type.shape[1:],
                (params.stride_h, params.stride_w),
                (params.pad_top, params.pad_left),
                (node.input(0).type.dtype.bytes, node.output.type.dtype.bytes),
            ),
            code_bytes=420,
            reason="portable",
        )


def conv2d_params(node: Node) -> Conv2dParams:
    """Shape and requantization as the templates of convolutions take them."""
    a, requant = _attrs(node), linear.linear_requant_of(node)
    x, w, y = node.input(0).type.shape, node.input(1).type.shape, node.output.type.shape
    return Conv2dParams(
        in_h=x[1], in_w=x[2], in_c=x[3],
        out_h=y[1], out_w=y[2], out_c=y[3],
        kernel_h=w[1], kernel_w=w[2],
        stride_h=a.stride_hw[0], stride_w=a.stride_hw[1],
        dilation_h=a.dilation_hw[0], dilation_w=a.dilation_hw[1],
        pad_top=a.pads[0], pad_left=a.pads[1],
        groups=a.groups,
        x_zero_point=a.x_zero_point,
        weight_type=f"{node.input(1).type.dtype.value}_t",
        requant=RequantParams.of(requant, c_type(node.output)),
        x_type=c_type(node.input(0)),
        acc_type=linear.accumulator_type(node),
    )  # fmt: skip


def weights_constant(node: Node) -> PackedConstant:
    """The weights as the graph holds them."""
    array = node.input(1).array
    return PackedConstant("weights", array, f"{array.dtype}_t")


Conv2d.kernels = (Conv2dS8(), Wide(Conv2dS8(), "conv2d_s16"))
