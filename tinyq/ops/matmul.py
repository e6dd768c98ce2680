"""Matrix product of two activations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType, Value
from tinyq.ops import linear
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal
from tinyq.ops.guards import has_rule
from tinyq.ops.lowering import WIDE_REMEDY, Emitter, Island
from tinyq.ops.params import MatMulParams, RequantParams
from tinyq.quant import OrtLinear, Requant, apply, build_staircase, synthesize
from tinyq.target import Core


@dataclass(frozen=True, eq=False)
class MatMulAttrs:
    """[..., M, K] by [..., K, N]; acc is the sum of centred products."""

    a_zero_point: int
    b_zero_point: int
    oracle: OrtLinear
    scale: float
    requant: Requant | None = None

    def __str__(self) -> str:
        return f"zero_points=({self.a_zero_point}, {self.b_zero_point})"


class MatMul(Operator):
    """The operator ``matmul``."""

    name: ClassVar[str] = "matmul"
    summary: ClassVar[str] = "Matrix product of two computed tensors, batched"
    onnx: ClassVar[tuple[str, ...]] = ("MatMul", "QLinearMatMul")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """[..., M, N] int8."""
        a, b = node.input(0).type.shape, node.input(1).type.shape
        if len(a) != len(b) or len(a) < 2 or a[:-2] != b[:-2] or a[-1] != b[-2]:
            raise InvalidGraphError(f"matmul '{node.name}' of {a} and {b}")
        return (TensorType((*a[:-1], b[-1]), DType.INT8, node.output.type.quant),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Multiply, then requantize."""
        attrs = _attrs(node)
        a = inputs[0].astype(np.int64) - attrs.a_zero_point
        b = inputs[1].astype(np.int64) - attrs.b_zero_point
        acc = np.matmul(a, b)
        return (apply(linear.requant_of(node), acc[..., None])[..., 0],)

    def synthesize(self, node: Node) -> MatMulAttrs:
        """Attributes with the requantization found."""
        a = _attrs(node)
        depth = node.input(0).type.shape[-1]
        ends = [
            (x - a.a_zero_point) * (y - a.b_zero_point) for x in (-128, 127) for y in (-128, 127)
        ]
        low: npt.NDArray[np.int64] = np.array([min(0, *ends) * depth])
        high: npt.NDArray[np.int64] = np.array([max(0, *ends) * depth])
        stair = build_staircase(a.oracle, low, high, a.oracle.qmin, a.oracle.qmax)
        rule = a.oracle if has_rule(a.oracle, stair) else None
        return replace(a, requant=synthesize(stair, np.array([a.scale]), oracle=rule))

    def macs(self, node: Node) -> int:
        """One a pair of row and column and inner index."""
        return node.output.type.elements * node.input(0).type.shape[-1]


def _attrs(node: Node) -> MatMulAttrs:
    if not isinstance(node.attrs, MatMulAttrs):
        raise InvalidGraphError(f"'{node.name}' has no MatMulAttrs")
    return node.attrs


def lower_matmul(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """MatMul of two activations of equal leading axes."""
    a, b = (island.sources.get(node.input(k)) for k in (0, 1))
    if a is None or b is None:
        emitter.refuse("TQ202", node, "one of its inputs is not quantized")
        return None
    if island.is_wide:
        emitter.refuse("TQ203", node, "two computed tensors, of which one is int16", WIDE_REMEDY)
        return None
    if a.value.type.shape[:-2] != b.value.type.shape[:-2] or len(a.value.type.shape) < 2:
        emitter.refuse(
            "TQ203", node, f"{a.value.type.shape} by {b.value.type.shape}",
            "Operands of the same rank, at least 2, and the same leading axes are supported.",
        )  # fmt: skip
        return None
    reader = linear.read_epilogue(emitter, island, node, len(node.output.type.shape) - 1, None)
    if reader is None:
        return None
    if reader.bias.any() or np.any(reader.gain != 1):
        emitter.refuse("TQ202", node, "a bias or factor follows it in float",
                       "Quantize the tensor between the two operators.")  # fmt: skip
        return None
    y = island.quant
    limits = linear.output_limits(island, reader.low, reader.high)
    scale = (np.float32(a.quant.scale) * np.float32(b.quant.scale)) / np.float32(y.scale)
    zero = np.zeros(1, np.int64)
    oracle = OrtLinear(np.array([scale], np.float32), zero, zero, y.zero_point, *limits)
    attrs = MatMulAttrs(a.quant.zero_point, b.quant.zero_point, oracle, float(scale))
    return emitter.emit("matmul", island.name, (a.value, b.value), island.output_type, attrs)


class MatMulS8(Kernel):
    """Portable C."""

    name: ClassVar[str] = "matmul_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Possible when both operands are computed."""
        if any(v.is_constant for v in node.present_inputs):
            return "an operand is constant"
        attrs, requant = _attrs(node), linear.requant_of(node)
        a, b = node.input(0).type.shape, node.input(1).type.shape
        params = MatMulParams(
            math.prod(a[:-2]), a[-2], a[-1], b[-1], attrs.a_zero_point, attrs.b_zero_point,
            RequantParams.of(requant),
        )  # fmt: skip
        return KernelCall(
            self.name, "ops/matmul_s8.c.j2", params, linear.requant_constants(requant),
            instructions=10 * MatMul().macs(node), reason="portable",
        )  # fmt: skip


MatMul.kernels = (MatMulS8(),)
