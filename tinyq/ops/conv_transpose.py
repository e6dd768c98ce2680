"""ConvTranspose of ONNX, said with a convolution and moves: no kernel of its own.

With stride s, output p = s * m + r takes only the taps k = r + s * t, of the inputs m - t. So the s
phases r of each dimension are s convolutions of stride 1 over the same inputs. They are computed
as one, with a channel for each phase, whose channels are then spread over rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyq.ir import AnyArray, Node, QuantParams, Value
from tinyq.ops import linear
from tinyq.ops.conv2d import Conv2dAttrs
from tinyq.ops.layout import from_nhwc, reshape, to_nhwc, transpose
from tinyq.ops.linear import Int64
from tinyq.ops.lowering import Emitter, Island, QuantizedConstant
from tinyq.ops.slice import slice_of


@dataclass(frozen=True)
class _Axis:
    """One spatial dimension: the phases' convolution, and what is kept of their interleaving.

    taps: of a phase. count: outputs of a phase. before, after: padding. skip: interleaved outputs
    before the first one kept; size: outputs kept.
    """

    stride: int
    taps: int
    count: int
    before: int
    after: int
    skip: int
    size: int


def _axis(stride: int, kernel: int, pad: int, size_in: int, size_out: int) -> _Axis:
    taps = -(-kernel // stride)
    first, last = pad // stride, (pad + size_out - 1) // stride
    return _Axis(
        stride, taps, last - first + 1, taps - 1 - first, last + 1 - size_in,
        pad - first * stride, size_out,
    )  # fmt: skip


def _axes(node: Node, x: tuple[int, ...], kernel: tuple[int, ...]) -> list[_Axis] | None:
    """Height and width (a height of 1 for one dimension); None where pads exceed the kernel."""
    rank, out = len(x), node.output.type.shape[2:]
    strides = tuple(node.attrs.get("strides") or (1,) * rank)
    extra = tuple(node.attrs.get("output_padding") or (0,) * rank)
    auto = node.attrs.get("auto_pad", "NOTSET")
    found = [] if rank == 2 else [_axis(1, 1, 0, 1, 1)]
    for k in range(rank):
        begin = (node.attrs.get("pads") or (0,) * 2 * rank)[k]
        if auto in ("SAME_UPPER", "SAME_LOWER") or node.attrs.get("output_shape"):
            # The shape is given, and says how much is cut off in all.
            total = max(0, (x[k] - 1) * strides[k] + extra[k] + kernel[k] - out[k])
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
        axis = _axis(strides[k], kernel[k], begin, x[k], out[k])
        if min(axis.before, axis.after) < 0:
            return None
        found.append(axis)
    return found


def _dilated(weights: Int64, dilation_hw: tuple[int, int]) -> Int64:
    """[I, O, kh, kw] with zeros between the taps."""
    sizes = [(n - 1) * d + 1 for n, d in zip(weights.shape[2:], dilation_hw, strict=True)]
    spread = np.zeros((*weights.shape[:2], *sizes), np.int64)
    spread[:, :, :: dilation_hw[0], :: dilation_hw[1]] = weights
    return spread


def _phases(weights: Int64, groups: int, height: _Axis, width: _Axis) -> Int64:
    """[I, O / groups, kh, kw] as OHWI of the phases' convolution.

    Its output channels are [groups, row phases, column phases, O / groups], its taps reversed.
    """
    inputs, out, kernel_h, kernel_w = weights.shape
    full = np.zeros((inputs, out, height.taps * height.stride, width.taps * width.stride), np.int64)
    full[:, :, :kernel_h, :kernel_w] = weights
    split = full.reshape(
        groups, inputs // groups, out, height.taps, height.stride, width.taps, width.stride
    )[:, :, :, ::-1, :, ::-1, :]
    ordered = split.transpose(0, 4, 6, 2, 3, 5, 1)
    return np.ascontiguousarray(
        ordered.reshape(-1, height.taps, width.taps, inputs // groups), np.int64
    )


def lower_conv_transpose(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """ConvTranspose of the QDQ graph: NCHW or NCW activations, weights [I, O / groups, ...]."""
    operands = linear.operands_of(emitter, island, node)
    if operands is None:
        return None
    x, found = operands
    shape, kernel = x.value.type.shape, found.integers.shape
    groups, rank = int(node.attrs.get("group", 1)), len(x.value.type.shape)
    if rank not in (3, 4):
        emitter.refuse("TQ203", node, f"{rank - 2} spatial dimensions", "1 and 2 are supported.")
        return None
    if len(kernel) != rank or kernel[0] != shape[1] or kernel[0] % groups:
        text = f"weights {list(kernel)} in {groups} groups do not fit {list(shape)}"
        emitter.refuse("TQ103", node, text)
        return None
    scales = linear.per_output(found, 1, kernel[1])
    if scales is None:
        emitter.refuse("TQ204", node, "weight scales vary along an axis other than the output's")
        return None
    dilations = tuple(node.attrs.get("dilations") or (1,) * (rank - 2))
    weights = found.centred().reshape(*kernel[:2], *(() if rank == 4 else (1,)), *kernel[2:])
    weights = _dilated(weights, (1, dilations[0]) if rank == 3 else (dilations[0], dilations[1]))
    axes = _axes(node, shape[2:], weights.shape[6 - rank :])
    if axes is None:
        emitter.refuse("TQ203", node, "pads as large as the kernel", "Pad less, and slice.")
        return None
    height, width = axes
    reader = linear.read_epilogue(emitter, island, node, 1, node.optional_input(2))
    if reader is None:
        return None
    # Channel of the result that each channel [groups, phases, phases, O / groups] belongs to.
    spread = (groups, height.stride, width.stride, kernel[1])
    channel = np.broadcast_to(
        np.arange(groups * kernel[1]).reshape(groups, 1, 1, -1), spread
    ).reshape(-1)
    made = linear.make_linear(
        island, _repeated(reader, channel), x, _phases(weights, groups, height, width),
        np.tile(scales, groups)[channel],
    )  # fmt: skip
    stored = linear.stored_weights(emitter, node, made)
    if stored is None:
        return None
    emitter.notes.append(
        f"{node.op} '{node.name}': onnxruntime computes it in float32, so that it may differ where "
        "a result lies on a half"
    )
    attrs = Conv2dAttrs(
        (1, 1), (1, 1), (height.before, width.before, height.after, width.after), groups,
        x.quant.zero_point, made.oracle, made.scale,
    )  # fmt: skip
    return _emit(emitter, island, x.value, stored, attrs, (height, width), spread)


def _repeated(reader: linear.EpilogueReader, channel: AnyArray) -> linear.EpilogueReader:
    """The epilogue of every phase: that of the channel it belongs to."""
    constant = reader.bias_constant
    if constant is not None and constant.integers.size > 1:
        quant = constant.quant
        if not quant.is_per_tensor:
            scales, zeros = (np.asarray(v)[channel] for v in (quant.scales, quant.zero_points))
            quant = QuantParams(tuple(map(float, scales)), tuple(map(int, zeros)), 0)
        integers = constant.integers.reshape(-1)[channel]
        reader.bias_constant = QuantizedConstant(integers, quant, constant.dtype)
    reader.gain, reader.bias = reader.gain[channel], reader.bias[channel]
    reader.channels = len(channel)
    return reader


def _emit(
    emitter: Emitter, island: Island, x: Value, weights: AnyArray, attrs: Conv2dAttrs,
    axes: tuple[_Axis, _Axis], spread: tuple[int, ...],
) -> Value:  # fmt: skip
    """The convolution, its channels spread over the phases' rows and columns, and the cut."""
    name, (height, width) = island.name, axes
    groups, out = spread[0], spread[3]
    w = emitter.constant(f"{name}:weights", weights)
    made = island.output_type.with_shape((1, height.count, width.count, weights.shape[0]))
    y = emitter.emit("conv2d", name, (to_nhwc(emitter, name, x), w), made, attrs)
    if height.stride * width.stride > 1:
        y = reshape(emitter, f"{name}:phases", y, (1, height.count, width.count, *spread))
        y = transpose(emitter, f"{name}:interleave", y, (0, 1, 4, 2, 5, 3, 6))
        full = (height.count * height.stride, width.count * width.stride)
        y = reshape(emitter, f"{name}:interleaved", y, (1, *full, groups * out))
    kept = (1, height.size, width.size, groups * out)
    if y.type.shape != kept:
        y = slice_of(emitter, f"{name}:cut", y, kept, [0, height.skip, width.skip, 0], [1] * 4)
    return from_nhwc(emitter, name, y, island.output_shape)
