"""Validity checks of a graph. A failure is a mistake of tinyq, so it is an ordinary exception."""

from __future__ import annotations

from tinyq.ir.graph import Graph, Stage, Value
from tinyq.ir.types import DType


class InvalidGraphError(AssertionError):
    """A pass or an importer made a graph that breaks a rule of the IR."""


def check(graph: Graph) -> Graph:
    """Return ``graph``, or raise :class:`InvalidGraphError` naming the broken rule.

    Every stage: values are defined once and before use, names of values and of nodes are unique,
    constants have the shape and type that they declare. Integer stage: no float tensor is left.
    """
    defined: set[Value] = set(graph.inputs)
    names: set[str] = {value.name for value in graph.inputs}
    if len(names) != len(graph.inputs):
        raise InvalidGraphError("two inputs share a name")
    node_names: set[str] = set()
    for node in graph.nodes:
        if node.name in node_names:
            raise InvalidGraphError(f"two nodes are called '{node.name}'")
        node_names.add(node.name)
        for value in node.present_inputs:
            if not value.is_constant and value not in defined:
                raise InvalidGraphError(f"'{node.name}' reads '{value.name}' before it is computed")
        for value in node.outputs:
            if value in defined or value.name in names:
                raise InvalidGraphError(f"'{value.name}' is defined twice")
            defined.add(value)
            names.add(value.name)
    for value in graph.outputs:
        if not value.is_constant and value not in defined:
            raise InvalidGraphError(f"output '{value.name}' is never computed")
    for value in graph.constants():
        _check_constant(value)
    if graph.stage is Stage.INTEGER:
        for node in graph.nodes:
            for value in (*node.present_inputs, *node.outputs):
                _check_integer(node.name, value)
    return graph


def _check_constant(value: Value) -> None:
    data = value.array
    if tuple(data.shape) != value.type.shape or str(data.dtype) != value.type.dtype.value:
        raise InvalidGraphError(
            f"constant '{value.name}' is {data.dtype}{list(data.shape)}, declared {value.type}"
        )


def _check_integer(node: str, value: Value) -> None:
    if value.type.dtype in (DType.FLOAT32, DType.BOOL):
        raise InvalidGraphError(f"'{node}' touches the float tensor '{value.name}'")
