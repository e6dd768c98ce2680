"""Finds the integer parameters of every operator, once the graph is final."""

from __future__ import annotations

from collections.abc import Hashable

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
    return check(substitute(graph.replace(_alike(nodes)), {}))


def _alike(nodes: list[Node]) -> list[Node]:
    """The nodes, with the same shifts where layers can then share code at no cost."""
    groups: dict[Hashable, list[int]] = {}
    for k, node in enumerate(nodes):
        key = REGISTRY[node.op].alike(node)
        if key is not None:
            groups.setdefault((node.op, key), []).append(k)
    made = list(nodes)
    for members in groups.values():
        if len(members) < 2:
            continue
        group = [nodes[k] for k in members]
        found = REGISTRY[group[0].op].synthesize_alike(group)
        for k, node, attrs in zip(members, group, found, strict=True):
            made[k] = Node(node.op, node.name, node.inputs, node.outputs, attrs)
    return made
