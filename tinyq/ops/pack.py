"""Elements of few values, written as codes of 1, 2 or 4 bits (:mod:`tinyq.quant.storage`).

No model has this operator: it is how a tensor is stored, put into the graph where that makes the
arena smaller (:mod:`tinyq.passes.pack`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal, RowWindow
from tinyq.ops.params import PackParams
from tinyq.quant.storage import WORD, Storage
from tinyq.target import Core


@dataclass(frozen=True)
class PackAttrs:
    """How the elements are stored, and the shape [W, C] of a row before."""

    storage: Storage
    columns: int
    channels: int

    @property
    def elements(self) -> int:
        """Elements of a row."""
        return self.columns * self.channels

    def packed(self, height: int) -> TensorType:
        """The type of ``height`` packed rows."""
        return TensorType((1, height, 1, self.storage.row_bytes(self.elements)), DType.INT8)


class Pack(Operator):
    """The operator ``pack``: int8 [1, H, W, C] to bytes [1, H, 1, row bytes].

    With input 1, uint8 [256], an element's code is the entry at its bit pattern: a table whose
    results are stored. Without it the element is a level of the storage.
    """

    name: ClassVar[str] = "pack"
    summary: ClassVar[str] = "Activations of few values, stored with 1, 2 or 4 bits"
    onnx: ClassVar[tuple[str, ...]] = ()
    stores: ClassVar[bool] = True

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """Rows, each of whole words."""
        a, x, table = pack_of(node), node.input(0).type, node.optional_input(1)
        if x.shape != (1, x.shape[1], a.columns, a.channels) or x.dtype is not DType.INT8:
            raise InvalidGraphError(f"pack '{node.name}' of {x} for rows of {a}")
        if table is not None and table.type.shape != (256,):
            raise InvalidGraphError(f"pack '{node.name}': table {table.type}")
        return (a.packed(x.shape[1]),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Look every code up and join them."""
        a, x = pack_of(node), inputs[0]
        table = inputs[1] if len(inputs) > 1 else a.storage.codes()
        codes = table.astype(np.uint8)[x.view(np.uint8).reshape(x.shape[1], -1)]
        packed = a.storage.pack_codes(codes)
        return (packed.reshape(node.output.type.shape),)

    def row_window(self, node: Node) -> RowWindow | None:
        """Each from its own."""
        return RowWindow()


def pack_of(node: Node) -> PackAttrs:
    """The node's attributes."""
    if not isinstance(node.attrs, PackAttrs):
        raise InvalidGraphError(f"'{node.name}' has no PackAttrs")
    return node.attrs


def pack_params(attrs: PackAttrs, rows: int, *, by_table: bool) -> PackParams:
    """The parameters of both directions; rows of whole groups are one long row."""
    s, elements = attrs.storage, attrs.elements
    if elements % s.group == 0:
        rows, elements = 1, rows * elements
    return PackParams(rows, elements, s.bits, s.levels[0], by_table, elements % WORD == 0)


class PackS8(Kernel):
    """A word of codes at a time; one table lookup an element where levels are no run."""

    name: ClassVar[str] = "pack_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, x, y = pack_of(node), node.input(0).type, node.output.type
        given = node.optional_input(1)
        table = given.array if given is not None else a.storage.codes()
        by_table = given is not None or not a.storage.is_consecutive
        # A row that is no longer than before never reaches what is still to be read.
        behind = a.storage.row_bytes(a.elements) <= a.elements
        each = 4.5 if by_table else 1.5
        return KernelCall(
            self.name, "ops/pack_s8.c.j2", pack_params(a, x.shape[1], by_table=by_table),
            (PackedConstant("codes", table, "uint8_t"),) if by_table else (),
            instructions=round(each * x.elements) + 10 * x.shape[1], code_bytes=100,
            in_place=(0,) if behind and y.bytes <= x.bytes else (), overlap=0 if behind else None,
            includes=("tinyq_words.h",), reason="portable",
        )  # fmt: skip


Pack.kernels = (PackS8(),)
