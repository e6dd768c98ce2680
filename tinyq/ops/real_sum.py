"""Sums of two tensors of reals, and reals from integers where something needs all of their bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType
from tinyq.ops import reals
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal
from tinyq.ops.reals import RealSumParams, RealTerm, TermParams
from tinyq.target import Core


@dataclass(frozen=True, eq=False)
class RealSumAttrs:
    """One or two terms over tensors of one shape; ``relu``: the sum is no less than 0."""

    terms: tuple[RealTerm, ...]
    relu: bool = False

    def __str__(self) -> str:
        return " + ".join(f"({term})" for term in self.terms) + (" relu" if self.relu else "")


class RealSum(Operator):
    """The operator ``real_sum``: int32, the bits of float32."""

    name: ClassVar[str] = "real_sum"
    summary: ClassVar[str] = "Sum of two tensors before their scale is found at run time"
    onnx: ClassVar[tuple[str, ...]] = ("Add",)

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """int32 of the operands' common shape."""
        shapes = {x.type.shape for x, _ in reals.operands_of(node, attrs_of(node).terms)}
        if len(shapes) != 1:
            raise InvalidGraphError(f"real_sum '{node.name}' of {sorted(shapes)}")
        return (TensorType(shapes.pop(), DType.INT32),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """float32 additions."""
        a = attrs_of(node)
        terms = reals.term_reals(node, a.terms, inputs)
        total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        total = np.where(total > 0, total, np.float32(0)) if a.relu else total
        return (np.ascontiguousarray(total).view(np.int32),)


def attrs_of(node: Node) -> RealSumAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, RealSumAttrs):
        raise InvalidGraphError(f"'{node.name}' has no RealSumAttrs")
    return node.attrs


class RealSumPortable(Kernel):
    """float32 in integers."""

    name: ClassVar[str] = "real_sum"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a = attrs_of(node)
        operands = [x for x, _ in reals.operands_of(node, a.terms)]
        wide = next((term for term in a.terms if term.channels > 1), None)
        terms = tuple(
            TermParams.of(term, x.type, k, None if wide is None else wide.axis)
            for k, (term, x) in enumerate(zip(a.terms, operands, strict=True))
        )
        elements = node.output.type.elements
        # Measured on cortex-m4 and cortex-m0 with arm-none-eabi-gcc 12.2 -O2.
        work = (250 if core.long_multiply else 700) * len(a.terms)
        inputs = [v for v in node.present_inputs if not v.is_constant]
        return KernelCall(
            self.name, "ops/real_sum.c.j2", RealSumParams(terms, a.relu),
            tuple(c for k, term in enumerate(a.terms) for c in term.constants(str(k))),
            instructions=work * elements, code_bytes=900,
            in_place=tuple(
                k for k, v in enumerate(inputs) if v in operands and v.type.dtype.bytes == 4
            ),
            includes=reals.INCLUDES, reason="float32 in integers",
        )  # fmt: skip


RealSum.kernels = (RealSumPortable(),)
