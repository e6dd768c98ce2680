"""One rule an operator of TensorFlow Lite: what it is in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tinyq.errors import error
from tinyq.frontends.tflite import Operation, Tensor
from tinyq.frontends.tflite_nodes import OnnxWriter
from tinyq.ir import QuantParams

Rule = Callable[[OnnxWriter, Operation], None]

# --- linear operators -----------------------------------------------------------------------------


def _conv(w: OnnxWriter, op: Operation) -> None:
    weights = _weights(op)
    channels, group_in = op.input(0).shape[3], weights.shape[3]
    if group_in == 0 or channels % group_in:
        raise error("TQ203", f"{channels} channels and weights of {group_in}")
    data = op.constant(1).transpose(0, 3, 1, 2)
    _emit_conv(w, op, data, _moved_axis(weights.parameters, 0), channels // group_in)


def _depthwise(w: OnnxWriter, op: Operation) -> None:
    weights = _weights(op)
    data = op.constant(1).transpose(3, 0, 1, 2)
    _emit_conv(w, op, data, _moved_axis(weights.parameters, 3), op.input(0).shape[3])


def _weights(op: Operation) -> Tensor:
    weights = op.input(1)
    op.constant(1)
    if len(weights.shape) != 4 or weights.dtype not in ("int8", "uint8", "int4"):
        raise error("TQ204", f"weights of type {weights.dtype}, shape {list(weights.shape)}")
    return weights


def _moved_axis(quant: QuantParams, axis: int) -> QuantParams:
    """Scales of weights whose output channels, ``axis`` in the file, become axis 0."""
    if quant.axis is not None and quant.axis != axis:
        raise error("TQ204", f"weight scales along axis {quant.axis}")
    return QuantParams(quant.scales, quant.zero_points, None if quant.axis is None else 0)


def _emit_conv(
    w: OnnxWriter, op: Operation, data: np.ndarray, quant: QuantParams, group: int
) -> None:
    kernel = data.shape[2:]
    strides = (op.option("strideH"), op.option("strideW"))
    dilations = (op.option("dilationHFactor", 1), op.option("dilationWFactor", 1))
    x = w.real_nchw(op.input(0), op)
    dtype = "uint8" if data.dtype == np.uint8 else "int8"
    weights = w.dequantize(w.constant(data, f"{op.name}//weights"), quant, dtype)
    value = w.emit(
        "Conv",
        [x, weights, *_bias(w, op, quant)],
        w.fresh(op.name),
        name=op.name,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        group=group,
        pads=_pads(op, kernel, strides, dilations),
    )
    w.finish_nchw(value, op, op.option("fusedActivationFunction"))


def _pads(
    op: Operation, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...]:
    """Top, left, bottom, right; SAME puts the odd element at the end."""
    if op.option("padding") == 1:  # VALID
        return (0, 0, 0, 0)
    before, after = [], []
    for k in (0, 1):
        size, out = op.input(0).shape[k + 1], op.outputs[0].shape[k + 1]
        total = max((out - 1) * strides[k] + dilations[k] * (kernel[k] - 1) + 1 - size, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return (*before, *after)


def _bias(w: OnnxWriter, op: Operation, weights: QuantParams) -> list[str]:
    """The int32 bias, whose scale is the product of the others whatever the file says."""
    bias = op.optional(2)
    if bias is None:
        return []
    data = op.constant(2)
    if bias.dtype != "int32":
        raise error("TQ204", f"a bias of type {bias.dtype}", "int32 is supported.")
    scales = np.float32(op.input(0).parameters.scale) * weights.scale_array()
    quant = QuantParams(
        tuple(map(float, scales)), (0,) * scales.size, 0 if scales.size > 1 else None
    )
    return [w.dequantize(w.constant(data, f"{op.name}//bias"), quant, "int32")]


def _fully_connected(w: OnnxWriter, op: Operation) -> None:
    x, weights, output = op.input(0), op.input(1), op.outputs[0]
    data = op.constant(1)
    if op.option("weightsFormat") or data.ndim != 2:
        raise error("TQ203", f"weights in format {op.option('weightsFormat')}")
    quant = _moved_axis(weights.parameters, 0)
    out_features, in_features = data.shape
    integers = w.integers(x)
    rows = int(np.prod(x.shape)) // in_features
    if x.shape != (rows, in_features):
        integers = w.reshape(integers, (rows, in_features), w.fresh(x.name))
    real = w.dequantize(integers, x.parameters, x.dtype)
    dtype = "uint8" if data.dtype == np.uint8 else "int8"
    b = w.dequantize(w.constant(data, f"{op.name}//weights"), quant, dtype)
    inputs = [real, b, *_bias(w, op, quant)]
    value = w.emit("Gemm", inputs, w.fresh(op.name), name=op.name, transB=1)
    activation = op.option("fusedActivationFunction")
    if output.shape == (rows, out_features):
        w.quantize(value, output, output.name, activation)
    else:
        flat = w.quantize(value, output, w.fresh(output.name), activation)
        w.reshape(flat, output.shape, output.name)


# --- elementwise operators ------------------------------------------------------------------------


def _binary(onnx_op: str) -> Rule:
    def rule(w: OnnxWriter, op: Operation) -> None:
        inputs = [w.real(op.input(0)), w.real(op.input(1))]
        value = w.emit(onnx_op, inputs, w.fresh(op.name), name=op.name)
        w.quantize(value, op.outputs[0], op.name, op.option("fusedActivationFunction"))

    return rule


def _unary(onnx_op: str, **attributes: object) -> Rule:
    def rule(w: OnnxWriter, op: Operation) -> None:
        value = w.emit(onnx_op, [w.real(op.input(0))], w.fresh(op.name), name=op.name, **attributes)
        w.quantize(value, op.outputs[0], op.name)

    return rule


def _leaky_relu(w: OnnxWriter, op: Operation) -> None:
    _unary("LeakyRelu", alpha=float(op.option("alpha", 0.0)))(w, op)


def _softmax(w: OnnxWriter, op: Operation) -> None:
    if float(op.option("beta", 1.0)) != 1.0:
        raise error("TQ203", f"beta={op.option('beta'):g}", "Scale its input instead.")
    _unary("Softmax", axis=-1)(w, op)


def _clip(low: float, high: float) -> Rule:
    def rule(w: OnnxWriter, op: Operation) -> None:
        bounds = [w.constant(np.asarray(b, np.float32), "bound") for b in (low, high)]
        value = w.emit("Clip", [w.real(op.input(0)), *bounds], w.fresh(op.name), name=op.name)
        w.quantize(value, op.outputs[0], op.name)

    return rule


def _prelu(w: OnnxWriter, op: Operation) -> None:
    op.constant(1)
    inputs = [w.real(op.input(0)), w.real(op.input(1))]
    value = w.emit("PRelu", inputs, w.fresh(op.name), name=op.name)
    w.quantize(value, op.outputs[0], op.name)


def _quantize(w: OnnxWriter, op: Operation) -> None:
    x = op.input(0)
    w.quantize(x.name if x.is_float else w.real(x), op.outputs[0], op.name)


def _dequantize(w: OnnxWriter, op: Operation) -> None:
    w.real(op.input(0))
    w.nodes[-1].output[0] = op.name
    w.nodes[-1].name = op.name


# --- pools and reductions -------------------------------------------------------------------------


def _pool(w: OnnxWriter, op: Operation, average: bool) -> None:
    kernel = (op.option("filterHeight"), op.option("filterWidth"))
    strides = (op.option("strideH"), op.option("strideW"))
    window = {
        "kernel_shape": kernel, "strides": strides, "pads": _pads(op, kernel, strides, (1, 1)),
    }  # fmt: skip
    activation, output = op.option("fusedActivationFunction"), op.outputs[0]
    if average:
        x = w.real_nchw(op.input(0), op)
        value = w.emit("AveragePool", [x], w.fresh(op.name), name=op.name, **window)
        w.finish_nchw(value, op, activation)
        return
    _same_grid(op)
    x = w.nchw(op.input(0), op)
    value = w.emit("MaxPool", [x], w.fresh(op.name), name=op.name, **window)
    if activation:
        real = w.dequantize(value, output.parameters, output.dtype)
        value = w.quantize(real, output, w.fresh(op.name), activation)
    w.emit("Transpose", [value], output.name, perm=(0, 2, 3, 1))


def _average_pool(w: OnnxWriter, op: Operation) -> None:
    _pool(w, op, True)


def _max_pool(w: OnnxWriter, op: Operation) -> None:
    _pool(w, op, False)


def _mean(w: OnnxWriter, op: Operation) -> None:
    x, output = op.input(0), op.outputs[0]
    rank = len(x.shape)
    axes = tuple(sorted({int(a) % rank for a in op.constant(1).reshape(-1)}))
    spatial = rank == 4 and axes == (1, 2)
    real = w.real_nchw(x, op) if spatial else w.real(x)
    value = w.emit(
        "ReduceMean", [real], w.fresh(op.name), name=op.name, axes=(2, 3) if spatial else axes,
        keepdims=1,
    )  # fmt: skip
    integers = w.quantize(value, output, w.fresh(op.name))
    if spatial:
        integers = w.emit("Transpose", [integers], w.fresh(op.name), perm=(0, 2, 3, 1))
    w.reshape(integers, output.shape, output.name)


# --- moves of integers ----------------------------------------------------------------------------


def _same_grid(op: Operation, inputs: tuple[Tensor, ...] = ()) -> None:
    """Refuse a move whose input has another quantization than its output."""
    for tensor in inputs or (op.input(0),):
        if tensor.quant != op.outputs[0].quant or tensor.dtype != op.outputs[0].dtype:
            raise error("TQ204", f"'{tensor.name}' and its output are quantized differently")


def _reshape(w: OnnxWriter, op: Operation) -> None:
    w.reshape(w.integers(op.input(0)), op.outputs[0].shape, op.name)


def _transpose(w: OnnxWriter, op: Operation) -> None:
    perm = tuple(int(a) for a in op.constant(1).reshape(-1))
    w.emit("Transpose", [w.integers(op.input(0))], op.name, perm=perm)


def _concatenation(w: OnnxWriter, op: Operation) -> None:
    tensors = tuple(t for t in op.inputs if t is not None)
    axis, output = int(op.option("axis")), op.outputs[0]
    if all(t.quant == output.quant for t in tensors) and not op.option("fusedActivationFunction"):
        w.emit("Concat", [w.integers(t) for t in tensors], op.name, axis=axis)
        return
    value = w.emit(
        "Concat", [w.real(t) for t in tensors], w.fresh(op.name), name=op.name, axis=axis
    )
    w.quantize(value, output, op.name, op.option("fusedActivationFunction"))


def _split(w: OnnxWriter, op: Operation) -> None:
    x = op.input(1)
    axis = int(op.constant(0).reshape(-1)[0])
    _emit_split(w, op, x, axis)


def _split_v(w: OnnxWriter, op: Operation) -> None:
    _emit_split(w, op, op.input(0), int(op.constant(2).reshape(-1)[0]))


def _emit_split(w: OnnxWriter, op: Operation, x: Tensor, axis: int) -> None:
    sizes = np.asarray([t.shape[axis] for t in op.outputs], np.int64)
    w.emit("Split", [w.integers(x), w.constant(sizes)], op.name, axis=axis % len(x.shape))
    w.nodes[-1].output.extend(t.name for t in op.outputs[1:])


def _strided_slice(w: OnnxWriter, op: Operation) -> None:
    x = op.input(0)
    masks = {m: int(op.option(m)) for m in ("ellipsisMask", "newAxisMask")}
    if any(masks.values()):
        raise error("TQ203", "an ellipsis or a new axis", "Reshape instead.")
    begin, end, step = (op.constant(k).reshape(-1).astype(np.int64) for k in (1, 2, 3))
    starts, ends, steps = [], [], []
    for axis in range(len(begin)):
        size, stride = x.shape[axis], int(step[axis])
        open_begin = int(op.option("beginMask")) >> axis & 1
        open_end = int(op.option("endMask")) >> axis & 1
        start = (0 if stride > 0 else size - 1) if open_begin else int(begin[axis])
        stop = (size if stride > 0 else -size - 1) if open_end else int(end[axis])
        if int(op.option("shrinkAxisMask")) >> axis & 1:
            start = int(begin[axis]) % size
            stop, stride = start + 1, 1
        starts.append(start)
        ends.append(stop)
        steps.append(stride)
    bounds = [
        w.constant(np.asarray(part, np.int64), "slice")
        for part in (starts, ends, list(range(len(starts))), steps)
    ]
    value = w.emit("Slice", [w.integers(x), *bounds], w.fresh(op.name), name=f"{op.name}//slice")
    w.reshape(value, op.outputs[0].shape, op.name)


def _pad(w: OnnxWriter, op: Operation) -> None:
    x = op.input(0)
    _same_grid(op)
    pads = op.constant(1).reshape(-1, 2).astype(np.int64)
    fill = op.optional(2)
    value = x.parameters.zero_point if fill is None else int(op.constant(2).reshape(-1)[0])
    inputs = [
        w.integers(x), w.constant(pads.T.reshape(-1), "pads"),
        w.constant(np.asarray(value, x.dtype), "fill"),
    ]  # fmt: skip
    w.emit("Pad", inputs, op.name)


def _pack(w: OnnxWriter, op: Operation) -> None:
    tensors, output = tuple(t for t in op.inputs if t is not None), op.outputs[0]
    _same_grid(op, tensors)
    axis = int(op.option("axis")) % len(output.shape)
    shape = (*output.shape[:axis], 1, *output.shape[axis + 1 :])
    parts = [w.reshape(w.integers(t), shape, w.fresh(t.name)) for t in tensors]
    w.emit("Concat", parts, op.name, axis=axis)


def _unpack(w: OnnxWriter, op: Operation) -> None:
    x = op.input(0)
    axis = int(op.option("axis")) % len(x.shape)
    parts = [w.fresh(t.name) for t in op.outputs]
    sizes = np.ones(len(parts), np.int64)
    w.emit("Split", [w.integers(x), w.constant(sizes)], parts[0], axis=axis)
    w.nodes[-1].output.extend(parts[1:])
    for part, tensor in zip(parts, op.outputs, strict=True):
        w.reshape(part, tensor.shape, tensor.name)


def _resize(w: OnnxWriter, op: Operation, mode: str) -> None:
    output = op.outputs[0]
    _same_grid(op)
    half, corners = bool(op.option("halfPixelCenters")), bool(op.option("alignCorners"))
    coordinates = "half_pixel" if half else "align_corners" if corners else "asymmetric"
    attributes: dict[str, object] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = "round_prefer_ceil" if half or corners else "floor"
    n, h, wide, c = output.shape
    sizes = w.constant(np.asarray((n, c, h, wide), np.int64), "sizes")
    x = w.nchw(op.input(0), op) if mode == "nearest" else w.real_nchw(op.input(0), op)
    value = w.emit("Resize", [x, "", "", sizes], w.fresh(op.name), name=op.name, **attributes)
    if mode == "nearest":
        w.emit("Transpose", [value], op.name, perm=(0, 2, 3, 1))
    else:
        w.finish_nchw(value, op)


def _resize_nearest(w: OnnxWriter, op: Operation) -> None:
    _resize(w, op, "nearest")


def _resize_bilinear(w: OnnxWriter, op: Operation) -> None:
    _resize(w, op, "linear")


def _arg_max(w: OnnxWriter, op: Operation) -> None:
    x, output = op.input(0), op.outputs[0]
    axis = int(op.constant(1).reshape(-1)[0]) % len(x.shape)
    if output.dtype == "int64":
        w.emit("ArgMax", [w.integers(x)], op.name, axis=axis, keepdims=0)
        return
    wide = w.emit("ArgMax", [w.integers(x)], w.fresh(op.name), name=op.name, axis=axis, keepdims=0)
    w.emit("Cast", [wide], op.name, name=f"{op.name}//cast", to=6)


RULES: Mapping[str, Rule] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _binary("Add"),
    "SUB": _binary("Sub"),
    "MUL": _binary("Mul"),
    "MAXIMUM": _binary("Max"),
    "MINIMUM": _binary("Min"),
    "AVERAGE_POOL_2D": _average_pool,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "SOFTMAX": _softmax,
    "LOGISTIC": _unary("Sigmoid"),
    "TANH": _unary("Tanh"),
    "RELU": _unary("Relu"),
    "RELU6": _clip(0.0, 6.0),
    "RELU_N1_TO_1": _clip(-1.0, 1.0),
    "RELU_0_TO_1": _clip(0.0, 1.0),
    "LEAKY_RELU": _leaky_relu,
    "PRELU": _prelu,
    "HARD_SWISH": _unary("HardSwish"),
    "PAD": _pad,
    "PADV2": _pad,
    "CONCATENATION": _concatenation,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "STRIDED_SLICE": _strided_slice,
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "TRANSPOSE": _transpose,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "RESIZE_BILINEAR": _resize_bilinear,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "PACK": _pack,
    "UNPACK": _unpack,
    "ARG_MAX": _arg_max,
}
"""Every operator that can be read, by the name in the schema's BuiltinOperator."""
