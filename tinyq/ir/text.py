"""The one text form of a graph, for `tinyq inspect`, golden tests and messages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tinyq.ir.graph import Graph, Node, OnnxAttrs, Value


def to_text(graph: Graph) -> str:
    """The graph, one line a node; the same graph gives the same text.

    Attributes print as name=value; a class that defines ``__str__`` prints as that.
    """
    lines = [f"graph {graph.name} stage={graph.stage.value} {{"]
    lines += [f"  input %{value.name}: {value.type}" for value in graph.inputs]
    lines += [f"  const {_constant(value)}" for value in graph.constants()]
    lines += [f"  {_node(node)}" for node in graph.nodes]
    lines += [f"  output %{value.name}" for value in graph.outputs]
    return "\n".join([*lines, "}"]) + "\n"


def _constant(value: Value) -> str:
    data = value.array.ravel()
    shown = ", ".join(str(item) for item in data[:4])
    return f"%{value.name}: {value.type} = [{shown}{', ...' if data.size > 4 else ''}]"


def _node(node: Node) -> str:
    results = ", ".join(f"%{v.name}: {v.type}" for v in node.outputs)
    operands = ", ".join(f"%{v.name}" if v else "_" for v in node.inputs)
    attrs = _attrs(node.attrs)
    return f'{results} = {node.op}({operands}){f" {{{attrs}}}" if attrs else ""} "{node.name}"'


def _attrs(attrs: Any) -> str:
    if isinstance(attrs, OnnxAttrs):
        items = sorted(attrs.values.items())
    elif "__str__" in vars(type(attrs)):
        return str(attrs)
    elif dataclasses.is_dataclass(attrs):
        items = [(f.name, getattr(attrs, f.name)) for f in dataclasses.fields(attrs)]
    else:
        items = []
    return ", ".join(f"{name}={_attr(value)}" for name, value in items)


def _attr(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return str(value)
