"""The order of passes from a QDQ graph to an integer graph that kernels can be chosen for."""

from __future__ import annotations

from dataclasses import dataclass

from tinyq.errors import Diagnostic, TinyqError
from tinyq.ir import Graph
from tinyq.ops.base import width_of
from tinyq.ops.lowering import Evaluate
from tinyq.passes.adopt_fixed_point import adopt_fixed_point
from tinyq.passes.adopt_tflite import adopt_tflite
from tinyq.passes.commute_qdq import commute_qdq
from tinyq.passes.dead_channels import remove_dead_channels
from tinyq.passes.dead_taps import remove_dead_taps
from tinyq.passes.lower import lower
from tinyq.passes.merge import merge_neighbours
from tinyq.passes.name_outputs import name_outputs, output_names
from tinyq.passes.remove_transposes import remove_transposes
from tinyq.passes.simplify import merge_reshapes
from tinyq.passes.synthesize import synthesize_requantization
from tinyq.passes.values import tell_operands


@dataclass(frozen=True, eq=False)
class Lowered:
    """The integer graph and what the passes have to say about it."""

    graph: Graph
    notes: tuple[str, ...]


def to_integer(graph: Graph, evaluate: Evaluate, oracle: str = "ort") -> Lowered:
    """Run every pass. Raises TinyqError with every node that cannot be compiled.

    Order: Q and DQ commute with movement first, so that each island of float operators computes;
    layout before synthesis, since it permutes dense weights; merging once transposes are gone from
    between neighbours; dead taps before another oracle reads the weights; dead channels once the
    oracle of each operator is settled, for it says what is constant; synthesis on the final
    weights; then what values layers read, which follow from it.
    """
    integer, notes = lower(commute_qdq(graph), evaluate, oracle)
    wide = [node for node in integer.nodes if width_of(node) > 8]
    if wide and oracle != "ort":
        raise TinyqError(
            Diagnostic("TQ203", f"an int16 tensor under --oracle {oracle}",
                       "Compile with --oracle ort.", node.name, node.op)
            for node in wide
        )  # fmt: skip
    integer, merged = merge_neighbours(merge_reshapes(remove_transposes(integer)))
    integer, cropped = remove_dead_taps(integer)
    notes = (*notes, *merged, *cropped)
    if oracle == "tflite":
        integer = adopt_tflite(integer)
    if oracle == "cmsis-nn":  # what is constant there is not known to the pass on dead channels
        integer, more = adopt_fixed_point(integer)
    else:
        integer, more = remove_dead_channels(integer)
    notes = (*notes, *more)
    names = output_names(integer, [v.name for v in graph.outputs])
    integer = tell_operands(synthesize_requantization(name_outputs(integer, names)))
    left = [node.name for node in integer.nodes if node.op == "transpose"]
    if left:
        notes = (*notes, f"{len(left)} transposes are left: {', '.join(left[:5])}")
    return Lowered(integer, notes)
