"""Comparison with the oracle one layer at a time, each on the oracle's own inputs.

onnxruntime computes layers with int16 tensors in float32, where the reference rounds the real
result once. A difference of one then travels through the rest of the network, so outputs alone
say nothing. Here every layer gets what the oracle fed it: a layer that the oracle computes in
integers must be equal, and one that it computes in float32 may differ by one, where an independent
computation in float64 shows that float32's error reaches across the boundary between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, Graph, Node, Origin, Value
from tinyq.ops import REGISTRY
from tinyq.ops.base import width_of
from tinyq.ops.exactness import exactness_of

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One layer of one sample: elements, those that differ, those that nothing explains."""

    compared: int
    different: int
    unexplained: int
    largest: int

    def __add__(self, other: Step) -> Step:
        return Step(
            self.compared + other.compared,
            self.different + other.different,
            self.unexplained + other.unexplained,
            max(self.largest, other.largest),
        )


def is_rounded_once(graph: Graph) -> bool:
    """Whether a layer of the graph differs from onnxruntime by more than its proof corrects."""
    return any(width_of(node) > 8 for node in graph.nodes)


def compare_steps(
    graph: Graph, inputs: Mapping[str, AnyArray], exposed: Mapping[str, AnyArray]
) -> dict[str, Step]:
    """Every node whose result the oracle exposes, on the oracle's inputs; by the node's name.

    A node whose inputs are not exposed gets the reference's, computed from the last that are.
    """
    origins = {o.value: o for o in graph.origins if o.name in exposed}
    values: dict[Value, AnyArray] = {v: inputs[v.name] for v in graph.inputs}
    loose: set[Value] = set()
    steps: dict[str, Step] = {}
    for node in graph.nodes:
        operands = tuple(v.array if v.is_constant else values[v] for v in node.present_inputs)
        results = REGISTRY[node.op].reference(node, operands)
        values.update(zip(node.outputs, results, strict=True))
        origin = origins.get(node.output)
        may_be_off = any(v in loose for v in node.present_inputs)
        if origin is None:
            if may_be_off or exactness_of(node).differing:
                loose.update(node.outputs)
            continue
        ours = values[node.output].astype(np.int64)
        theirs = _in_our_layout(exposed[origin.name], origin, ours.shape)
        steps[node.name] = _step(node, operands, ours, theirs, may_be_off)
        if origin.kept is None:
            values[node.output] = theirs.astype(node.output.type.dtype.numpy)
    return steps


def _in_our_layout(theirs: AnyArray, origin: Origin, shape: tuple[int, ...]) -> Int64:
    moved = [origin.shape[k] for k in origin.perm]
    found = kept_channels(theirs.astype(np.int64), origin).reshape(moved) - origin.offset
    return np.transpose(found, np.argsort(origin.perm)).reshape(shape)


def kept_channels(theirs: Int64, origin: Origin) -> Int64:
    """The oracle's tensor without the channels that the graph has lost."""
    if origin.kept is None:
        return theirs
    axis = origin.perm.index(len(origin.shape) - 1)
    shape = [origin.shape[k] for k in origin.perm]
    shape[axis] = -1
    return np.take(theirs.reshape(shape), origin.kept, axis=axis)


def _step(
    node: Node, operands: tuple[AnyArray, ...], ours: Int64, theirs: Int64, may_be_off: bool
) -> Step:
    delta = np.abs(ours - theirs)
    different, largest = int(np.count_nonzero(delta)), int(delta.max(initial=0))
    if not different:
        return Step(ours.size, 0, 0, 0)
    explained = np.zeros(ours.shape, np.bool_)
    real = REGISTRY[node.op].real_levels(node, operands)
    if real is not None:
        explained = within_error(*real, ours, node) & within_error(*real, theirs, node)
    elif may_be_off or exactness_of(node).differing:
        explained[...] = True
    unexplained = int(np.count_nonzero((delta > 0) & ~(explained & (delta <= 1))))
    return Step(ours.size, different, unexplained, largest)


def within_error(
    levels: npt.NDArray[np.float64], error: npt.NDArray[np.float64], outputs: Int64, node: Node
) -> npt.NDArray[np.bool_]:
    """Outputs that rounding a number within ``error`` of ``levels`` gives, before the clamp.

    A clamped output stands for every number beyond it.
    """
    limits = getattr(node.attrs, "oracle", node.attrs)
    low, high = np.floor(levels - error + 0.5), np.floor(levels + error + 0.5)
    low, high = (np.clip(end, limits.qmin, limits.qmax) for end in (low, high))
    return (low <= outputs) & (outputs <= high)
