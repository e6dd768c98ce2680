"""A table of small TensorFlow Lite models: one operator each, in the forms that differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from frontends.tflite_models import NONE, RELU, RELU6, RELU_N1_TO_1, SAME, VALID, Array, Shape, Tfl

Build = Callable[[], bytes]


def _draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


def conv(  # the parameters of a convolution
    *, depthwise: bool = False, dtype: str = "int8", per_channel: bool = True, padding: int = SAME,
    stride: tuple[int, int] = (1, 1), dilation: int = 1, groups: int = 1, activation: int = NONE,
    y_zero: int = -9, multiplier: int = 2,
) -> bytes:  # fmt: skip
    m = Tfl(dtype)
    h, w, c, k = 7, 6, 4, 3
    o = c * multiplier if depthwise else 6
    shape = (1, k, k, o) if depthwise else (o, k, k, c // groups)
    data: Array = _draw(1, *shape)
    scales = np.linspace(0.004, 0.011, o).astype(np.float32) if per_channel else np.float32(0.008)
    if dtype == "uint8":
        data = (data.astype(int) + 128).astype(np.uint8)
    weights = m.const(data, scales, 0 if dtype == "int8" else -5, 3 if depthwise else 0)
    x = m.x((1, h, w, c))
    values = np.random.default_rng(2).integers(-900, 900, o).astype(np.int32)
    inputs = [x, weights, m.const(values, np.float32(0.05) * scales)]
    reach = dilation * (k - 1) + 1
    sizes = [
        -(-n // s) if padding == SAME else -(-(n - reach + 1) // s)
        for n, s in zip((h, w), stride, strict=True)
    ]
    y = m.tensor((1, *sizes, o), 0.06, y_zero)
    fields: dict[str, object] = {
        "padding": padding, "strideH": stride[0], "strideW": stride[1],
        "dilationHFactor": dilation, "dilationWFactor": dilation,
        "fusedActivationFunction": activation,
    }  # fmt: skip
    if depthwise:
        fields["depthMultiplier"] = multiplier
        return m.end(m.op("DEPTHWISE_CONV_2D", inputs, [y], "DepthwiseConv2DOptions", **fields))
    return m.end(m.op("CONV_2D", inputs, [y], "Conv2DOptions", **fields))


def dense(
    *, dtype: str = "int8", rows: Shape = (3,), bias: bool = True, activation: int = NONE,
    keep: bool = False, per_channel: bool = False,
) -> bytes:  # fmt: skip
    m = Tfl(dtype)
    x = m.x((*rows, 20))
    data: Array = _draw(3, 5, 20)
    if dtype == "uint8":
        data = (data.astype(int) + 128).astype(np.uint8)
    scales = np.linspace(0.004, 0.009, 5).astype(np.float32) if per_channel else np.float32(0.007)
    inputs = [x, m.const(data, scales, 0 if dtype == "int8" else 7)]
    if bias:
        inputs.append(m.const(np.arange(-300, 200, 100, np.int32), np.float32(0.05) * scales))
    shape = (*rows, 5) if keep else (int(np.prod(rows)), 5)
    y = m.tensor(shape, 0.08, 5)
    return m.end(
        m.op("FULLY_CONNECTED", inputs, [y], "FullyConnectedOptions",
             fusedActivationFunction=activation, keepNumDims=keep)
    )  # fmt: skip


def binary(
    op: str, *, dtype: str = "int8", options: str = "", activation: int = NONE,
    b_shape: Shape = (1, 4, 5, 6), scales: tuple[float, float, float] = (0.05, 0.031, 0.07),
    zeros: tuple[int, int, int] = (3, -8, 5),
) -> bytes:  # fmt: skip
    m = Tfl(dtype)
    a = m.x((1, 4, 5, 6), scales[0], zeros[0])
    b = m.x(b_shape, scales[1], zeros[1])
    y = m.tensor((1, 4, 5, 6), scales[2], zeros[2])
    fields = {"fusedActivationFunction": activation} if options else {}
    return m.end(m.op(op, [a, b], [y], options, **fields))


def extremum(op: str) -> bytes:
    m = Tfl()
    a, b = m.x((1, 4, 5, 6)), m.x((1, 4, 5, 6))
    return m.end(m.op(op, [a, b], [m.tensor((1, 4, 5, 6), 0.05, 3)], "MaximumMinimumOptions"))


def unary(
    op: str, *, dtype: str = "int8", y: tuple[float, int] = (0.04, -7), options: str = "",
    x_scale: float = 0.05, **fields: object,
) -> bytes:  # fmt: skip
    m = Tfl(dtype)
    x = m.x((1, 4, 5, 6), x_scale)
    return m.end(m.op(op, [x], [m.tensor((1, 4, 5, 6), *y)], options, **fields))


def prelu() -> bytes:
    m = Tfl()
    x = m.x((1, 4, 5, 6))
    alpha = m.const(_draw(4, 1, 1, 6), 0.004, 2)
    return m.end(m.op("PRELU", [x, alpha], [m.tensor((1, 4, 5, 6), 0.04, -7)]))


def softmax(*, dtype: str = "int8", depth: int = 12, x_scale: float = 0.11) -> bytes:
    m = Tfl(dtype)
    x = m.x((3, depth), x_scale)
    y = m.tensor((3, depth), 1 / 256, -128)
    return m.end(m.op("SOFTMAX", [x], [y], "SoftmaxOptions", beta=1.0))


def pool(
    op: str, *, dtype: str = "int8", padding: int = SAME, size: Shape = (3, 2),
    stride: Shape = (2, 2), activation: int = NONE,
) -> bytes:  # fmt: skip
    m = Tfl(dtype)
    x = m.x((1, 7, 6, 5))
    sizes = [
        -(-n // s) if padding == SAME else -(-(n - k + 1) // s)
        for n, k, s in zip((7, 6), size, stride, strict=True)
    ]
    y = m.tensor((1, *sizes, 5), 0.05, 3)
    return m.end(
        m.op(op, [x], [y], "Pool2DOptions", padding=padding, filterHeight=size[0],
             filterWidth=size[1], strideH=stride[0], strideW=stride[1],
             fusedActivationFunction=activation)
    )  # fmt: skip


def mean(
    axes: Shape, *, shape: Shape = (1, 5, 7, 6), keep: bool = True, dtype: str = "int8",
    y: tuple[float, int] = (0.021, 9),
) -> bytes:  # fmt: skip
    m = Tfl(dtype)
    x = m.x(shape)
    out = tuple(1 if k in axes else n for k, n in enumerate(shape) if keep or k not in axes)
    return m.end(
        m.op("MEAN", [x, m.const(axes)], [m.tensor(out, *y)], "ReducerOptions", keepDims=keep)
    )


def move(op: str, shape: Shape, constants: tuple[Shape, ...] = (), options: str = "",
         dtype: str = "int8", **fields: object) -> bytes:  # fmt: skip
    """An operator that only moves data: the output has the input's quantization."""
    m = Tfl(dtype)
    x = m.x((1, 4, 6, 5))
    inputs = [x, *(m.const(np.asarray(c, np.int32)) for c in constants)]
    return m.end(m.op(op, inputs, [m.tensor(shape, 0.05, 3)], options, **fields))


