"""Means of reals over whole images, in the order in which onnxruntime adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType
from tinyq.ops import reals
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal
from tinyq.target import Core


@dataclass(frozen=True)
class RealMeanAttrs:
    """lanes: 1 adds one pixel after another, 4 keeps four sums of every fourth pixel."""

    lanes: int


@dataclass(frozen=True)
class RealMeanParams:
    """``ops/real_mean.c.j2``: y [channels] from x [pixels, channels]."""

    pixels: int
    channels: int
    lanes: int


class RealMean(Operator):
    """The operator ``real_mean``: input [1, H, W, C], output [1, 1, 1, C], both bits of float32."""

    name: ClassVar[str] = "real_mean"
    summary: ClassVar[str] = "Mean over a whole image before the scale is found at run time"
    onnx: ClassVar[tuple[str, ...]] = ("AveragePool", "GlobalAveragePool")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """int32 [1, 1, 1, C]."""
        x = node.input(0).type
        if len(x.shape) != 4 or x.dtype is not DType.INT32:
            raise InvalidGraphError(f"real_mean '{node.name}' of {x}")
        return (TensorType((x.shape[0], 1, 1, x.shape[3]), DType.INT32),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """float32 additions one by one."""
        x = inputs[0].view(np.float32)
        rows = x.reshape(-1, x.shape[-1])
        lanes = attrs_of(node).lanes
        whole = len(rows) // lanes * lanes
        sums = np.zeros((lanes, x.shape[-1]), np.float32)
        for k in range(0, whole, lanes):
            sums = sums + rows[k : k + lanes]
        total = sums[0] if lanes == 1 else (sums[0] + sums[2]) + (sums[1] + sums[3])
        for row in rows[whole:]:
            total = total + row
        mean = (total / np.float32(len(rows))).astype(np.float32)
        return (mean.view(np.int32).reshape(node.output.type.shape),)


def attrs_of(node: Node) -> RealMeanAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, RealMeanAttrs):
        raise InvalidGraphError(f"'{node.name}' has no RealMeanAttrs")
    return node.attrs


class RealMeanPortable(Kernel):
    """float32 in integers."""

    name: ClassVar[str] = "real_mean"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        shape = node.input(0).type.shape
        params = RealMeanParams(math.prod(shape[:3]), shape[3], attrs_of(node).lanes)
        # Measured on cortex-m4 and cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        cost = (75 if core.long_multiply else 150) * node.input(0).type.elements
        return KernelCall(
            self.name, "ops/real_mean.c.j2", params, instructions=cost, code_bytes=200,
            includes=reals.INCLUDES, reason="float32 in integers",
        )  # fmt: skip


RealMean.kernels = (RealMeanPortable(),)
