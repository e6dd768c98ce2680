"""The integer reference interpreter: the arbiter of what a network computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinyq.ir import AnyArray, Graph, Stage, Value
from tinyq.ops import REGISTRY


def interpret(graph: Graph, inputs: Mapping[str, AnyArray]) -> dict[Value, AnyArray]:
    """Every value of an integer graph for one inference, from inputs by name.

    Raises ValueError for an input of another shape or dtype, or a graph of another stage.
    """
    if graph.stage is not Stage.INTEGER:
        raise ValueError("only an integer graph can be interpreted")
    values: dict[Value, AnyArray] = {}
    for value in graph.inputs:
        array = np.asarray(inputs[value.name])
        if array.shape != value.type.shape or str(array.dtype) != value.type.dtype.value:
            raise ValueError(f"'{value.name}' is {array.dtype}{array.shape}, not {value.type}")
        values[value] = array
    for node in graph.nodes:
        operands = tuple(v.array if v.is_constant else values[v] for v in node.present_inputs)
        values.update(zip(node.outputs, REGISTRY[node.op].reference(node, operands), strict=True))
    return values


@dataclass(frozen=True, eq=False)
class ReferenceOracle:
    """The integer graph as its own oracle: where a library's arithmetic is what is wanted."""

    graph: Graph

    def run(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Integer outputs of one inference."""
        return outputs(self.graph, inputs)

    def run_exposed(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """None: every layer is compared with the graph anyway."""
        return {}


def outputs(graph: Graph, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
    """The outputs of one inference, in order."""
    values = interpret(graph, inputs)
    return tuple(v.array if v.is_constant else values[v] for v in graph.outputs)
