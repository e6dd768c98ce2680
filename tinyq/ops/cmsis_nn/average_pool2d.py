"""Means through ``arm_avgpool_s8``."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import Node
from tinyq.ops.average_pool2d import AveragePool2dAttrs
from tinyq.ops.base import KernelCall, Refusal
from tinyq.ops.cmsis_nn.buffers import average_pool_bytes
from tinyq.ops.cmsis_nn.calls import CmsisKernel, CmsisPoolParams, by_isa, quants_of, uses
from tinyq.ops.fixed_point import Differences, FixedPointMean
from tinyq.ops.linear import requantized
from tinyq.target import Core


class CmsisAveragePool2d(CmsisKernel):
    """Means that keep the input's quantization and do not count padding."""

    name: ClassVar[str] = "cmsis_avgpool_s8"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses means that change the scale, and counted padding."""
        made, differences = node.attrs, Differences()
        if isinstance(made, AveragePool2dAttrs):
            found = mean_of(node)
            if isinstance(found, str):
                return found
            made = found
            differences = _differing(made, node.attrs)
        _, h, w, c = node.input(0).type.shape
        size = average_pool_bytes(c, core.isa)
        taps = made.kernel_hw[0] * made.kernel_hw[1]
        params = CmsisPoolParams(
            "arm_avgpool_s8", (h, w, c), made.out_hw, made.kernel_hw, made.stride_hw,
            made.pads[:2], made.qmin, made.qmax, size,
        )  # fmt: skip
        each = by_isa(core, 14, 6, 0.7) * taps + by_isa(core, 60, 16, 12)
        return KernelCall(
            self.name,
            "ops/cmsis_pool_s8.c.j2",
            params,
            scratch_bytes=size,
            instructions=int(each * node.output.type.elements),
            code_bytes=600,
            reason="CMSIS-NN",
            library=uses("arm_avgpool_s8", differences=differences),
        )


def mean_of(node: Node) -> FixedPointMean | Refusal:
    """The library's mean for a node, or why it has none."""
    attrs, quants = node.attrs, quants_of(node)
    if quants is None or quants[0] != quants[1]:
        return "CMSIS-NN's mean keeps the input's scale and zero point"
    if attrs.count_include_pad and any(attrs.window.pads):
        return "CMSIS-NN does not count padding"
    w, (_, out_h, out_w, _) = attrs.window, node.output.type.shape
    made = FixedPointMean(w.kernel_hw, w.stride_hw, w.pads, (out_h, out_w), attrs.qmin, attrs.qmax)
    if _has_empty_window(node, made):
        return "a window lies in the padding alone"
    return made


def _has_empty_window(node: Node, made: FixedPointMean) -> bool:
    """Whether an output sees no element of the input."""
    for axis in (0, 1):
        starts = np.arange(made.out_hw[axis]) * made.stride_hw[axis] - made.pads[axis]
        ends = np.minimum(starts + made.kernel_hw[axis], node.input(0).type.shape[axis + 1])
        if np.any(ends <= np.maximum(starts, 0)):
            return True
    return False


def _differing(made: FixedPointMean, attrs: AveragePool2dAttrs) -> Differences:
    """Where the library's mean differs, over every sum that is possible."""
    differing = examined = largest = 0
    for count, requant in attrs.requants:
        sums = np.arange(-128 * count, 127 * count + 1, dtype=np.int64)
        wanted = requantized(requant, sums[:, None])[:, 0].astype(np.int64)
        gaps = np.abs(made.divide(sums, np.full_like(sums, count)) - wanted)
        differing += int(np.count_nonzero(gaps))
        largest = max(largest, int(gaps.max()))
        examined += len(sums)
    return Differences(differing, examined, largest)
