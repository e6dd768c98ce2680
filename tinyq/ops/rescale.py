"""One multiplication and clamp of every int16 element: requantization, with Relu and Clip fused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, InvalidGraphError, Node, TensorType
from tinyq.ops.base import Kernel, KernelCall, Operator, Refusal, c_type
from tinyq.ops.params import RescaleParams
from tinyq.target import Core

Int64 = npt.NDArray[np.int64]

CODES = np.arange(-32768, 32768, dtype=np.int64)
"""Every int16, in order."""

INLINE_FIXES = 8
_LARGEST_SHIFT = 46


@dataclass(frozen=True)
class RescaleAttrs:
    """y = clamp((x * multiplier + addend) >> shift, qmin, qmax), in int64.

    A sum whose level is odd is lowered by ``tie_window`` before the shift, then ``zero_point`` is
    added (without a window it is part of ``addend``). ``fixes`` are (x, delta), delta added before
    the clamp. Of the 65,536 inputs ``mismatches`` give another integer than the oracle, by one.
    """

    multiplier: int
    addend: int
    shift: int
    qmin: int
    qmax: int
    tie_window: int = 0
    zero_point: int = 0
    fixes: tuple[tuple[int, int], ...] = ()
    mismatches: int = 0

    def levels(self, x: Int64) -> Int64:
        """Outputs before fixes and clamp."""
        total = x * self.multiplier + self.addend
        total = total - ((total >> self.shift) & 1) * self.tie_window
        return (total >> self.shift) + self.zero_point

    def __call__(self, x: Int64) -> Int64:
        """Outputs int64 of inputs int64."""
        levels = self.levels(x)
        for code, delta in self.fixes:
            levels = levels + delta * (x == code)
        return np.clip(levels, self.qmin, self.qmax)


class Rescale(Operator):
    """The operator ``rescale``."""

    name: ClassVar[str] = "rescale"
    summary: ClassVar[str] = "int16 to int16 or int8 of another scale, Relu and Clip of int16"
    onnx: ClassVar[tuple[str, ...]] = ("DequantizeLinear", "QuantizeLinear", "Relu", "Clip")

    def infer(self, node: Node) -> tuple[TensorType, ...]:
        """The input's shape, the type that the node says."""
        return (node.output.type.with_shape(node.input(0).type.shape),)

    def reference(self, node: Node, inputs: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        """Multiply, shift, clamp."""
        levels = _attrs(node)(inputs[0].astype(np.int64))
        return (levels.astype(node.output.type.dtype.numpy),)


def _attrs(node: Node) -> RescaleAttrs:
    if not isinstance(node.attrs, RescaleAttrs):
        raise InvalidGraphError(f"'{node.name}' has no RescaleAttrs")
    return node.attrs


def fit_rescale(wanted: Int64, ratio: float, zero_point: int = 0) -> RescaleAttrs | None:
    """Parameters for outputs ``wanted`` [65,536] of slope ``ratio``; None if any is off by two.

    Scales in simple ratios put inputs on halves, which the oracle gives to even levels before it
    adds ``zero_point``: there a window is sought that does the same. Where nothing serves every
    input, float32 has moved single ones, which are listed if they are few and counted if not.
    """
    shift = _LARGEST_SHIFT
    while shift > 0 and abs(round(ratio * 2**shift)) >= 2**31:
        shift -= 1
    multiplier = round(ratio * 2**shift)
    if shift == 0 or not _fits(multiplier, shift, wanted):
        return None
    best: RescaleAttrs | None = None
    after = zero_point if zero_point & 1 else 0
    for window in (0, *(2**k for k in range(shift - 1))):
        found, serves_all = _with_addend(wanted, multiplier, shift, window, after * (window > 0))
        if serves_all:
            return found
        wrong = wanted - found(CODES)
        count = int(np.count_nonzero(wrong))
        if np.abs(wrong).max() <= 1 and (best is None or count < best.mismatches):
            best = replace(found, mismatches=count)
    if best is None or best.mismatches > INLINE_FIXES:
        return best
    deltas = wanted - best.levels(CODES)
    at = np.flatnonzero(wanted - best(CODES))
    fixes = tuple((int(CODES[k]), int(deltas[k])) for k in at)
    return replace(best, fixes=fixes, mismatches=0)


def _with_addend(
    wanted: Int64, multiplier: int, shift: int, window: int, after: int
) -> tuple[RescaleAttrs, bool]:
    """The addend in the middle of those that serve every input, and whether there are any."""
    qmin, qmax = int(wanted.min()), int(wanted.max())
    level = wanted - after
    late = (level & 1) * window
    products = CODES * multiplier
    start = (level << shift) + late - products
    end = ((level + 1) << shift) + window - late - 1 - products
    start, end = start[wanted > qmin], end[wanted < qmax]
    if not start.size or not end.size:  # one output alone
        return RescaleAttrs(0, qmin << shift, shift, qmin, qmax), True
    low, high = int(start.max()), int(end.min())
    addend = (low + high) // 2
    return (
        RescaleAttrs(multiplier, addend, shift, qmin, qmax, window, after),
        low <= high,
    )


def _fits(multiplier: int, shift: int, wanted: Int64) -> bool:
    """Whether levels stay below 2^31 before the clamp, so that the shifted sum fits int32."""
    largest = 65536 * abs(multiplier) + (int(np.abs(wanted).max()) << shift)
    return bool(largest < min(2**62, 2 ** (31 + shift)))


class RescaleS16(Kernel):
    """Portable C: a 64-bit multiply-add, a shift and a clamp an element."""

    name: ClassVar[str] = "rescale_s16"
    widths: ClassVar[frozenset[int]] = frozenset({16})

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Always possible."""
        a, y = _attrs(node), node.output.type
        params = RescaleParams(
            y.elements, a.multiplier, a.addend, a.shift, a.qmin, a.qmax, a.fixes,
            c_type(node.input(0)), c_type(node.output), a.tie_window, a.zero_point,
        )  # fmt: skip
        cost = (9 if core.long_multiply else 60) + 2 * len(a.fixes)
        same = node.input(0).type.bytes == y.bytes
        return KernelCall(
            self.name, "ops/rescale_s16.c.j2", params, instructions=cost * y.elements,
            in_place=(0,) if same else (), overlap=None if same else 0, reason="portable",
        )  # fmt: skip


Rescale.kernels = (RescaleS16(),)
