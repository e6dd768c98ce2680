"""Windows of convolutions and pools, as ONNX states them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyq.errors import error
from tinyq.ir import Node


@dataclass(frozen=True)
class Window:
    """Kernel, stride, dilation as (h, w); pads as (top, left, bottom, right)."""

    kernel_hw: tuple[int, int]
    stride_hw: tuple[int, int]
    dilation_hw: tuple[int, int]
    pads: tuple[int, int, int, int]


def onnx_window(
    node: Node, spatial: tuple[int, ...], kernel: tuple[int, ...] | None = None
) -> Window:
    """The window of an ONNX Conv or pool over ``spatial`` sizes of 1 or 2 dimensions.

    One dimension is read as a width of height 1. Resolves auto_pad; for pools with ceil_mode the
    bottom and right padding grows so that the floor rule gives the same output size.
    """
    rank = len(spatial)
    kernel = tuple(node.attrs.get("kernel_shape") or kernel or ())
    strides = tuple(node.attrs.get("strides") or (1,) * rank)
    dilations = tuple(node.attrs.get("dilations") or (1,) * rank)
    if len(kernel) != rank or len(strides) != rank or len(dilations) != rank:
        raise error("TQ203", "kernel, strides and input differ in rank",
                    node=node.name, operator=node.op)  # fmt: skip
    out = node.output.type.shape[2:]
    needed = [
        max(0, (out[k] - 1) * strides[k] + dilations[k] * (kernel[k] - 1) + 1 - spatial[k])
        for k in range(rank)
    ]
    begin, end = _pads(node, rank, needed)
    for k in range(rank):
        if begin[k] + end[k] < needed[k]:
            end[k] = needed[k] - begin[k]
    if rank == 1:
        return Window((1, kernel[0]), (1, strides[0]), (1, dilations[0]), (0, begin[0], 0, end[0]))
    return Window(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (begin[0], begin[1], end[0], end[1]),
    )


def overlap_distance(
    x_hwc: tuple[int, ...],
    y_hwc: tuple[int, ...],
    stride_hw: tuple[int, int],
    pads_top_left: tuple[int, int],
    bytes_xy: tuple[int, int] = (1, 1),
) -> int:
    """Least bytes by which y has to begin before x for both to share memory (see KernelCall).

    For kernels that write the pixels of y in order, each of them while its window is still read:
    nothing that this pixel or a later one reads may be written with it. ``bytes_xy``: sizes of
    one element of x and one of y.
    """
    (_, w, c), (oh, ow, oc) = x_hwc, y_hwc
    top = np.maximum(np.arange(oh) * stride_hw[0] - pads_top_left[0], 0)
    left = np.maximum(np.arange(ow) * stride_hw[1] - pads_top_left[1], 0)
    reads = ((top[:, None] * w + left) * c).reshape(-1)
    first = np.minimum.accumulate(reads[::-1])[::-1]
    written = np.arange(1, oh * ow + 1) * oc
    return int((written * bytes_xy[1] - first * bytes_xy[0]).max())


def copy_distance(reads: npt.NDArray[np.int64], writes: npt.NDArray[np.int64]) -> int:
    """Least bytes by which y has to begin before x for both to share memory (see KernelCall).

    For kernels that write y in order: byte ``reads[k]`` of x is read when y is written up to byte
    ``writes[k]``, and goes there.
    """
    later = np.minimum.accumulate(reads[::-1])[::-1]
    return int((writes - later).max())


def _pads(node: Node, rank: int, needed: list[int]) -> tuple[list[int], list[int]]:
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * rank, [0] * rank
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        small = [n // 2 for n in needed]
        large = [n - n // 2 for n in needed]
        return (small, large) if auto == "SAME_UPPER" else (large, small)
    pads = list(node.attrs.get("pads") or [0] * (2 * rank))
    return pads[:rank], pads[rank:]
