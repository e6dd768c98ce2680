"""The table of supported operators, from the registry."""

from __future__ import annotations

from tinyq.ops import REGISTRY


def operators_markdown() -> str:
    """A Markdown table: integer operator, the ONNX operators that become it, what it does."""
    lines = ["| operator | from ONNX | what |", "|---|---|---|"]
    for operator in REGISTRY.operators.values():
        none = "(none: how tensors are stored)" if operator.stores else "(edges of the network)"
        names = ", ".join(dict.fromkeys(operator.onnx)) or none
        lines.append(f"| `{operator.name}` | {names} | {operator.summary} |")
    return "\n".join(lines) + "\n"
