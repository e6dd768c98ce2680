"""Small networks built by hand: a fake operator whose kernels are given calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tinyq.ir import AnyArray, DType, Graph, Node, QuantParams, Stage, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Sharing
from tinyq.ops.params import CopyParams, LutParams
from tinyq.select import Candidate, Goal, Layer, Schedule
from tinyq.target import Core, load_core

QUANT = QuantParams.per_tensor(0.5, -3)


@dataclass(frozen=True, eq=False)
class FixedKernel(Kernel):
    """Answers every node with the same call or refusal."""

    name: str  # type: ignore[misc]
    answer: KernelCall | str

    def plan(self, node: Node, core: Core) -> KernelCall | str:
        return self.answer


class FakeOperator(Operator):
    summary: ClassVar[str] = "for tests"
    onnx: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, *answers: tuple[str, KernelCall | str], macs: int = 0) -> None:
        self.name = name  # type: ignore[misc]
        self.kernels = tuple(FixedKernel(kernel, answer) for kernel, answer in answers)
        self._macs = macs

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        return tuple(value.type for value in node.outputs)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        raise NotImplementedError

    def macs(self, node: Node) -> int:
        return self._macs


def tensor(name: str, *shape: int, dtype: DType = DType.INT8) -> Value:
    return Value(name, TensorType(shape, dtype, QUANT))


def schedule_of(
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    steps: Sequence[tuple[KernelCall, Sequence[Value], Sequence[Value]]],
    target: str = "cortex-m4",
) -> Schedule:
    """A schedule from (call, inputs, outputs) of each layer."""
    layers = []
    for index, (call, reads, writes) in enumerate(steps):
        node = Node("fake", f"/node/{index}", tuple(reads), tuple(writes))
        layers.append(Layer(index, node, call, (Candidate(call.kernel, call),), 0))
    nodes = tuple(layer.node for layer in layers)
    graph = Graph("fake", Stage.INTEGER, tuple(inputs), tuple(outputs), nodes)
    return Schedule(graph, load_core(target), Goal.SPEED, tuple(layers))


def lut_call(table: Any, elements: int, channels: int = 1, **more: Any) -> KernelCall:
    """A table lookup; ``table`` is int8 [channels * 256], indexed by the input's bits."""
    constant = PackedConstant("table", np.asarray(table, np.int8), "int8_t")
    params = LutParams(elements, channels)
    return KernelCall("lut_s8", "ops/lut_s8.c.j2", params, (constant,), **more)


def copy_call(count: int, **more: Any) -> KernelCall:
    return KernelCall("copy_s8", "ops/copy_s8.c.j2", CopyParams(count), **more)


def alias_call() -> KernelCall:
    return KernelCall("alias", "", None, sharing=Sharing("input", (0,)), alias=True)