def strided_slice(**masks: int) -> bytes:
    shape = (3, 3, 5) if masks.get("shrinkAxisMask") else (1, 3, 3, 5)
    return move(
        "STRIDED_SLICE", shape, ((0, 1, 5, 0), (1, 4, 0, 5), (1, 1, -2, 1)),
        "StridedSliceOptions", endMask=4 | masks.get("endMask", 0),
        beginMask=masks.get("beginMask", 0), shrinkAxisMask=masks.get("shrinkAxisMask", 0),
    )  # fmt: skip


def split() -> bytes:
    m = Tfl()
    x, axis = m.x((1, 4, 6, 5)), m.const(np.asarray(2, np.int32))
    parts = [m.tensor((1, 4, 3, 5), 0.05, 3) for _ in range(2)]
    m.op("SPLIT", [axis, x], parts, "SplitOptions", numSplits=2)
    return m.end(*parts)


def unpack() -> bytes:
    m = Tfl()
    x = m.x((1, 3, 6, 5))
    parts = [m.tensor((1, 6, 5), 0.05, 3) for _ in range(3)]
    m.op("UNPACK", [x], parts, "UnpackOptions", num=3, axis=1)
    return m.end(*parts)


def joined(op: str, shape: Shape, options: str, **fields: object) -> bytes:
    m = Tfl()
    inputs = [m.x((1, 4, 5)), m.x((1, 4, 5))]
    return m.end(m.op(op, inputs, [m.tensor(shape, 0.05, 3)], options, **fields))


