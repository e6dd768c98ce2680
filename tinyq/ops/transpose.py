"""Transpose: axes permuted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, Wide, c_type
from tinyq.ops.params import TransposeParams, merged_permutation
from tinyq.target import Core


@dataclass(frozen=True)
class TransposeAttrs:
    """Axis k of the output is axis ``perm[k]`` of the input."""

    perm: tuple[int, ...]


class Transpose(Operator):
    """The operator ``transpose``."""

    name: ClassVar[str] = "transpose"
    summary: ClassVar[str] = "Transpose; the layout pass removes those around convolutions"
    onnx: ClassVar[tuple[str, ...]] = ("Transpose", "DepthToSpace", "SpaceToDepth")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The permuted shape."""
        x, perm = node.input(0).type, permutation(node)
        if sorted(perm) != list(range(len(x.shape))):
            raise InvalidGraphError(f"transpose '{node.name}': {perm} of {x}")
        return (x.with_shape(tuple(x.shape[axis] for axis in perm)),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Move the elements. A batch before the permuted axes stays first."""
        return (np.ascontiguousarray(np.transpose(inputs[0], permutation(node))),)


def permutation(node: Node) -> tuple[int, ...]:
    """The node's ``perm``."""
    if not isinstance(node.attrs, TransposeAttrs):
        raise InvalidGraphError(f"'{node.name}' has no TransposeAttrs")
    return node.attrs.perm


def moves_nothing(shape: tuple[int, ...], perm: tuple[int, ...]) -> bool:
    """Whether a transpose leaves every element where it is (only axes of size 1 move)."""
    return merged_permutation(shape, perm)[1] == (0,)


class TransposeS8(Kernel):
    """Portable C for any permutation."""

    name: ClassVar[str] = "transpose_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        x = node.input(0).type
        shape, perm = merged_permutation(x.shape, permutation(node))
        return KernelCall(
            self.name, "ops/transpose_s8.c.j2", TransposeParams(shape, perm, c_type(node.input(0))),
            instructions=6 * x.elements, reason="portable",
        )  # fmt: skip


Transpose.kernels = (TransposeS8(), Wide(TransposeS8(), "transpose_s16"))
