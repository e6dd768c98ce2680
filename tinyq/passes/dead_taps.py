"""Removes the taps of convolutions that meet nothing but padding, exactly.

A 3x3 kernel over one padded pixel uses its centre alone. Padding holds the input's zero point,
whose products cancel with the offset of the zero point, so that both go.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinyq.ir import Graph, Node, Value, check
from tinyq.ops.conv2d import Conv2d, Conv2dAttrs


def remove_dead_taps(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """An equal graph with smaller kernels, and a note on what that saved (none if nothing).

    For graphs whose requantization is not synthesised yet.
    """
    changed: dict[Node, Node] = {}
    for node in graph.nodes:
        cropped = _cropped(node) if node.op == "conv2d" else None
        if cropped is not None:
            changed[node] = cropped
    if not changed:
        return graph, ()
    saved = sum(n.input(1).type.bytes - c.input(1).type.bytes for n, c in changed.items())
    note = f"{saved:,} bytes of weights in {len(changed)} layers meet nothing but padding: removed"
    return check(graph.replace(changed.get(node, node) for node in graph.nodes)), (note,)


def live_taps(
    size: int, outputs: int, kernel: int, stride: int, dilation: int, before: int
) -> tuple[int, int]:
    """First and last tap along one axis that any output reads inside the input."""
    starts = np.arange(outputs) * stride - before
    at = starts[:, None] + np.arange(kernel) * dilation
    alive = np.flatnonzero(((at >= 0) & (at < size)).any(axis=0))
    return (int(alive[0]), int(alive[-1])) if alive.size else (0, kernel - 1)


def _cropped(node: Node) -> Node | None:
    a = node.attrs
    assert isinstance(a, Conv2dAttrs)
    x, w, y = node.input(0).type.shape, node.input(1), node.output.type.shape
    kernel = w.type.shape[1:3]
    pads, window = list(a.pads), []
    for k in (0, 1):
        stride, dilation, before = a.stride_hw[k], a.dilation_hw[k], a.pads[k]
        first, last = live_taps(x[k + 1], y[k + 1], kernel[k], stride, dilation, before)
        if before < first * dilation:
            first = 0
        top = before - first * dilation
        end = (y[k + 1] - 1) * stride + (last - first) * dilation + 1
        pads[k], pads[k + 2] = top, max(0, end - x[k + 1] - top)
        window.append(slice(first, last + 1))
    if all(s.stop - s.start == size for s, size in zip(window, kernel, strict=True)):
        return None
    weights = np.ascontiguousarray(w.array[:, window[0], window[1], :])
    weights.setflags(write=False)
    lost = (w.array.astype(np.int64).reshape(len(weights), -1).sum(axis=1)
            - weights.astype(np.int64).reshape(len(weights), -1).sum(axis=1))  # fmt: skip
    oracle = replace(a.oracle, offset=a.oracle.offset + a.x_zero_point * lost)
    attrs = replace(a, pads=(pads[0], pads[1], pads[2], pads[3]), oracle=oracle)
    constant = Value(w.name, w.type.with_shape(weights.shape), weights)
    made = Node(node.op, node.name, (node.input(0), constant), node.outputs, attrs)
    return made if Conv2d().infer(made)[0].shape == y else None