def arg_max(axis: int, dtype: str) -> bytes:
    m = Tfl()
    x, shape = m.x((1, 4, 6, 5)), [1, 4, 6, 5]
    del shape[axis]
    y = m.tensor(tuple(shape), dtype=dtype)
    kind = getattr(m.schema.TensorType, dtype.upper())
    m.graph.tensors[y].quantization = None
    axis_tensor = m.const(np.asarray([axis], np.int32))
    return m.end(m.op("ARG_MAX", [x, axis_tensor], [y], "ArgMaxOptions", outputType=kind))


def bilinear(size: Shape, mode: str) -> bytes:
    fields = {mode: True} if mode else {}
    return move("RESIZE_BILINEAR", (1, *size, 5), (size,), "ResizeBilinearOptions", **fields)


def float_edges() -> bytes:
    """QUANTIZE at the input, DEQUANTIZE at the output: the C takes and gives integers."""
    m = Tfl()
    x = m.x((1, 8), dtype="float32")
    q = m.op("QUANTIZE", [x], [m.tensor((1, 8), 0.05, 3)])
    y = m.op("LOGISTIC", [q], [m.tensor((1, 8), 1 / 256, -128)])
    return m.end(m.op("DEQUANTIZE", [y], [m.tensor((1, 8), dtype="float32")]))


def chain() -> bytes:
    """Convolution, pool, reshape, dense, softmax: names, layout and shapes across operators."""
    m = Tfl()
    x = m.x((1, 6, 6, 3))
    scales = np.linspace(0.004, 0.01, 8).astype(np.float32)
    w = m.const(_draw(5, 8, 3, 3, 3), scales)
    b = m.const(np.arange(-400, 400, 100, np.int32), np.float32(0.05) * scales)
    y = m.op("CONV_2D", [x, w, b], [m.tensor((1, 6, 6, 8), 0.06, -128)], "Conv2DOptions",
             padding=SAME, strideH=1, strideW=1, fusedActivationFunction=RELU)  # fmt: skip
    y = m.op("MAX_POOL_2D", [y], [m.tensor((1, 3, 3, 8), 0.06, -128)], "Pool2DOptions",
             padding=VALID, filterHeight=2, filterWidth=2, strideH=2, strideW=2)  # fmt: skip
    y = m.op("RESHAPE", [y, m.const((1, 72))], [m.tensor((1, 72), 0.06, -128)])
    y = m.op("FULLY_CONNECTED", [y, m.const(_draw(6, 4, 72), 0.005)], [m.tensor((1, 4), 0.2, 7)],
             "FullyConnectedOptions")  # fmt: skip
    y = m.op("SOFTMAX", [y], [m.tensor((1, 4), 1 / 256, -128)], "SoftmaxOptions", beta=1.0)
    return m.end(y)


