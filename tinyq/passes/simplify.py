"""Small exact clean-ups of the integer graph: reshapes of reshapes, equal nodes."""

from __future__ import annotations

import dataclasses

from tinyq.ir import Graph, Node, Value, check, substitute
from tinyq.ir.graph import without_dead_nodes


def merge_reshapes(graph: Graph) -> Graph:
    """The graph in which no reshape reads a reshape and none keeps its input's shape."""
    source: dict[Value, Value] = {}
    replacements: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op != "reshape":
            nodes.append(node)
            continue
        start = source.get(node.input(0), node.input(0))
        source[node.output] = start
        kept = node.output in graph.outputs
        if start.type.shape == node.output.type.shape and not (kept and start in graph.inputs):
            replacements[node.output] = start
        else:
            nodes.append(Node(node.op, node.name, (start,), node.outputs, node.attrs))
    merged = graph.replace(nodes).with_origins(
        o if o.value not in source else dataclasses.replace(o, value=source[o.value])
        for o in graph.origins
    )
    return check(without_dead_nodes(substitute(merged, replacements)))
