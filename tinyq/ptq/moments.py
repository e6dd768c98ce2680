"""Second moments of a linear layer's input: all that least-squares rounding needs to know.

The squared error of y = W x over the data is a quadratic form in W whose matrix is E[x x^T], over
the patches x that the layer multiplies. It is gathered once; the optimisation then never sees the
data again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from tinyq.ptq.graph import attributes

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_ROWS = 32768  # of all batches together: far more than the moments have unknowns


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of the quantized input x' against the float input x, for each group of channels.

    Attributes:
        second: E[x' x'^T], [groups, K, K].
        cross: E[x x'^T], [groups, K, K].
        mean_quantized: E[x'], [groups, K].
        mean_float: E[x], [groups, K].
    """

    second: Doubles
    cross: Doubles
    mean_quantized: Doubles
    mean_float: Doubles

    def centered(self) -> Moments:
        """Moments about the means: the error that a bias cannot remove."""
        q, f = self.mean_quantized, self.mean_float
        return Moments(
            self.second - q[:, :, None] * q[:, None, :],
            self.cross - f[:, :, None] * q[:, None, :],
            np.zeros_like(q), np.zeros_like(f),
        )  # fmt: skip


def gather_moments(
    node: onnx.NodeProto,
    weight_shape: tuple[int, ...],
    pairs: Sequence[tuple[Floats, Floats]],
    seed: int,
) -> Moments:
    """Moments over batches of (quantized input, float input), on a sample of the positions."""
    rng = np.random.default_rng(seed)
    rows = max(1, _ROWS // len(pairs))
    total = 0
    sums: list[Doubles] = []
    for quantized, reference in pairs:
        a, b = patches(node, weight_shape, (quantized, reference), rng, rows)
        a, b = a.transpose(1, 2, 0), b.transpose(1, 2, 0)  # [groups, K, rows]
        at = a.transpose(0, 2, 1)
        parts = [a @ at, b @ at, a.sum(axis=2), b.sum(axis=2)]
        parts = [part.astype(np.float64) for part in parts]
        sums = parts if not sums else [s + p for s, p in zip(sums, parts, strict=True)]
        total += a.shape[2]
    second, cross, mean_quantized, mean_float = (s / total for s in sums)
    return Moments(second, cross, mean_quantized, mean_float)


def patches(
    node: onnx.NodeProto,
    weight_shape: tuple[int, ...],
    arrays: tuple[Floats, ...],
    rng: np.random.Generator,
    limit: int,
) -> list[Floats]:
    """What each output position multiplies, [rows, groups, K] for each array, same positions.

    At most ``limit`` rows, drawn without replacement.
    """
    if node.op_type != "Conv":
        rows = [array.reshape(-1, 1, array.shape[-1]) for array in arrays]
        picked = _pick(len(rows[0]), rng, limit)
        return [array[picked] for array in rows]
    groups = int(attributes(node).get("group", 1))
    views = [_windows(node, weight_shape, array) for array in arrays]
    spatial = views[0].ndim // 2 - 1
    # [N, C, *out, *kernel]: positions are N and out.
    out_shape = views[0].shape[2 : 2 + spatial]
    positions = (views[0].shape[0], *out_shape)
    index = np.unravel_index(_pick(int(np.prod(positions)), rng, limit), positions)
    found = []
    for view in views:
        where: tuple[Any, ...] = (index[0], slice(None), *index[1:])
        taken = view[where]
        found.append(np.ascontiguousarray(taken).reshape(len(taken), groups, -1))
    return found


def _pick(count: int, rng: np.random.Generator, limit: int) -> npt.NDArray[np.int64]:
    if count <= limit:
        return np.arange(count)
    return np.sort(rng.choice(count, limit, replace=False))


def _windows(node: onnx.NodeProto, weight_shape: tuple[int, ...], x: Floats) -> Floats:
    """View [N, C, *out, *kernel] of a convolution's input [N, C, *spatial], zero padded."""
    kernel = weight_shape[2:]
    spatial = len(kernel)
    attrs = attributes(node)
    strides = attrs.get("strides", [1] * spatial)
    dilations = attrs.get("dilations", [1] * spatial)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(attrs, x.shape[2:], extent, strides)
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    view = np.lib.stride_tricks.sliding_window_view(
        padded, extent, axis=tuple(range(2, 2 + spatial))
    )
    steps = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilations)
    return view[(slice(None), slice(None), *steps, *taps)]


def _pads(
    attrs: dict[str, Any], size: tuple[int, ...], extent: list[int], strides: list[int]
) -> list[tuple[int, int]]:
    auto = attrs.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    spatial = len(size)
    if auto in ("NOTSET", ""):
        pads = attrs.get("pads", [0] * (2 * spatial))
        return list(zip(pads[:spatial], pads[spatial:], strict=True))
    if auto == "VALID":
        return [(0, 0)] * spatial
    found = []
    for n, e, s in zip(size, extent, strides, strict=True):
        total = max((-(-n // s) - 1) * s + e - n, 0)
        half = total // 2
        found.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
    return found
