"""Graphs: values, nodes, and the one way of changing them.

Values and nodes are frozen and compared by identity; a pass makes a new graph and never edits
one. Both stages use these classes: in the QDQ stage a node's ``op`` is the ONNX operator and
``attrs`` an :class:`OnnxAttrs`; in the integer stage ``op`` is a name of the registry in
``tinyq.ops`` and ``attrs`` that operator's frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from tinyq.ir.types import AnyArray, TensorType


class Stage(Enum):
    """Where a graph stands on its way to integers."""

    QDQ = "qdq"
    INTEGER = "integer"


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor: an input, a constant (``data`` is set) or the result of a node."""

    name: str
    type: TensorType
    data: AnyArray | None = None

    @property
    def is_constant(self) -> bool:
        """True when the value is known at compile time."""
        return self.data is not None

    @property
    def array(self) -> AnyArray:
        """The constant's data; ValueError for a value that is computed."""
        if self.data is None:
            raise ValueError(f"'{self.name}' is not a constant")
        return self.data


@dataclass(frozen=True)
class OnnxAttrs:
    """Attributes of an ONNX node by name: int, float, str, tuples of them, or an array."""

    values: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute called ``name``, or ``default``."""
        return self.values.get(name, default)


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. An omitted optional input is ``None``."""

    op: str
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Any = field(default_factory=OnnxAttrs)

    def input(self, index: int) -> Value:
        """Input ``index``; IndexError when it is omitted."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise IndexError(f"{self.op} '{self.name}' has no input {index}")
        return value

    def optional_input(self, index: int) -> Value | None:
        """Input ``index``, or None when it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def present_inputs(self) -> tuple[Value, ...]:
        """The inputs that are not omitted."""
        return tuple(value for value in self.inputs if value is not None)


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a tensor of the model is found: ``transpose(value.reshape(shape), perm)``.

    ``offset`` is what an unsigned tensor of the model is larger by (128 for uint8, else 0).
    ``kept``: where channels were removed, those that are left of the model's, along the last axis
    of ``shape``.
    """

    name: str
    value: Value
    shape: tuple[int, ...]
    perm: tuple[int, ...]
    offset: int = 0
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: nodes in an order in which every value is computed before it is used.

    ``origins`` says which tensors of the model the values are, for comparison layer by layer.
    """

    name: str
    stage: Stage
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    origins: tuple[Origin, ...] = ()

    @cached_property
    def producers(self) -> Mapping[Value, Node]:
        """The node that computes each computed value."""
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def consumers(self) -> Mapping[Value, tuple[Node, ...]]:
        """The nodes that read each value, in order; values that nobody reads are absent."""
        uses: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.present_inputs):
                uses.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in uses.items()}

    def uses(self, value: Value) -> tuple[Node, ...]:
        """The nodes that read ``value``."""
        return self.consumers.get(value, ())

    def constants(self) -> Iterator[Value]:
        """Every constant that a node reads or that is an output, once, in order of first use."""
        seen: set[Value] = set()
        for value in (*(v for n in self.nodes for v in n.present_inputs), *self.outputs):
            if value.is_constant and value not in seen:
                seen.add(value)
                yield value

    def replace(
        self,
        nodes: Iterable[Node],
        outputs: tuple[Value, ...] | None = None,
        inputs: tuple[Value, ...] | None = None,
    ) -> Graph:
        """A graph of the same name and stage with other nodes (and outputs, inputs)."""
        kept = tuple(nodes)
        defined = {value for node in kept for value in node.outputs}
        return Graph(
            self.name,
            self.stage,
            self.inputs if inputs is None else inputs,
            self.outputs if outputs is None else outputs,
            kept,
            tuple(o for o in self.origins if o.value in defined),
        )

    def with_origins(self, origins: Iterable[Origin]) -> Graph:
        """The same graph with other origins."""
        return Graph(self.name, self.stage, self.inputs, self.outputs, self.nodes, tuple(origins))


def without_dead_nodes(graph: Graph) -> Graph:
    """The graph without the nodes that no output depends on."""
    needed: set[Value] = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(value in needed for value in node.outputs):
            kept.append(node)
            needed.update(node.present_inputs)
    return graph.replace(reversed(kept))


def substitute(graph: Graph, replacements: Mapping[Value, Value]) -> Graph:
    """The graph in which every use of a key reads its value instead (chains are followed)."""
    if not replacements:
        return graph

    def resolve(value: Value | None) -> Value | None:
        while value is not None and value in replacements:
            value = replacements[value]
        return value

    nodes = []
    for node in graph.nodes:
        inputs = tuple(resolve(value) for value in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        nodes.append(node if same else Node(node.op, node.name, inputs, node.outputs, node.attrs))
    outputs = tuple(resolve(value) or value for value in graph.outputs)
    return graph.replace(nodes, outputs)