CASES: dict[str, Build] = {
    "conv": conv,
    "conv relu": lambda: conv(activation=RELU, y_zero=-128),
    "conv relu6": lambda: conv(activation=RELU6),
    "conv relu_n1_to_1": lambda: conv(activation=RELU_N1_TO_1),
    "conv valid stride": lambda: conv(padding=VALID, stride=(2, 1)),
    "conv same stride": lambda: conv(stride=(2, 2)),
    "conv dilated": lambda: conv(dilation=2),
    "conv grouped": lambda: conv(groups=2),
    "conv per tensor": lambda: conv(per_channel=False),
    "conv uint8": lambda: conv(dtype="uint8", per_channel=False),
    "depthwise": lambda: conv(depthwise=True),
    "depthwise relu": lambda: conv(depthwise=True, activation=RELU, multiplier=1, y_zero=-128),
    "depthwise uint8": lambda: conv(depthwise=True, dtype="uint8", per_channel=False),
    "dense": dense,
    "dense relu": lambda: dense(activation=RELU),
    "dense keep dims": lambda: dense(rows=(1, 2, 3), keep=True),
    "dense flattens": lambda: dense(rows=(1, 2, 3), bias=False),
    "dense per channel": lambda: dense(per_channel=True),
    "dense uint8": lambda: dense(dtype="uint8"),
    "add": lambda: binary("ADD", options="AddOptions"),
    "add relu": lambda: binary("ADD", options="AddOptions", activation=RELU),
    "add uint8": lambda: binary("ADD", options="AddOptions", dtype="uint8"),
    "add broadcast": lambda: binary("ADD", options="AddOptions", b_shape=(1, 1, 1, 6)),
    "sub": lambda: binary("SUB", options="SubOptions"),
    "mul": lambda: binary("MUL", options="MulOptions", scales=(0.05, 0.031, 0.09)),
    "mul relu6": lambda: binary("MUL", options="MulOptions", activation=RELU6),
    "maximum": lambda: extremum("MAXIMUM"),
    "minimum": lambda: extremum("MINIMUM"),
    "logistic": lambda: unary("LOGISTIC", y=(1 / 256, -128)),
    "logistic uint8": lambda: unary("LOGISTIC", y=(1 / 256, -128), dtype="uint8"),
    "tanh": lambda: unary("TANH", y=(1 / 128, 0)),
    "relu": lambda: unary("RELU"),
    "relu6": lambda: unary("RELU6"),
    "relu_n1_to_1": lambda: unary("RELU_N1_TO_1"),
    "leaky relu": lambda: unary("LEAKY_RELU", options="LeakyReluOptions", alpha=0.2),
    "hard swish": lambda: unary("HARD_SWISH", options="HardSwishOptions"),
    "prelu": prelu,
    "quantize": lambda: unary("QUANTIZE"),
    "softmax": softmax,
    "softmax steep": lambda: softmax(x_scale=1.3, depth=40),
    "softmax uint8": lambda: softmax(dtype="uint8"),
    "average pool": lambda: pool("AVERAGE_POOL_2D"),
    "average pool valid": lambda: pool("AVERAGE_POOL_2D", padding=VALID, activation=RELU6),
    "average pool whole": lambda: pool(
        "AVERAGE_POOL_2D", padding=VALID, size=(7, 6), stride=(1, 1)
    ),
    "average pool uint8": lambda: pool("AVERAGE_POOL_2D", dtype="uint8"),
    "max pool": lambda: pool("MAX_POOL_2D"),
    "max pool relu": lambda: pool("MAX_POOL_2D", padding=VALID, activation=RELU),
    "max pool uint8": lambda: pool("MAX_POOL_2D", dtype="uint8"),
    "mean of image": lambda: mean((1, 2)),
    "mean drops axes": lambda: mean((1, 2), keep=False),
    "mean of equal scales": lambda: mean((1, 2), y=(0.05, 3)),
    "mean of channels": lambda: mean((3,)),
    "mean uint8": lambda: mean((1, 2), dtype="uint8"),
    "pad": lambda: move("PAD", (1, 7, 7, 5), (((0, 0), (1, 2), (0, 1), (0, 0)),), "PadOptions"),
    "concatenation": lambda: joined("CONCATENATION", (1, 4, 10), "ConcatenationOptions", axis=2),
    "pack": lambda: joined("PACK", (1, 2, 4, 5), "PackOptions", axis=1, valuesCount=2),
    "unpack": unpack,
    "split": split,
    "strided slice": strided_slice,
    "strided slice shrinks": lambda: strided_slice(shrinkAxisMask=1),
    "strided slice open": lambda: strided_slice(endMask=8, beginMask=8),
    "reshape": lambda: move("RESHAPE", (2, 60), ((2, 60),)),
    "squeeze": lambda: move("SQUEEZE", (4, 6, 5), (), "SqueezeOptions", squeezeDims=[0]),
    "expand dims": lambda: move("EXPAND_DIMS", (1, 1, 4, 6, 5), ((0,),), "ExpandDimsOptions"),
    "transpose": lambda: move("TRANSPOSE", (1, 5, 4, 6), ((0, 3, 1, 2),), "TransposeOptions"),
    "resize nearest": lambda: move(
        "RESIZE_NEAREST_NEIGHBOR", (1, 9, 11, 5), ((9, 11),), "ResizeNearestNeighborOptions"
    ),
    "resize nearest half pixel": lambda: move(
        "RESIZE_NEAREST_NEIGHBOR", (1, 9, 11, 5), ((9, 11),), "ResizeNearestNeighborOptions",
        halfPixelCenters=True,
    ),
    "resize nearest corners": lambda: move(
        "RESIZE_NEAREST_NEIGHBOR", (1, 9, 11, 5), ((9, 11),), "ResizeNearestNeighborOptions",
        alignCorners=True,
    ),
    "arg max": lambda: arg_max(3, "int32"),
    "arg max of rows": lambda: arg_max(1, "int64"),
    "float edges": float_edges,
    **{
        f"bilinear {size} {mode or 'asymmetric'}": partial(bilinear, size, mode)
        for size in ((9, 11), (8, 12), (3, 2))
        for mode in ("", "halfPixelCenters", "alignCorners")
    },
    "chain": chain,
}  # fmt: skip
