"""Reals to int8: with the scale and zero point that their range asks for, or with given ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, QuantParams, TensorType
from tinyq.ops import reals
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal
from tinyq.ops.reals import QuantizeRealParams, RealTerm, TermParams
from tinyq.target import Core


@dataclass(frozen=True, eq=False)
class QuantizeRealAttrs:
    """The reals, and the parameters of the result; None: its range decides at run time."""

    term: RealTerm
    quant: QuantParams | None = None

    def __str__(self) -> str:
        return f"{self.term} to={self.quant or 'run-time'}"


class QuantizeReal(Operator):
    """The operator ``quantize_real``: outputs int8, and its parameters when they are found."""

    name: ClassVar[str] = "quantize_real"
    summary: ClassVar[str] = "Reals to int8, with a scale found at run time from their range"
    onnx: ClassVar[tuple[str, ...]] = ("DynamicQuantizeLinear",)

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """int8 of the input's shape; int32 [3] too when the scale is found at run time."""
        a = attrs_of(node)
        ((x, _),) = reals.operands_of(node, (a.term,))
        y = TensorType(x.type.shape, DType.INT8, a.quant)
        return (y,) if a.quant is not None else (y, reals.SCALE_TYPE)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """float32 operations, in onnxruntime's order."""
        a = attrs_of(node)
        (found,) = reals.term_reals(node, (a.term,), inputs)
        if a.quant is not None:
            return (reals.quantize(found, a.quant.scale_array()[0], a.quant.zero_point),)
        scale, zero_point = reals.find_scale(found)
        parts = reals.scale_parts(scale, zero_point - 128)
        return reals.quantize(found, scale, zero_point - 128), parts


def attrs_of(node: Node) -> QuantizeRealAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, QuantizeRealAttrs):
        raise InvalidGraphError(f"'{node.name}' has no QuantizeRealAttrs")
    return node.attrs


class QuantizeRealPortable(Kernel):
    """A multiplication and a shift an element; float32 in integers beside rounding boundaries."""

    name: ClassVar[str] = "quantize_real"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a = attrs_of(node)
        term = TermParams.of(a.term, node.input(0).type)
        scale = None if a.quant is None else reals.bits(a.quant.scale)
        zero_point = 0 if a.quant is None else a.quant.zero_point
        # Measured on cortex-m4 and cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        short, long, each = (330, 18, 800) if core.long_multiply else (1100, 55, 3000)
        cost = (long if term.long else short) * node.input(0).type.elements + each * (
            term.channels if term.long else 1
        )
        return KernelCall(
            self.name, "ops/quantize_real.c.j2", QuantizeRealParams(term, scale, zero_point),
            a.term.constants(), scratch_bytes=4 * term.channels if term.long else 0,
            instructions=cost, code_bytes=1200, includes=reals.INCLUDES,
            reason="fixed point, reals near rounding boundaries" if term.long else "reals",
        )  # fmt: skip


QuantizeReal.kernels = (QuantizeRealPortable(),)
