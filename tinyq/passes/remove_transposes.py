"""The layout pass: transposes sink towards the outputs until they cancel.

ONNX is channels-first, the kernels are channels-last, so lowering puts a transpose before and after
every convolution and pool. Walking the nodes in order, a transpose is not emitted but remembered;
operators that work on any layout run on the untransposed tensor and pass the memory on; a second
transpose composes with it. What has to be emitted in the end is what could not be removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tinyq.ir import DType, Graph, Node, Origin, TensorType, Value, check
from tinyq.ir.graph import without_dead_nodes
from tinyq.ops.concat import ConcatAttrs
from tinyq.ops.lut import LutAttrs
from tinyq.ops.pad import PadAttrs
from tinyq.ops.quantize_real import QuantizeRealAttrs
from tinyq.ops.reals import operands_of
from tinyq.ops.slice import SliceAttrs
from tinyq.ops.transpose import TransposeAttrs, moves_nothing, permutation

Perm = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _View:
    """A value that is ``transpose(base, perm)`` without having been computed."""

    base: Value
    perm: Perm


def remove_transposes(graph: Graph) -> Graph:
    """An equal graph with as few transposes as sinking can leave."""
    return check(without_dead_nodes(_Sinking(graph).run()))


def _identity(rank: int) -> Perm:
    return tuple(range(rank))


def _inverse(perm: Perm) -> Perm:
    return tuple(perm.index(k) for k in range(len(perm)))


def _permuted(shape: tuple[int, ...], perm: Perm) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in perm)


class _Sinking:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.views: dict[Value, _View] = {}
        self.same: dict[Value, Value] = {}
        self.emitted: dict[tuple[Value, Perm], Value] = {}
        self.orders: dict[Value, npt.NDArray[np.intp]] = {}
        self.absorb: dict[str, Callable[[Node], bool]] = {
            "transpose": self._transpose,
            "lut": self._elementwise,
            "rescale": self._elementwise,
            "curve": self._elementwise,
            "rebase": self._elementwise,
            "add": self._binary,
            "mul": self._binary,
            "extremum": self._binary,
            "concat": self._concat,
            "slice": self._slice,
            "pad": self._pad,
            "reshape": self._reshape,
            "dense": self._dense,
            "quantize_real": self._reals,
            "real_sum": self._reals,
        }

    def run(self) -> Graph:
        for node in self.graph.nodes:
            absorb = self.absorb.get(node.op)
            if absorb is None or not absorb(node):
                self._emit(node)
        outputs = tuple(self._real(value) for value in self.graph.outputs)
        result = self.graph.replace(self.nodes, outputs)
        return result.with_origins(self._origin(o) for o in self.graph.origins)

    def _origin(self, origin: Origin) -> Origin:
        value = self.same.get(origin.value, origin.value)
        view = self.views.get(value)
        if view is None:
            return replace(origin, value=value)
        return Origin(origin.name, view.base, view.base.type.shape, view.perm, origin.offset)

    # --- helpers ----------------------------------------------------------------------------------

    def _view(self, value: Value) -> _View:
        value = self.same.get(value, value)
        found = self.views.get(value)
        return found or _View(value, _identity(len(value.type.shape)))

    def _real(self, value: Value) -> Value:
        """``value`` computed: a node is emitted for a view, once."""
        value = self.same.get(value, value)
        view = self.views.get(value)
        if view is None:
            return value
        key = (view.base, view.perm)
        if key not in self.emitted:
            self.emitted[key] = self._compute(value, view)
        return self.emitted[key]

    def _compute(self, value: Value, view: _View) -> Value:
        shape = view.base.type.shape
        if view.perm == _identity(len(shape)):
            return view.base
        result = Value(value.name, value.type)
        trivial = moves_nothing(shape, view.perm)
        op, attrs = ("reshape", None) if trivial else ("transpose", TransposeAttrs(view.perm))
        self.nodes.append(Node(op, f"{value.name}:layout", (view.base,), (result,), attrs))
        return result

    def _emit(self, node: Node) -> None:
        inputs = tuple(None if v is None else self._real(v) for v in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        self.nodes.append(
            node if same else Node(node.op, node.name, inputs, node.outputs, node.attrs)
        )

    def _emit_on_base(
        self, node: Node, inputs: tuple[Value, ...], perm: Perm, attrs: object
    ) -> None:
        """Emit ``node`` on untransposed inputs; its own first output becomes a view."""
        shape = _permuted(node.output.type.shape, _inverse(perm))
        if perm == _identity(len(perm)):
            result = node.output
        else:
            result = Value(f"{node.output.name}:base", node.output.type.with_shape(shape))
            self.views[node.output] = _View(result, perm)
        outputs = (result, *node.outputs[1:])
        self.nodes.append(Node(node.op, node.name, inputs, outputs, attrs))

    # --- rules ------------------------------------------------------------------------------------

    def _transpose(self, node: Node) -> bool:
        view = self._view(node.input(0))
        perm = tuple(view.perm[axis] for axis in permutation(node))
        self.views[node.output] = _View(view.base, perm)
        return True

    def _elementwise(self, node: Node) -> bool:
        if node.output.type.dtype is DType.UINT8:
            return False  # What moves data is written for int8: it comes before the last re-basing.
        view = self._view(node.input(0))
        attrs = node.attrs
        if isinstance(attrs, LutAttrs) and view.perm:
            attrs = LutAttrs(view.perm[attrs.axis % len(view.perm)])
        order = self.orders.get(self.same.get(node.input(0), node.input(0)))
        if order is not None:
            if isinstance(attrs, LutAttrs) and len(node.input(1).array) > 1:
                raise AssertionError("a permuted tensor reached a table with channels")
            self.orders[node.output] = order
        self._emit_on_base(node, (view.base, *node.present_inputs[1:]), view.perm, attrs)
        return True

    def _common_perm(self, node: Node) -> Perm | None:
        """The layout in which ``node`` can run on the bases of all computed inputs, or None.

        An input that is not transposed serves where its transpose is computed already: the start
        of a residual block that a convolution reads too.
        """
        views = [self._view(value) for value in node.present_inputs if not value.is_constant]
        perms = {view.perm for view in views}
        if len(perms) == 1:
            return perms.pop()
        moved = [perm for perm in perms if perm != _identity(len(perm))]
        if len(perms) != 2 or len(moved) != 1 or len({len(perm) for perm in perms}) != 1:
            return None
        known = all(
            view.perm == moved[0] or (view.base, _inverse(moved[0])) in self.emitted
            for view in views
        )
        return moved[0] if known else None

    def _base(self, value: Value, perm: Perm) -> Value:
        """The computed value of which ``value`` is the transpose by ``perm``."""
        view = self._view(value)
        return view.base if view.perm == perm else self.emitted[view.base, _inverse(perm)]

    def _binary(self, node: Node) -> bool:
        perm = self._common_perm(node)
        if perm is None or len(perm) != len(node.output.type.shape):
            return False
        inputs = []
        for value in node.present_inputs:
            constant = value.is_constant
            inputs.append(_constant_on_base(value, perm) if constant else self._base(value, perm))
        self._emit_on_base(node, tuple(inputs), perm, node.attrs)
        return True

    def _reals(self, node: Node) -> bool:
        """Elementwise over the tensors of its terms, whose channels move with the layout."""
        attrs = node.attrs
        single = isinstance(attrs, QuantizeRealAttrs)
        terms = (attrs.term,) if single else attrs.terms
        operands = operands_of(node, terms)
        views = [self._view(x) for x, _ in operands]
        perm = views[0].perm
        if any(view.perm != perm for view in views):
            return False
        moved = tuple(
            replace(term, axis=perm[term.axis] if term.channels > 1 else 0) for term in terms
        )
        inputs = [
            value
            for view, (_, scale) in zip(views, operands, strict=True)
            for value in (view.base, scale)
            if value is not None
        ]
        changed = replace(attrs, term=moved[0]) if single else replace(attrs, terms=moved)
        self._emit_on_base(node, tuple(inputs), perm, changed)
        return True

    def _concat(self, node: Node) -> bool:
        perm = self._common_perm(node)
        if perm is None or any(v.is_constant for v in node.present_inputs):
            return False
        attrs = ConcatAttrs(perm[node.attrs.axis])
        bases = tuple(self._base(value, perm) for value in node.present_inputs)
        self._emit_on_base(node, bases, perm, attrs)
        return True

    def _slice(self, node: Node) -> bool:
        view, inverse = self._view(node.input(0)), None
        inverse = _inverse(view.perm)
        a: SliceAttrs = node.attrs
        attrs = SliceAttrs(_permuted(a.starts, inverse), _permuted(a.steps, inverse))
        self._emit_on_base(node, (view.base,), view.perm, attrs)
        return True

    def _pad(self, node: Node) -> bool:
        view = self._view(node.input(0))
        inverse, a = _inverse(view.perm), node.attrs
        attrs = PadAttrs(_permuted(a.before, inverse), _permuted(a.after, inverse), a.value)
        self._emit_on_base(node, (view.base,), view.perm, attrs)
        return True

    def _reshape(self, node: Node) -> bool:
        """A reshape of a view needs the elements in order, unless a dense layer can reorder."""
        view = self._view(node.input(0))
        shape = view.base.type.shape
        if view.perm == _identity(len(shape)) or moves_nothing(shape, view.perm):
            self.nodes.append(Node("reshape", node.name, (view.base,), node.outputs, node.attrs))
            return True
        if not self._only_dense_reads(node.output):
            return False
        logical = np.arange(node.output.type.elements).reshape(_permuted(shape, view.perm))
        order = np.transpose(logical, _inverse(view.perm)).reshape(-1)
        self.orders[node.output] = order
        self.nodes.append(Node("reshape", node.name, (view.base,), node.outputs, node.attrs))
        return True

    def _only_dense_reads(self, value: Value) -> bool:
        """Whether every reader, through tables, is a dense layer of one row."""
        if value in self.graph.outputs or value.type.shape[-1] != value.type.elements:
            return False
        for node in self.graph.uses(value):
            if node.op == "dense":
                continue
            if node.op in ("rescale", "curve") or (
                node.op == "lut" and len(node.input(1).array) == 1
            ):
                if self._only_dense_reads(node.output):
                    continue
                return False
            return False
        return bool(self.graph.uses(value))

    def _dense(self, node: Node) -> bool:
        order = self.orders.get(self.same.get(node.input(0), node.input(0)))
        if order is None:
            return False
        w = node.input(1)
        data = np.ascontiguousarray(w.array[:, order])
        data.setflags(write=False)
        weights = Value(w.name, TensorType(w.type.shape, w.type.dtype, w.type.quant), data)
        self.nodes.append(
            Node(node.op, node.name, (self._real(node.input(0)), weights), node.outputs, node.attrs)
        )
        return True


def _constant_on_base(value: Value, perm: Perm) -> Value:
    """A constant operand, which broadcasts to the rank of ``perm``, in the base's layout."""
    shape = (1,) * (len(perm) - len(value.type.shape)) + value.type.shape
    data = np.ascontiguousarray(np.transpose(value.array.reshape(shape), _inverse(perm)))
    data.setflags(write=False)
    type_ = TensorType(data.shape, value.type.dtype, value.type.quant)
    return Value(value.name, type_, data)
