"""What kernels on CMSIS-NN share: parameters of its calls, refusals, estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyq.ir import Node, QuantParams
from tinyq.ops.base import Kernel, LibraryUse, PackedConstant
from tinyq.ops.cmsis_nn.buffers import ConvGeometry
from tinyq.ops.fixed_point import Differences
from tinyq.quant import FixedPointLinear
from tinyq.target import Core

HEADER = "arm_nnfunctions.h"
LIBRARY = "cmsis-nn"


class CmsisKernel(Kernel):
    """A kernel that calls CMSIS-NN; it also takes operators whose oracle is CMSIS-NN."""

    library: ClassVar[str] = LIBRARY
    takes_fixed_point: ClassVar[bool] = True


@dataclass(frozen=True)
class Activation:
    """Zero points and clamp of a call, as the library wants them."""

    input_offset: int
    output_offset: int
    low: int
    high: int


@dataclass(frozen=True)
class CmsisConvParams:
    """``cmsis_convolve_s8.c.j2`` and ``cmsis_depthwise_s8.c.j2``.

    Constants: weights OHWI (depthwise: [kh, kw, O]), int32 bias, multiplier and shift [O].
    """

    geometry: ConvGeometry
    activation: Activation
    buffer_bytes: int


@dataclass(frozen=True)
class CmsisDenseParams:
    """``cmsis_dense_s8.c.j2``; constants: weights [O, I], bias, multiplier, shift; kernel sums [O]
    with Helium."""

    rows: int
    in_features: int
    out_features: int
    activation: Activation
    per_channel: bool
    kernel_sums: bool


@dataclass(frozen=True)
class CmsisPoolParams:
    """``cmsis_pool_s8.c.j2``: ``function`` is arm_avgpool_s8 or arm_max_pool_s8."""

    function: str
    in_hwc: tuple[int, int, int]
    out_hw: tuple[int, int]
    kernel_hw: tuple[int, int]
    stride_hw: tuple[int, int]
    pad_hw: tuple[int, int]
    low: int
    high: int
    buffer_bytes: int


@dataclass(frozen=True)
class CmsisElementwiseParams:
    """``cmsis_add_s8.c.j2`` and ``cmsis_mul_s8.c.j2``; multipliers and shifts of a, b and y."""

    elements: int
    offset_a: int
    offset_b: int
    offset_y: int
    multipliers: tuple[int, ...]
    shifts: tuple[int, ...]
    left_shift: int
    low: int
    high: int
    constant_b: bool


@dataclass(frozen=True)
class CmsisSoftmaxParams:
    """``cmsis_softmax_s8.c.j2``."""

    rows: int
    depth: int
    multiplier: int
    shift: int
    diff_min: int


@dataclass(frozen=True)
class CmsisPadParams:
    """``cmsis_pad_s8.c.j2``; dimensions n, h, w, c."""

    shape: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    value: int


@dataclass(frozen=True)
class CmsisTransposeParams:
    """``cmsis_transpose_s8.c.j2``; ``shape`` and ``perm`` have one length, at most 4."""

    shape: tuple[int, ...]
    perm: tuple[int, ...]


def uses(function: str, rounding: str = "", differences: Differences | None = None) -> LibraryUse:
    """The library's function that a kernel calls, and where it differs from the oracle."""
    found = differences or Differences()
    return LibraryUse(
        LIBRARY, (function,), HEADER, rounding, found.differing, found.examined, found.largest
    )


def quants_of(node: Node) -> tuple[QuantParams, QuantParams] | None:
    """Quantization of the first input and of the output, where both have one of their own."""
    x, y = node.input(0).type.quant, node.output.type.quant
    if x is None or y is None or not x.is_per_tensor or not y.is_per_tensor:
        return None
    return x, y


def linear_constants(made: FixedPointLinear) -> tuple[PackedConstant, ...]:
    """Bias, multiplier and shift, int32 [C] each."""
    return (
        PackedConstant("bias", made.bias.astype(np.int32), "int32_t"),
        PackedConstant("multiplier", np.asarray(made.multiplier).astype(np.int32), "int32_t"),
        PackedConstant("shift", np.asarray(made.shift).astype(np.int32), "int32_t"),
    )


def by_isa(core: Core, scalar: float, dsp: float, mve: float) -> float:
    """The figure of the core's instruction set."""
    return {"scalar": scalar, "dsp": dsp, "mve": mve}[core.isa]
