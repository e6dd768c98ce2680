"""Small networks as people write them, in float: x [N, ...] and one or more outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from ptq_models import Builder

NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {}


def network(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    NETWORKS[build.__name__] = build
    return build


def relu6(b: Builder, y: str) -> str:
    return str(b.op("Clip", y, b.const(0.0), b.const(6.0)))


def dense(b: Builder, y: str, cin: int, cout: int) -> str:
    return str(b.op("Gemm", y, b.weight(cout, cin), b.const(np.zeros(cout)), transB=1))


def up(b: Builder, y: str, cin: int, cout: int, kernel: int, pad: int, extra: int = 0) -> str:
    """A transposed convolution of stride 2."""
    weight, bias = b.weight(cin, cout, kernel, kernel), b.const(b.rng.normal(0, 0.1, cout))
    return str(
        b.op("ConvTranspose", y, weight, bias, kernel_shape=[kernel] * 2, strides=[2, 2],
             pads=[pad] * 4, output_padding=[extra] * 2)
    )  # fmt: skip


def swish(b: Builder, y: str) -> str:
    return str(b.op("Mul", y, b.op("Sigmoid", y)))


def tokens(b: Builder, y: str, channels: int, count: int) -> str:
    """[N, C, H, W] as [N, H * W, C]."""
    y = b.op("Reshape", y, b.const([-1, channels, count], "int64"))
    return str(b.op("Transpose", y, perm=[0, 2, 1]))


@network
def mobilenet_v2() -> onnx.ModelProto:
    b = Builder()
    y = relu6(b, b.batchnorm(b.conv("x", 3, 8, strides=[2, 2], bias=False), 8))
    z = relu6(b, b.batchnorm(b.conv(y, 8, 16, 1, bias=False), 16))
    z = relu6(b, b.batchnorm(b.conv(z, 16, 16, group=16, bias=False), 16))
    y = b.op("Add", y, b.batchnorm(b.conv(z, 16, 8, 1, bias=False), 8))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(dense(b, y, 8, 4), ["n", 3, 12, 12])


@network
def resnet() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Relu", b.batchnorm(b.conv("x", 3, 8, bias=False), 8))
    y = b.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    z = b.op("Relu", b.batchnorm(b.conv(y, 8, 12, strides=[2, 2], bias=False), 12))
    z = b.batchnorm(b.conv(z, 12, 12, bias=False), 12)
    shortcut = b.batchnorm(b.conv(y, 8, 12, 1, strides=[2, 2], bias=False), 12)
    y = b.op("ReduceMean", b.op("Relu", b.op("Add", z, shortcut)), axes=[2, 3], keepdims=0)
    return b.model(b.op("Softmax", dense(b, y, 12, 4), axis=1), ["n", 3, 12, 12])


@network
def squeeze_and_excite() -> onnx.ModelProto:
    b = Builder()
    y = b.op("HardSwish", b.conv("x", 3, 8))
    s = b.op("Relu", b.conv(b.op("GlobalAveragePool", y), 8, 4, 1))
    s = b.op("HardSigmoid", b.conv(s, 4, 8, 1), alpha=1 / 6, beta=0.5)
    return b.model(b.conv(b.op("Mul", y, s), 8, 4, 1), ["n", 3, 8, 8])


@network
def efficientnet() -> onnx.ModelProto:
    b = Builder()
    y = swish(b, b.conv("x", 3, 8))
    s = swish(b, b.conv(b.op("ReduceMean", y, axes=[2, 3], keepdims=1), 8, 4, 1))
    s = b.op("Sigmoid", b.conv(s, 4, 8, 1))
    return b.model(b.conv(b.op("Mul", y, s), 8, 4, 1), ["n", 3, 8, 8])


@network
def ds_cnn() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Relu", b.batchnorm(b.conv("x", 1, 8, 4, pad=1, strides=[2, 2], bias=False), 8))
    for _ in range(2):
        y = b.op("Relu", b.batchnorm(b.conv(y, 8, 8, group=8, bias=False), 8))
        y = b.op("Relu", b.batchnorm(b.conv(y, 8, 8, 1, bias=False), 8))
    y = b.op("AveragePool", y, kernel_shape=[5, 5])
    y = b.op("Reshape", y, b.const([-1, 8], "int64"))
    y = b.op("Add", b.op("MatMul", y, b.weight(8, 4)), b.const(b.rng.normal(0, 0.1, 4)))
    return b.model(b.op("Softmax", y, axis=-1), ["n", 1, 12, 12])


@network
def unet() -> onnx.ModelProto:
    b = Builder()
    skip = b.op("Relu", b.conv("x", 3, 6))
    y = b.op("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("Relu", b.batchnorm(up(b, b.op("Relu", b.conv(y, 6, 8)), 8, 6, 2, 0), 6))
    y = b.op("Relu", b.conv(b.op("Concat", skip, y, axis=1), 12, 6))
    return b.model(b.op("Sigmoid", b.conv(y, 6, 1, 1)), ["n", 3, 8, 8])


@network
def unet_with_resize() -> onnx.ModelProto:
    b = Builder()
    skip = b.op("Relu", b.conv("x", 3, 6))
    y = b.op("Relu", b.conv(b.op("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2]), 6, 8))
    y = b.op("Resize", y, "", b.const([1, 1, 2, 2]), mode="nearest", nearest_mode="floor",
             coordinate_transformation_mode="asymmetric")  # fmt: skip
    y = b.op("Relu", b.conv(b.op("Concat", skip, y, axis=1), 14, 6))
    return b.model(b.op("Softmax", b.conv(y, 6, 3, 1), axis=1), ["n", 3, 8, 8])


@network
def leaky_with_global_max() -> onnx.ModelProto:
    b = Builder()
    y = b.op("LeakyRelu", b.batchnorm(b.conv("x", 3, 8, bias=False), 8), alpha=0.1)
    y = b.op("LeakyRelu", b.conv(y, 8, 8, strides=[2, 2]), alpha=0.1)
    y = b.op("Tanh", dense(b, b.op("Flatten", b.op("GlobalMaxPool", y)), 8, 6))
    return b.model(dense(b, y, 6, 4), ["n", 3, 8, 8])


@network
def super_resolution() -> onnx.ModelProto:
    b = Builder()
    y = b.op("SpaceToDepth", "x", blocksize=2)
    y = b.op("DepthToSpace", b.conv(b.op("Relu", b.conv(y, 4, 8)), 8, 4), blocksize=2, mode="CRD")
    return b.model(b.conv(y, 1, 1, 1), ["n", 1, 8, 8])


@network
def autoencoder() -> onnx.ModelProto:
    b = Builder()
    y = "x"
    for cin, cout in ((20, 16), (16, 4), (4, 16)):
        y = b.op("Relu", b.batchnorm(dense(b, y, cin, cout), cout))
    return b.model(dense(b, y, 16, 20), ["n", 20])


@network
def convolutional_autoencoder() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv("x", 1, 6, strides=[2, 2]))
    y = b.op("Relu", b.conv(y, 6, 4, strides=[2, 2]))
    y = b.op("Relu", up(b, y, 4, 6, 3, 1, 1))
    return b.model(b.conv(up(b, y, 6, 4, 4, 1), 4, 1, 1), ["n", 1, 12, 12])


@network
def division() -> onnx.ModelProto:
    b = Builder()
    divisor = b.op("Add", b.op("Sigmoid", b.conv("x", 3, 4)), b.const(1.0))
    return b.model(b.conv(b.op("Div", b.conv("x", 3, 4), divisor), 4, 2, 1), ["n", 3, 6, 6])


@network
def mean_over_channels() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv("x", 3, 5))
    y = b.op("Sub", y, b.op("ReduceMean", y, axes=[1], keepdims=1))
    return b.model(b.conv(y, 5, 2, 1), ["n", 3, 6, 6])


@network
def scale_layers() -> onnx.ModelProto:
    """Constants of one value a channel, where no convolution can take them in."""
    b = Builder()
    y = b.op("MaxPool", b.op("Relu", b.conv("x", 3, 4)), kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("Mul", y, b.const(np.exp(b.rng.normal(0, 0.5, (1, 4, 1, 1)))))
    y = b.op("Add", y, b.const(b.rng.normal(0, 0.5, (4, 1, 1))))
    y = b.op("Div", b.op("Sigmoid", y), b.const(b.rng.uniform(0.5, 2, (4, 1, 1))))
    return b.model(b.conv(y, 4, 2, 1), ["n", 3, 8, 8])


@network
def position_embedding() -> onnx.ModelProto:
    b = Builder()
    y = tokens(b, b.op("Relu", b.conv("x", 3, 4)), 4, 36)
    y = b.op("Add", y, b.const(b.rng.normal(0, 0.5, (36, 4))))
    y = b.op("Add", b.op("MatMul", y, b.weight(4, 4)), b.const(b.rng.normal(0, 0.1, 4)))
    return b.model(dense(b, b.op("ReduceMean", y, axes=[1], keepdims=0), 4, 3), ["n", 3, 6, 6])


@network
def attention() -> onnx.ModelProto:
    b = Builder()
    x = tokens(b, b.conv("x", 3, 4), 4, 16)
    q, k, v = (b.op("MatMul", x, b.weight(4, 4)) for _ in range(3))
    scores = b.op("Mul", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])), b.const(0.5))
    y = b.op("Add", x, b.op("MatMul", b.op("Softmax", scores, axis=-1), v))
    return b.model(y, ["n", 3, 4, 4])


@network
def softmax_over_each_axis() -> onnx.ModelProto:
    b = Builder()
    y = b.conv("x", 3, 4)
    return b.model([b.op("Softmax", y, axis=axis) for axis in (1, 2, -1)], ["n", 3, 6, 6])


@network
def unequal_split() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv("x", 3, 8))
    first, second = b.op("Split", y, b.const([3, 5], "int64"), outputs=2, axis=1)
    return b.model(
        b.op("Concat", b.conv(first, 3, 3), b.op("Sigmoid", second), axis=1), ["n", 3, 6, 6]
    )


@network
def shufflenet() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv("x", 3, 8, 1))
    y = b.op("Reshape", y, b.const([-1, 2, 4, 6, 6], "int64"))
    y = b.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = b.op("Reshape", y, b.const([-1, 8, 6, 6], "int64"))
    return b.model(b.conv(y, 8, 8, group=8), ["n", 3, 6, 6])


@network
def clips() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Clip", b.conv("x", 3, 4), b.const(-0.5), b.const(1.0))
    y = b.op("MaxPool", b.op("Clip", y, "", b.const(0.75)), kernel_shape=[2, 2])
    return b.model(b.conv(b.op("Clip", y, b.const(-0.2)), 4, 2, 1), ["n", 3, 6, 6])


@network
def composed_hard_swish() -> onnx.ModelProto:
    b = Builder()
    y = b.conv("x", 3, 4)
    gate = relu6(b, b.op("Add", y, b.const(3.0)))
    y = b.op("Div", b.op("Mul", y, gate), b.const(6.0))
    return b.model(b.conv(y, 4, 2, 1), ["n", 3, 6, 6])


@network
def pads_and_slices() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Pad", b.op("Relu", b.conv("x", 3, 4)), b.const([0, 0, 1, 2, 0, 0, 1, 0], "int64"))
    y = b.op("Slice", y, *(b.const(v, "int64") for v in ([1, 0], [7, 8], [2, 3])))
    return b.model(b.op("AveragePool", y, kernel_shape=[3, 3], strides=[2, 2]), ["n", 3, 6, 6])


@network
def extremes() -> onnx.ModelProto:
    b = Builder()
    y, z = b.conv("x", 3, 4), b.conv("x", 3, 4)
    y = b.op("Max", b.op("Min", y, z), b.op("Neg", z))
    y = b.op("PRelu", y, b.const(b.rng.uniform(0, 0.4, (4, 1, 1))))
    return b.model(b.conv(y, 4, 2, 1), ["n", 3, 6, 6])


@network
def one_dimension() -> onnx.ModelProto:
    b = Builder()
    weight, bias = b.weight(8, 4, 3), b.const(np.zeros(8))
    y = b.op("Relu", b.op("Conv", "x", weight, bias, pads=[1, 1], kernel_shape=[3]))
    y = b.op("MaxPool", y, kernel_shape=[2], strides=[2])
    y = b.op("ReduceMax", y, axes=[2], keepdims=0)
    return b.model(dense(b, y, 8, 3), ["n", 4, 16])


@network
def bilinear_resize() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Resize", b.op("Relu", b.conv("x", 3, 4)), "", b.const([1, 1, 2, 2]), mode="linear")
    return b.model(b.conv(y, 4, 1, 1), ["n", 3, 4, 4])


@network
def layer_norm() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Flatten", b.conv("x", 3, 2))
    y = b.op("LayerNormalization", y, b.const(np.ones(32)), b.const(np.zeros(32)))
    return b.model(dense(b, y, 32, 3), ["n", 3, 4, 4])
