"""Any function of one int16 tensor, as straight lines that give the oracle's integers.

A table of 65,536 entries is too large for a microcontroller. The oracle computes all of them at
compile time, and the fewest lines are sought that give the same integers: long ones where the
function is straight, short ones where it bends or where float32 moves a single output. Where that
takes too many, the lines may err by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import Kernel, KernelCall, Operator, PackedConstant, Refusal, c_type
from tinyq.ops.lowering import Emitter, Island
from tinyq.ops.params import CurveParams
from tinyq.ops.rescale import CODES, RescaleAttrs, fit_rescale
from tinyq.target import Core

Int64 = npt.NDArray[np.int64]

SHIFT = 15
MOST_LINES = 1024
"""About 10 KiB of flash."""

_ANCHORS = tuple(k / 16 for k in range(1, 17, 2))
"""Where a line may begin within its first output."""

_TOLERANCES = (0, 2**-7, 2**-4, 1)
"""Tried in turn, in outputs: small ones let inputs go that lie on a half, where float32 decides."""

_STEEPEST = 2**29
_CLAMPS = frozenset({"Relu", "Clip"})


@dataclass(frozen=True)
class CurveAttrs:
    """y = (base + slope * (x - start)) >> 15 of the last line whose start is not above x.

    Input 1: int32 [lines, 3], start, base and slope; the first start is -32768. Of the 65,536
    inputs ``mismatches`` give another integer than the oracle, by one.
    """

    mismatches: int = 0


class Curve(Operator):
    """The operator ``curve``."""

    name: ClassVar[str] = "curve"
    summary: ClassVar[str] = "Any elementwise function of one int16 tensor: straight lines"
    onnx: ClassVar[tuple[str, ...]] = ("Sigmoid", "Tanh", "HardSwish", "LeakyRelu")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The input's shape, the type that the node says."""
        table = node.input(1).type
        if len(table.shape) != 2 or table.shape[1] != 3:
            raise InvalidGraphError(f"curve '{node.name}': lines {table}")
        return (node.output.type.with_shape(node.input(0).type.shape),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Find the line, interpolate."""
        levels = evaluate(inputs[1].astype(np.int64), inputs[0].astype(np.int64))
        return (levels.astype(node.output.type.dtype.numpy),)


def evaluate(lines: Int64, x: Int64) -> Int64:
    """Outputs int64 of inputs int64, from lines int64 [lines, 3]."""
    starts, bases, slopes = lines.T
    k = np.searchsorted(starts, x, side="right") - 1
    result: Int64 = (bases[k] + slopes[k] * (x - starts[k])) >> SHIFT
    return result


def fit_lines(wanted: Int64, tolerance: float, most: int = MOST_LINES) -> Int64 | None:
    """Lines int64 [n, 3] within ``tolerance`` of what gives ``wanted`` [65,536], or None.

    Greedy: from each start the line that goes furthest, of those through a few points of the first
    output's interval.
    """
    found: list[tuple[int, int, int]] = []
    slack = int(tolerance * 2**SHIFT)
    start = 0
    while start < len(wanted):
        if len(found) == most:
            return None
        length, base, slope = max(
            _longest(wanted, start, int(wanted[start] * 2**SHIFT + anchor * 2**SHIFT), slack)
            for anchor in _ANCHORS
        )
        found.append((int(CODES[start]), base, slope))
        start += length
    return np.array(found, np.int64)


def _longest(wanted: Int64, start: int, base: int, slack: int) -> tuple[int, int, int]:
    """How far a line from ``base`` serves, with its slope: (inputs, base, slope)."""
    size = 64
    while True:
        levels = wanted[start + 1 : start + size]
        steps = np.arange(1, len(levels) + 1)
        low = (levels << SHIFT) - slack - base
        high = ((levels + 1) << SHIFT) + slack - 1 - base
        least = np.maximum.accumulate(np.maximum(-(-low // steps), -_STEEPEST))
        most = np.minimum.accumulate(np.minimum(high // steps, _STEEPEST))
        served = int(np.searchsorted(least > most, True)) if len(levels) else 0
        if served < len(levels) or start + size >= len(wanted):
            break
        size *= 2
    slope = int(least[served - 1] + most[served - 1]) // 2 if served else 0
    return served + 1, base, slope


def lower_wide_unary(emitter: Emitter, island: Island, node: Node) -> Value | None:
    """An elementwise island that reads one int16 activation: a rescaling, or a curve.

    What is exact over all 65,536 inputs is preferred, and of those the rescaling.
    """
    (_, source), *_ = island.sources.items()
    varying = any(c.integers.size > 1 for c in island.constants.values()) or any(
        value.is_constant and value.type.elements > 1
        for n in island.nodes
        for value in n.present_inputs
    )
    if varying or source.value.type.shape != island.output_shape:
        emitter.refuse(
            "TQ203", node, "an int16 tensor meets a constant with several elements",
            "Quantize the constant too, with one scale; or quantize the tensor to int8.",
        )  # fmt: skip
        return None
    codes = CODES.astype(np.int16).reshape(-1, *(1 for _ in island.output_shape[1:]))
    wanted = np.asarray(emitter.evaluate(island, [codes], True), np.int64).reshape(-1)
    rescale = None
    if all(n.op in _CLAMPS for n in island.nodes):
        rescale = fit_rescale(
            wanted, source.quant.scale / island.quant.scale, island.quant.zero_point
        )
    if rescale is not None and not rescale.mismatches:
        return _emit_rescale(emitter, island, source.value, rescale)
    for tolerance in _TOLERANCES:
        lines = fit_lines(wanted, tolerance)
        if lines is not None:
            name = f"{island.name}:lines"
            constant = emitter.constant(name, lines.astype(np.int32))
            attrs = CurveAttrs(int(np.sum(evaluate(lines, CODES) != wanted)))
            return emitter.emit(
                "curve", island.name, (source.value, constant), island.output_type, attrs
            )
        if rescale is not None:
            return _emit_rescale(emitter, island, source.value, rescale)
    emitter.refuse(
        "TQ203", node, f"more than {MOST_LINES} straight lines are needed over int16",
        "Quantize its input to int8: there it is a table of 256 entries.",
    )  # fmt: skip
    return None


def _emit_rescale(emitter: Emitter, island: Island, x: Value, attrs: RescaleAttrs) -> Value:
    return emitter.emit("rescale", island.name, (x,), island.output_type, attrs)


class CurveS16(Kernel):
    """Portable C: the line is found from the top byte, then from its starts."""

    name: ClassVar[str] = "curve_s16"
    widths: ClassVar[frozenset[int]] = frozenset({16})

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        lines, y = node.input(1).array, node.output.type
        starts = lines[:, 0].astype(np.int64)
        blocks = np.arange(-32768, 32768, 256)
        first = (np.searchsorted(starts, blocks, side="right") - 1).astype(np.uint16)
        # A block of 256 inputs holds so many starts that half of them are passed on the way.
        passed = np.mean([b - a for a, b in pairwise((*first.tolist(), len(starts) - 1))]) / 2
        same = node.input(0).type.bytes == y.bytes
        return KernelCall(
            self.name, "ops/curve_s16.c.j2",
            CurveParams(y.elements, len(lines), SHIFT, c_type(node.output)),
            (
                PackedConstant("first", first, "uint16_t"),
                PackedConstant("starts", lines[:, 0].astype(np.int16), "int16_t"),
                PackedConstant("lines", lines[:, 1:].astype(np.int32), "tinyq_line_t"),
            ),
            instructions=int((20 + 5 * passed) * y.elements),
            in_place=(0,) if same else (), overlap=None if same else 0,
            reason=f"{len(lines)} straight lines",
        )  # fmt: skip


Curve.kernels = (CurveS16(),)
