"""Removes from an ONNX model what none of its outputs needs."""

from __future__ import annotations

import onnx


def drop_unused(model: onnx.ModelProto) -> None:
    """Nodes, constants, recorded types and operator sets that are not needed go, in place."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    constants = [t for t in graph.initializer if t.name in needed]
    used = {"", "ai.onnx", *(n.domain for n in kept), *(f.domain for f in model.functions)}
    imports = [o for o in model.opset_import if o.domain in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:], model.opset_import[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(constants)
    model.opset_import.extend(imports)
