"""What every operator of the integer stage states about itself, and what a kernel does.

One operator is one file: its attributes, inference, integer reference, kernels and the rule by
which it is read from a QDQ graph. Activations are [N, H, W, C] or of any rank, int8, batch 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, DType, InvalidGraphError, Node, TensorType, Value
from tinyq.target import Core

Refusal = str
"""Why a kernel cannot take a node: one clause, for the table of refusals."""


@dataclass(frozen=True, eq=False)
class PackedConstant:
    """An array that a kernel reads from flash.

    ``suffix`` names it within the layer (``weights``). ``c_type`` is the C element type; for a
    struct type the last axis of ``array`` holds the members in order. ``alignment`` in bytes.
    ``headers`` declare what reads it.
    """

    suffix: str
    array: AnyArray
    c_type: str
    alignment: int = 4
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedParams:
    """Base of parameters whose fields the template reads by their plain names, without ``p``."""


@dataclass(frozen=True, eq=False)
class InnerFunction:
    """A further C function that a kernel's own one calls: its inner part.

    The name it gets in the generated file reaches the caller's template as the variable ``role``.
    Layers whose cores have the same text share them, also where the callers differ. With
    ``calls_others`` its template calls the cores without, by their roles; its ``kernel`` must then
    differ from the names of outer functions and other cores.
    """

    role: str
    kernel: str
    template: str
    params: Any
    calls_others: bool = False


@dataclass(frozen=True)
class LibraryUse:
    """Functions of a library of the user's that a kernel calls, and what its build must be like.

    functions: entry points, by name. header: the one that declares them. rounding: ``once`` or
    ``twice`` where the library's build decides how the kernel rounds, else empty. differing: how
    many of ``examined`` accumulators (or pairs of operands) give another integer than the oracle,
    and by how much at most (``largest``).
    """

    library: str
    functions: tuple[str, ...]
    header: str
    rounding: str = ""
    differing: int = 0
    examined: int = 0
    largest: int = 0


@dataclass(frozen=True)
class Sharing:
    """How a node's operands and its result can be the same bytes, so that it needs no code.

    whole: ``input`` where the output lies within the first non-constant input, ``offsets[0]`` bytes
    after its start; ``output`` where every non-constant input k lies within the output, at
    ``offsets[k]``.
    """

    whole: Literal["input", "output"]
    offsets: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class KernelCall:
    """A kernel made ready for one node: all that code generation and planning need.

    The template renders one C function called ``fn`` from ``params`` (reachable as ``p``); those of
    ``cores`` come before it. It is called with the node's non-constant inputs, its outputs, the
    ``constants`` in order, and, when ``scratch_bytes`` is positive, a 16-byte aligned scratch
    pointer. Layers whose rendered text is the same share the function. ``in_place`` lists the
    inputs (by index among the non-constant ones) that the output may overlay exactly. ``overlap``,
    unless None, is the least distance in bytes from the start of the first output up to the start
    of the first non-constant input at which the two may share memory: 528 where the output has to
    begin at least 528 bytes before the input, -64 where it may also begin up to 64 bytes after it
    (what of the input it covers is lost). ``phase``, unless 0: they may also share memory wherever
    their starts differ by a multiple of that many bytes (a kernel that finishes one channel after
    another touches no byte of a later one then). ``sharing`` says how operands and result can be
    the same bytes; ``alias`` that they are, so that the call is left out. ``multiplies``: every
    multiply-accumulate is an instruction, which costs more where the multiplier takes several
    cycles. ``encoding`` of the weights, where the kernel reads them by codes.
    """

    kernel: str
    template: str
    params: Any
    constants: tuple[PackedConstant, ...] = ()
    scratch_bytes: int = 0
    instructions: int = 0
    code_bytes: int = 0
    in_place: tuple[int, ...] = ()
    overlap: int | None = None
    phase: int = 0
    sharing: Sharing | None = None
    alias: bool = False
    includes: tuple[str, ...] = ()
    reason: str = ""
    library: LibraryUse | None = None
    cores: tuple[InnerFunction, ...] = ()
    multiplies: bool = True
    encoding: str = ""

    @property
    def headers(self) -> tuple[str, ...]:
        """The ``includes``, and what the constants need."""
        return (*self.includes, *(h for constant in self.constants for h in constant.headers))

    @property
    def constant_bytes(self) -> int:
        """Flash taken by the constants."""
        return sum(int(c.array.nbytes) for c in self.constants)

    @property
    def flash_bytes(self) -> int:
        """Constants and the estimate of the function's code (``code_bytes``)."""
        return self.constant_bytes + self.code_bytes


@dataclass(frozen=True)
class RowWindow:
    """Which rows of its operands [1, H, W, C] each row of a node's result needs.

    Result row r reads rows r * stride - top to r * stride - top + extent (excluded) of every
    operand of as many axes that is computed; those outside of it are padding.
    """

    extent: int = 1
    stride: int = 1
    top: int = 0

    def reads(self, start: int, stop: int) -> tuple[int, int]:
        """First and last (excluded) row that result rows ``start`` to ``stop`` need, unclipped."""
        return start * self.stride - self.top, (stop - 1) * self.stride - self.top + self.extent


