"""Dense layer over a tensor whose scale and zero point are found at run time, into int32 sums."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType
from tinyq.ops.accumulate import accumulate_call
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal
from tinyq.ops.params import ConvShape
from tinyq.target import Core


class DenseDynamic(Operator):
    """The operator ``dense_dynamic``: input int8 [..., I], parameters int32 [3], weights [O, I]."""

    name: ClassVar[str] = "dense_dynamic"
    summary: ClassVar[str] = "Dense layer over a tensor quantized at run time"
    onnx: ClassVar[tuple[str, ...]] = ("MatMulInteger",)

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """[..., O] int32."""
        x, w = node.input(0).type.shape, node.input(2).type.shape
        if len(w) != 2 or x[-1] != w[1]:
            raise InvalidGraphError(f"dense_dynamic '{node.name}': input {x} and weights {w}")
        return (TensorType((*x[:-1], w[0]), DType.INT32),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Sums of products of the centred input."""
        x, scale, weights = inputs
        # Sums of products of 8- and 16-bit integers below 2^53 are exact in float64 BLAS.
        centred = x.astype(np.float64) - int(scale[2])
        return ((centred @ weights.astype(np.float64).T).astype(np.int32),)

    def macs(self, node: Node) -> int:
        """One a weight and row."""
        return node.output.type.elements * node.input(2).type.shape[1]


class DenseDynamicRows(Kernel):
    """Rows as the pixels of a 1x1 convolution."""

    name: ClassVar[str] = "dense_dynamic"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        out_features, in_features = node.input(2).type.shape
        rows = node.output.type.elements // out_features
        shape = ConvShape(
            1, rows, in_features, 1, rows, out_features, 1, 1, 1, 1, 1, 1, 0, 0, 1
        )  # fmt: skip
        return accumulate_call(self.name, node, shape, core)


DenseDynamic.kernels = (DenseDynamicRows(),)
