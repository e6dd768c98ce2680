"""Finds the integer parameters of every operator, once the graph is final."""

from __future__ import annotations

from tinyq.ir import Graph, Node, check, substitute
from tinyq.ops import REGISTRY


def synthesize_requantization(graph: Graph) -> Graph:
    """The graph with every requantization synthesised and every node's types checked."""
    nodes = []
    for node in graph.nodes:
        attrs = REGISTRY[node.op].synthesize(node)
        changed = attrs is not node.attrs
        made = Node(node.op, node.name, node.inputs, node.outputs, attrs) if changed else node
        REGISTRY[made.op].check(made)
        nodes.append(made)
    return check(substitute(graph.replace(nodes), {}))
