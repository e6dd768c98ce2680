"""The intermediate representation: types, graphs, checks and the text form."""

from tinyq.ir.check import InvalidGraphError, check
from tinyq.ir.graph import (
    Graph,
    Node,
    OnnxAttrs,
    Origin,
    Stage,
    Value,
    substitute,
    without_dead_nodes,
)
from tinyq.ir.text import to_text
from tinyq.ir.types import AnyArray, DType, QuantParams, TensorType

__all__ = [
    "AnyArray",
    "DType",
    "Graph",
    "InvalidGraphError",
    "Node",
    "OnnxAttrs",
    "Origin",
    "QuantParams",
    "Stage",
    "TensorType",
    "Value",
    "check",
    "substitute",
    "to_text",
    "without_dead_nodes",
]
