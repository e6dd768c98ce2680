"""Operators of the integer stage: one file each, and this registry."""

from __future__ import annotations

from tinyq.ops.add import Add
from tinyq.ops.arg_max import ArgMax
from tinyq.ops.average_pool2d import AveragePool2d
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal, Registry
from tinyq.ops.cmsis_nn import KERNELS as _CMSIS_NN
from tinyq.ops.codes_dsp import CodesS8Dsp
from tinyq.ops.concat import Concat
from tinyq.ops.conv2d import Conv2d
from tinyq.ops.conv2d_dsp import Conv2dS8Dsp
from tinyq.ops.conv2d_dynamic import Conv2dDynamic
from tinyq.ops.conv2d_mve import Conv2dS8Mve, DenseS8Mve
from tinyq.ops.conv2d_s16_dsp import Conv2dS16Dsp, DenseS16Dsp
from tinyq.ops.conv2d_scalar import Conv2dS8Columns, DenseS8Rows, DepthwiseS8Planes
from tinyq.ops.counts import CountedProducts
from tinyq.ops.curve import Curve
from tinyq.ops.dense import Dense, DenseS8
from tinyq.ops.dense_dsp import DenseS8Dsp
from tinyq.ops.dense_dynamic import DenseDynamic
from tinyq.ops.depthwise_dsp import DepthwiseS8Dsp
from tinyq.ops.depthwise_mve import DepthwiseS8Mve
from tinyq.ops.dsp import EFFORTS, SHORT
from tinyq.ops.elementwise_mve import AddS8Mve, AveragePool2dS8Mve
from tinyq.ops.extremum import Extremum
from tinyq.ops.lut import Lut
from tinyq.ops.matmul import MatMul
from tinyq.ops.max_pool2d import MaxPool2d
from tinyq.ops.mul import Mul
from tinyq.ops.pack import Pack
from tinyq.ops.packed import (
    Conv2dS8DspPacked,
    Conv2dS8Packed,
    DenseS8DspPacked,
    WholePacked,
)
from tinyq.ops.pad import Pad
from tinyq.ops.quantize_real import QuantizeReal
from tinyq.ops.real_mean import RealMean
from tinyq.ops.real_sum import RealSum
from tinyq.ops.rebase import Rebase
from tinyq.ops.rescale import Rescale
from tinyq.ops.reshape import Reshape
from tinyq.ops.resize_bilinear import ResizeBilinear
from tinyq.ops.resize_nearest import ResizeNearest
from tinyq.ops.slice import Slice
from tinyq.ops.softmax import Softmax
from tinyq.ops.sums import BucketSums, Conv2dS8Sums, DepthwiseS8Sums
from tinyq.ops.transpose import Transpose
from tinyq.ops.unpack import Unpack

Conv2d.kernels += (Conv2dS8Columns(), DepthwiseS8Planes())
Dense.kernels += (DenseS8Rows(),)
for _effort in EFFORTS:
    Conv2d.kernels += (DepthwiseS8Dsp(_effort), Conv2dS8Dsp(_effort))
    Dense.kernels += (DenseS8Dsp(_effort),)
Conv2d.kernels += (Conv2dS16Dsp(),)
Dense.kernels += (DenseS16Dsp(),)
Conv2d.kernels += (Conv2dS8Mve(), Conv2dS8Mve("_short"), DepthwiseS8Mve())
Dense.kernels += (DenseS8Mve(), DenseS8Mve("_short"))
Add.kernels += (AddS8Mve(),)
AveragePool2d.kernels += (AveragePool2dS8Mve(),)

Conv2d.kernels += (
    Conv2dS8Packed(), Conv2dS8DspPacked(), Conv2dS8Sums(), DepthwiseS8Sums(),
    BucketSums("conv2d_s8_buckets"), CodesS8Dsp("conv2d_s8_dsp_codes"),
    CountedProducts("conv2d_s8_counts"),
    WholePacked(DepthwiseS8Planes(), "depthwise_s8_packed"),
    WholePacked(DepthwiseS8Dsp(SHORT), "depthwise_s8_dsp_packed"),
)  # fmt: skip
Dense.kernels += (
    WholePacked(DenseS8(), "dense_s8_packed"), DenseS8DspPacked(), BucketSums("dense_s8_buckets"),
    CodesS8Dsp("dense_s8_dsp_codes"), CountedProducts("dense_s8_counts"),
)  # fmt: skip

REGISTRY = Registry()
for _operator in (
    Conv2d(), Dense(), MatMul(), Add(), Mul(), Extremum(), Lut(), Rescale(), Curve(), Softmax(),
    AveragePool2d(), MaxPool2d(), ArgMax(), Concat(), Slice(), Pad(), Reshape(), Transpose(),
    ResizeNearest(), ResizeBilinear(), Rebase(), DenseDynamic(), Conv2dDynamic(), QuantizeReal(),
    RealSum(), RealMean(), Pack(), Unpack(),
):  # fmt: skip
    REGISTRY.add(_operator)
    _operator.kernels = (*_operator.kernels, *_CMSIS_NN.get(_operator.name, ()))

__all__ = [
    "REGISTRY",
    "Kernel",
    "KernelCall",
    "Operator",
    "PackedConstant",
    "Refusal",
    "Registry",
]
