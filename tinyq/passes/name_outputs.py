"""Gives the outputs of the integer graph the names that they have in the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tinyq.ir import Graph, Node, Value, check
from tinyq.ops.reals import is_found_scale


def output_names(graph: Graph, names: Sequence[str]) -> tuple[str, ...]:
    """Names of an integer graph's outputs from the model's; a scale found at run time follows."""
    found: list[str] = []
    left = iter(names)
    for value in graph.outputs:
        found.append(f"{found[-1]}_scale" if is_found_scale(graph, value) else next(left))
    return tuple(found)


def name_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph whose output k is called ``names[k]``.

    An output that is an input or a constant, that is an output twice, or whose name another value
    has already, keeps its own.
    """
    taken = {value.name for node in graph.nodes for value in node.outputs}
    taken |= {value.name for value in graph.inputs}
    renamed: dict[Value, Value] = {}
    for value, name in zip(graph.outputs, names, strict=True):
        if value in graph.producers and value not in renamed and name not in taken:
            renamed[value] = Value(name, value.type)
            taken.add(name)
    if not renamed:
        return graph

    def new(value: Value | None) -> Value | None:
        return value if value is None else renamed.get(value, value)

    nodes = [
        Node(
            node.op,
            node.name,
            tuple(new(value) for value in node.inputs),
            tuple(renamed.get(value, value) for value in node.outputs),
            node.attrs,
        )
        for node in graph.nodes
    ]
    outputs = tuple(renamed.get(value, value) for value in graph.outputs)
    origins = [dataclasses.replace(o, value=renamed.get(o.value, o.value)) for o in graph.origins]
    return check(graph.replace(nodes, outputs).with_origins(origins))
