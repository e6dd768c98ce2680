"""Elements from codes of 1, 2 or 4 bits, as :mod:`tinyq.ops.pack` stores them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal, RowWindow
from tinyq.ops.pack import pack_of, pack_params
from tinyq.quant.storage import WORD
from tinyq.target import Core


class Unpack(Operator):
    """The operator ``unpack``: bytes [1, H, 1, row bytes] to int8 [1, H, W, C]."""

    name: ClassVar[str] = "unpack"
    summary: ClassVar[str] = "Stored activations of few values, as int8 for the next layer"
    onnx: ClassVar[tuple[str, ...]] = ()
    stores: ClassVar[bool] = True

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The rows before they were packed."""
        a, x = pack_of(node), node.input(0).type
        height = x.shape[1]
        if x != a.packed(height):
            raise InvalidGraphError(f"unpack '{node.name}' of {x}, not {a.packed(height)}")
        shape = (1, height, a.columns, a.channels)
        return (TensorType(shape, DType.INT8, node.output.type.quant),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """The level of every code."""
        a = pack_of(node)
        rows = inputs[0].astype(np.int8).reshape(inputs[0].shape[1], -1)
        return (a.storage.unpack(rows, a.elements).reshape(node.output.type.shape),)

    def row_window(self, node: Node) -> RowWindow | None:
        """Each from its own."""
        return RowWindow()


class UnpackS8(Kernel):
    """A word of codes at a time; one table lookup an element where levels are no run."""

    name: ClassVar[str] = "unpack_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, y = pack_of(node), node.output.type
        rows, s = y.shape[1], a.storage
        by_table = not s.is_consecutive
        levels = np.array((*s.levels, *(0,) * ((1 << s.bits) - len(s.levels))), np.int8)
        # Each group writes more than it reads: the output has to begin that much lower.
        groups, rest = divmod(a.elements, s.group)
        ahead = rows * (groups * (s.group - WORD) + max(0, rest - WORD))
        each = 4.5 if by_table else 1.5
        return KernelCall(
            self.name, "ops/unpack_s8.c.j2", pack_params(a, rows, by_table=by_table),
            (PackedConstant("levels", levels, "int8_t"),) if by_table else (),
            instructions=round(each * y.elements) + 10 * rows, code_bytes=100, overlap=ahead,
            includes=("tinyq_words.h",), reason="portable",
        )  # fmt: skip


Unpack.kernels = (UnpackS8(),)
