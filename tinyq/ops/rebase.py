"""int8 from uint8 and back: the same reals with the zero point moved by 128."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, RowWindow, rows_one_by_one
from tinyq.ops.params import RebaseParams
from tinyq.target import Core


class Rebase(Operator):
    """The operator ``rebase``: flips the top bit of every byte."""

    name: ClassVar[str] = "rebase"
    summary: ClassVar[str] = "uint8 inputs and outputs of the network, re-based to int8"
    onnx: ClassVar[tuple[str, ...]] = ()

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """uint8 for int8 and the reverse."""
        x = node.input(0).type
        other = {DType.INT8: DType.UINT8, DType.UINT8: DType.INT8}.get(x.dtype)
        if other is None:
            raise InvalidGraphError(f"rebase '{node.name}' of {x}")
        return (TensorType(x.shape, other, node.output.type.quant),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Exclusive or with 0x80."""
        flipped = inputs[0].view(np.uint8) ^ np.uint8(0x80)
        return (flipped.view(node.output.type.dtype.numpy),)

    def row_window(self, node: Node) -> RowWindow | None:
        """Each from its own."""
        return rows_one_by_one(node)


class RebaseS8(Kernel):
    """A word at a time, in place."""

    name: ClassVar[str] = "rebase_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        x, y = node.input(0).type, node.output.type
        params = RebaseParams(x.elements, f"{x.dtype.value}_t", f"{y.dtype.value}_t")
        return KernelCall(
            self.name, "ops/rebase_s8.c.j2", params, instructions=2 * x.elements, in_place=(0,),
            reason="portable",
        )  # fmt: skip


Rebase.kernels = (RebaseS8(),)