class Kernel(ABC):
    """One way of computing an operator in C."""

    name: ClassVar[str]
    """``<op>_<dtype>[_<feature>]``; the C function is ``tinyq_<name>``."""
    library: ClassVar[str] = ""
    """The library of the user's that it calls."""
    takes_fixed_point: ClassVar[bool] = False
    """Whether it computes operators that round twice (tinyq.ops.fixed_point)."""
    without_products: ClassVar[bool] = False
    """Whether its multiply-accumulates are additions and shifts."""
    widths: ClassVar[frozenset[int]] = frozenset({8})
    """Widest activations in bits of the nodes that it is asked about: 8, 16 or both."""

    @abstractmethod
    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """The call for ``node`` on ``core``, or the reason why this kernel cannot take it."""


class Wide(Kernel):
    """A kernel written for any type of activation, asked under its own name where one is int16."""

    widths: ClassVar[frozenset[int]] = frozenset({16})

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """As the kernel itself, whose templates take their types from the parameters."""
        answer = self.kernel.plan(node, core)
        return answer if isinstance(answer, str) else replace(answer, kernel=self.name)


def width_of(node: Node) -> int:
    """Bits of the widest activation that the node reads or writes: 16, or 8 for everything else."""
    touched = (*(v for v in node.present_inputs if not v.is_constant), *node.outputs)
    return 16 if any(value.type.dtype is DType.INT16 for value in touched) else 8


def c_type(value: Value) -> str:
    """C type of a tensor's elements."""
    return f"{value.type.dtype.value}_t"


class Operator(ABC):
    """An operator of the integer stage."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `tinyq ops` and the README."""
    onnx: ClassVar[tuple[str, ...]]
    """ONNX operators that lower to this one, for the table of what is supported."""
    stores: ClassVar[bool] = False
    """Whether it computes nothing and no model has it: it is about how tensors lie in memory."""
    kernels: tuple[Kernel, ...] = ()

    @abstractmethod
    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """Types of the outputs, from inputs and attributes (quantization is taken from the node).

        Raises InvalidGraphError where operand types or attributes contradict each other.
        """

    @abstractmethod
    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Outputs for ``inputs`` (every present input, constants included), integers only.

        This is the arbiter: the C and onnxruntime are compared with it.
        """

    def real_levels(
        self, node: Node, inputs: tuple[AnyArray, ...]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """For what the oracle computes in float32: levels before rounding, and their float32 error.

        Both are float64 of the output's shape, in output levels with the zero point; ``inputs`` as
        for :meth:`reference`. None where the oracle computes in integers, or by the same steps.
        """
        return None

    def synthesize(self, node: Node) -> Any:
        """Attributes with everything found that the integer arithmetic needs (as given)."""
        return node.attrs

    def alike(self, node: Node) -> Hashable | None:
        """Equal for nodes whose code may be the same once their shifts are; None for never."""
        return None

    def synthesize_alike(self, nodes: Sequence[Node]) -> tuple[Any, ...]:
        """Attributes, found again so that nodes of one shape share code (as given)."""
        return tuple(node.attrs for node in nodes)

    def macs(self, node: Node) -> int:
        """Multiply-accumulates of one inference."""
        return 0

    def row_window(self, node: Node) -> RowWindow | None:
        """How the result's rows follow from the operands', None where they do not row by row."""
        return None

    def attrs_of_rows(self, node: Node, top: int, bottom: int) -> Any:
        """Attributes for some rows of the result, with that many rows of padding."""
        return node.attrs

    def check(self, node: Node) -> None:
        """Raise InvalidGraphError unless the node's outputs have the inferred types."""
        for value, wanted in zip(node.outputs, self.infer(node), strict=True):
            if value.type.shape != wanted.shape or value.type.dtype is not wanted.dtype:
                raise InvalidGraphError(
                    f"{node.op} '{node.name}': output is {value.type}, inferred {wanted}"
                )


def rows_one_by_one(node: Node) -> RowWindow | None:
    """Of an elementwise operator: each row from the same row of every computed operand.

    None where an operand is broadcast along the rows or is a constant that varies along them.
    """
    shape = node.output.type.shape
    if len(shape) != 4:
        return None
    for value in node.present_inputs:
        if not value.is_constant and value.type.shape != shape:
            return None
        if value.is_constant and len(value.type.shape) > 2 and value.type.shape[-3] != 1:
            return None
    return RowWindow()


@dataclass
class Registry:
    """Every operator of the integer stage, by name."""

    operators: dict[str, Operator] = field(default_factory=dict)

    def add(self, operator: Operator) -> Operator:
        """Register one operator; the name must be new."""
        if operator.name in self.operators:
            raise ValueError(f"operator {operator.name} is registered twice")
        self.operators[operator.name] = operator
        return operator

    def __getitem__(self, name: str) -> Operator:
        return self.operators[name]
