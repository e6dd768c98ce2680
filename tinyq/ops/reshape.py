"""Reshape: the same bytes under another shape, so no code."""

from __future__ import annotations

from typing import ClassVar

from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, Sharing
from tinyq.ops.params import CopyParams
from tinyq.target import Core


class Reshape(Operator):
    """The operator ``reshape``; the target shape is its output's."""

    name: ClassVar[str] = "reshape"
    summary: ClassVar[str] = "Change of shape: no code, the tensors share memory"
    onnx: ClassVar[tuple[str, ...]] = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The declared shape, of as many elements."""
        x, y = node.input(0).type, node.output.type
        if x.elements != y.elements:
            raise InvalidGraphError(f"reshape '{node.name}': {x} to {y}")
        return (x.with_shape(y.shape),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """The same elements."""
        return (inputs[0].reshape(node.output.type.shape),)


class ReshapeAlias(Kernel):
    """Shares memory with the input, always."""

    name: ClassVar[str] = "reshape_alias"
    widths: ClassVar[frozenset[int]] = frozenset({8, 16})

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        x = node.input(0).type
        c_type = f"{x.dtype.value}_t"
        return KernelCall(
            self.name, "ops/copy_s8.c.j2", CopyParams(x.bytes, c_type, c_type),
            sharing=Sharing("input", (0,)), alias=True, reason="shares its input's memory",
        )  # fmt: skip


Reshape.kernels = (ReshapeAlias(),)
