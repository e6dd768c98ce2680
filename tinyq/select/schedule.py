"""A schedule: the kernel chosen for every node, and why the others were not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from tinyq.ir import Graph, Node, Value
from tinyq.ops.base import KernelCall, LibraryUse
from tinyq.passes.stripe import Rows
from tinyq.target import Core


class Goal(Enum):
    """What selection minimises; the value is the option's spelling."""

    SPEED = "speed"
    SIZE = "size"
    BALANCED = "balanced"


@dataclass(frozen=True)
class Libraries:
    """How kernels of a library are treated.

    rounding: how the library's build rounds, ``once`` or ``twice``; kernels that need the other are
    refused. preferred: they are taken wherever they accept, and their layers may differ from the
    oracle, which the report then lists; else the cheapest kernel of all wins, and a layer that can
    differ is refused.
    """

    rounding: str
    preferred: bool

    def refuses(self, use: LibraryUse) -> str:
        """Why the kernel may not be used, or ''."""
        if use.rounding and use.rounding != self.rounding:
            return f"it rounds {use.rounding}, this build of the library {self.rounding}"
        if use.differing and not self.preferred:
            return f"it differs from the oracle at {use.differing:,} of {use.examined:,} values"
        return ""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One kernel's answer for a node: a call, or the reason of its refusal.

    ``cost`` is instructions (speed), bytes of flash (size), or instructions and a price in
    instructions for every byte (balanced); meaningless for a refusal.
    """

    kernel: str
    call: KernelCall | None
    refusal: str = ""
    cost: float = 0.0


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with its chosen call; ``index`` is that of the profiling hook."""

    index: int
    node: Node
    call: KernelCall
    candidates: tuple[Candidate, ...]
    macs: int

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """The run-time operands, in the order of the C function's arguments."""
        return tuple(value for value in self.node.present_inputs if not value.is_constant)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the layer computes."""
        return self.node.outputs


@dataclass(frozen=True, eq=False)
class Schedule:
    """Every layer in order of execution, for one core and one goal.

    ``rows`` says what the tensors of layers that run in stripes are.
    """

    graph: Graph
    core: Core
    goal: Goal
    layers: tuple[Layer, ...]
    rows: Mapping[Value, Rows] = field(default_factory=dict)

    @property
    def instructions(self) -> int:
        """Estimated instructions of one inference."""
        return sum(layer.call.instructions for layer in self.layers)
