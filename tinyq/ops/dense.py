"""Dense (fully connected) layers: every output is a weighted sum of every input."""

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
    Wide,
    c_type,
)
from tinyq.ops.linear import LinearOracle, LinearRequant
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import DenseParams, RequantParams
from tinyq.quant import FixedPointLinear
from tinyq.target import Core


@dataclass(frozen=True, eq=False)
class DenseAttrs:
    """Attributes of ``dense``: input [..., I], weights [O, I], output [..., O].

    oracle and scale say what the requantization must equal; ``requant`` is set once synthesised.
    ``x_values``: all that the input can be, ascending, where they are few and a kernel asks.
    """

    oracle: LinearOracle
    scale: npt.NDArray[np.float64]
    requant: LinearRequant | None = None
    x_values: tuple[int, ...] = ()

    @property
    def is_fixed_point(self) -> bool:
        """Whether the requantization is CMSIS-NN's own form."""
        return isinstance(self.requant, FixedPointLinear)

    def __str__(self) -> str:
        return linear.describe(self.requant)


class Dense(Operator):
    """The operator ``dense``."""

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "Dense layer (fully connected), with any number of leading axes"
    onnx: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul", "QGemm", "QLinearMatMul")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """[..., O], int8 or int16 as the node says."""
        x, w = node.input(0).type.shape, node.input(1).type.shape
        if len(w) != 2 or x[-1] != w[1]:
            raise InvalidGraphError(f"dense '{node.name}': input {x} and weights {w}")
        return (node.output.type.with_shape((*x[:-1], w[0])),)

    def accumulate(self, node: Node, x: AnyArray) -> npt.NDArray[np.int64]:
        """Raw accumulators int64 [..., O]: sums of x * w without any zero point."""
        weights = node.input(1).array.astype(np.float64)
        # Sums of products of 8- and 16-bit integers below 2^53 are exact in float64 BLAS.
        return (x.astype(np.float64) @ weights.T).astype(np.int64)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Accumulate, then requantize."""
        return (linear.finish(node, self.accumulate(node, inputs[0])),)

    def synthesize(self, node: Node) -> DenseAttrs:
        """Attributes with the requantization found."""
        a, weights = _attrs(node), node.input(1).array.astype(np.int64)
        return replace(a, requant=linear.requantize(weights, a.oracle, a.scale))

    def alike(self, node: Node) -> Hashable:
        """Layers with weights of one shape share their inner functions."""
        return linear.shape_key(node)

    def synthesize_alike(self, nodes: Sequence[Node]) -> tuple[DenseAttrs, ...]:
        """Attributes with the same shifts for all nodes, where none loses by it."""
        found = linear.requantize_alike(nodes)
        return tuple(replace(_attrs(n), requant=r) for n, r in zip(nodes, found, strict=True))

    def real_levels(
        self, node: Node, inputs: tuple[AnyArray, ...]
    ) -> tuple[linear.Float64, linear.Float64] | None:
        """See :func:`tinyq.ops.linear.real_levels`."""
        x, w = inputs[0], np.abs(node.input(1).array.astype(np.float64))
        quant = node.input(0).type.quant
        zero = 0 if quant is None else quant.zero_point
        magnitudes = np.abs(x.astype(np.float64) - zero) @ w.T
        return linear.real_levels(node, self.accumulate(node, x), magnitudes)

    def macs(self, node: Node) -> int:
        """One a weight and row."""
        return node.output.type.elements * node.input(1).type.shape[1]


def _attrs(node: Node) -> DenseAttrs:
    attrs = node.attrs
    if not isinstance(attrs, DenseAttrs):
        raise InvalidGraphError(f"'{node.name}' has no DenseAttrs")
    return attrs


def lower_dense(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """Gemm, or MatMul whose second operand is constant."""
    operands = linear.operands_of(emitter, island, node)
    if operands is None:
        return None
    x, found = operands
    if found.integers.ndim != 2 or node.attrs.get("transA", 0):
        emitter.refuse("TQ203", node, "weights of more than 2 axes, or transA=1")
        return None
    transposed = bool(node.attrs.get("transB", 0))
    out_axis = 0 if transposed else 1
    if x.value.type.shape[-1] != found.integers.shape[1 - out_axis]:
        shapes = f"{list(found.integers.shape)} do not fit {list(x.value.type.shape)}"
        emitter.refuse("TQ103", node, f"weights {shapes}")
        return None
    scales = linear.per_output(found, out_axis, found.integers.shape[out_axis])
    if scales is None:
        emitter.refuse("TQ204", node, "weight scales vary along an axis other than the output's")
        return None
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    if beta != 1.0:
        emitter.refuse("TQ203", node, f"beta={beta:g}", "Multiply the bias instead.")
        return None
    rank = len(node.output.type.shape)
    reader = linear.read_epilogue(emitter, island, node, rank - 1, node.optional_input(2))
    if reader is None:
        return None
    weights = found.centred() if transposed else found.centred().T
    made = linear.make_linear(island, reader, x, weights, np.float32(alpha) * scales)
    stored = linear.stored_weights(emitter, node, made)
    if stored is None:
        return None
    w = emitter.constant(f"{island.name}:weights", stored)
    attrs = DenseAttrs(made.oracle, made.scale)
    return emitter.emit("dense", island.name, (x.value, w), island.output_type, attrs)


class DenseS8(Kernel):
    """Portable C for every dense layer on every core."""

    name: ClassVar[str] = "dense_s8"
    takes_fixed_point: ClassVar[bool] = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        weights = node.input(1).array
        # Measured on cortex-m3 and cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        tap, output = (2.8, 20) if core.long_multiply else (4.2, 50)
        cost = int(tap * Dense().macs(node) + output * node.output.type.elements)
        return KernelCall(
            self.name,
            "ops/dense_s8.c.j2",
            dense_params(node),
            (
                PackedConstant("weights", weights, f"{weights.dtype}_t"),
                *linear.requant_constants(linear.linear_requant_of(node)),
            ),
            instructions=cost,
            code_bytes=316 + (130 if node.input(1).type.shape[0] % 4 else 0),
            includes=("tinyq_dsp.h",),
            reason="portable, four outputs at a time",
        )


def dense_params(node: Node) -> DenseParams:
    """Shape and requantization as the templates of dense layers take them."""
    out_features, in_features = node.input(1).type.shape
    return DenseParams(
        rows=node.output.type.elements // out_features,
        in_features=in_features,
        out_features=out_features,
        weight_type=f"{node.input(1).type.dtype.value}_t",
        requant=RequantParams.of(linear.linear_requant_of(node), c_type(node.output)),
        x_type=c_type(node.input(0)),
        acc_type=linear.accumulator_type(node),
    )


Dense.kernels = (DenseS8(), Wide(DenseS8(), "dense_s16"))
