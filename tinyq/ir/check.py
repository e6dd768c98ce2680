"""Validity checks of a graph. A failure is a mistake of tinyq, so it is an ordinary exception."""

from __future__ import annotations

from collections import Counter

from tinyq.ir.graph import Graph, Stage, Value
from tinyq.ir.types import DType


class InvalidGraphError(AssertionError):
    """A pass or an importer made a graph that breaks a rule of the IR."""


def check(graph: Graph) -> Graph:
    """Return ``graph``, or raise :class:`InvalidGraphError` naming the broken rule.

    Every stage: values are defined once and before use, names of values and of nodes are unique,
    constants have the shape and type that they declare. Integer stage: no float tensor is left.
    """
    names = [value.name for value in (*graph.inputs, *(v for n in graph.nodes for v in n.outputs))]
    _check_unique("value", names)
    _check_unique("node", [node.name for node in graph.nodes])
    defined: set[Value] = set(graph.inputs)
    for node in graph.nodes:
        for value in node.present_inputs:
            if not value.is_constant and value not in defined:
                raise InvalidGraphError(f"'{node.name}' reads '{value.name}' before it is computed")
        defined.update(node.outputs)
    for value in graph.outputs:
        if not value.is_constant and value not in defined:
            raise InvalidGraphError(f"output '{value.name}' is never computed")
    for value in graph.constants():
        _check_constant(value)
    if graph.stage is Stage.INTEGER:
        _check_integer(graph)
    return graph


def _check_unique(what: str, names: list[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InvalidGraphError(f"two {what}s share the name '{repeated[0]}'")


def _check_constant(value: Value) -> None:
    data = value.array
    if tuple(data.shape) != value.type.shape or str(data.dtype) != value.type.dtype.value:
        raise InvalidGraphError(
            f"constant '{value.name}' is {data.dtype}{list(data.shape)}, declared {value.type}"
        )


def _check_integer(graph: Graph) -> None:
    for node in graph.nodes:
        for value in (*node.present_inputs, *node.outputs):
            if value.type.dtype in (DType.FLOAT32, DType.BOOL):
                raise InvalidGraphError(f"'{node.name}' touches the float tensor '{value.name}'")
