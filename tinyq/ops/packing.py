"""Weight layouts of the kernels for cores with the DSP extension, and the scratch they need.

Pure numpy: the templates state what they read, and these functions write it. All results are int8
arrays of bytes, to be stored 4-byte aligned.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int8] | npt.NDArray[np.int16]
"""Weights of 16 bits need the mode ``wide``."""

MatmulMode = Literal["plain", "mixed", "wide"]

PIXELS_PER_BLOCK = 3


def column_order(kernel_hw: tuple[int, int], channels: int, by_rows: bool) -> Int64:
    """Order in which a gathered column holds the values of a patch.

    Returns [K4] flat indices into [KH, KW, channels], -1 where the column is padded to a multiple
    of four. Runs of contiguous input bytes (a kernel row when ``by_rows``, else one tap) come
    first, in whole words; the last ``run % 4`` bytes of every run follow together.
    """
    kh, kw = kernel_hw
    run = kw * channels if by_rows else channels
    runs = np.arange(kh * kw * channels).reshape(-1, run)
    whole = run // 4 * 4
    order = np.concatenate([runs[:, :whole].ravel(), runs[:, whole:].ravel()])
    return np.concatenate([order, np.full(-order.size % 4, -1)]).astype(np.int64)


def gathers_rows(groups: int, kernel_width: int, dilation_width: int) -> bool:
    """True when a convolution's patches are gathered by kernel rows, else by taps."""
    return groups == 1 and (dilation_width == 1 or kernel_width == 1)


def allows_mixed(weight_oi: Weights) -> bool:
    """True when the channel pairs of [O, K] weights fit the ``mixed`` layout.

    The odd channel's accumulator must stay within 24 bits for int8 inputs, and its byte must have
    room for the borrow of a negative even neighbour.
    """
    pairs = weight_oi[: weight_oi.shape[0] // 2 * 2].astype(np.int64)
    even, odd = pairs[0::2], pairs[1::2]
    if odd.size == 0:
        return True
    fits = bool(np.all(np.abs(odd).sum(axis=1) * 128 < 2**23))
    return fits and bool(np.all(odd - (even < 0) >= -128))


def pack_matmul(weight_oi: Weights, order: Int64, mode: MatmulMode) -> Int8:
    """Weights [O, K] as matmul_s8_dsp.c.j2 reads them, columns permuted by ``order``."""
    rows = np.where(order >= 0, weight_oi[:, np.maximum(order, 0)], 0).astype(np.int64)
    channels, k4 = rows.shape
    steps = rows.reshape(channels, k4 // 4, 4)
    paired = channels // 2 * 2
    even, odd = steps[0:paired:2], steps[1:paired:2]
    parts = [_PAIR_LAYOUTS[mode](even, odd).ravel()]
    if channels % 2:
        last = steps[-1]
        parts.append(
            _int16_bytes(last[:, [0, 2, 1, 3]]) if mode == "wide" else last.astype(np.int8)
        )
    return np.concatenate([part.ravel() for part in parts]).astype(np.int8)


def pack_matvec(weight_oi: Weights, mode: MatmulMode) -> Int8:
    """Weights [O, K] as matvec_s8_dsp.c.j2 reads them: channels by four, then two, then one."""
    channels, inputs = weight_oi.shape
    padded = np.pad(weight_oi.astype(np.int64), ((0, 0), (0, -inputs % 4)))
    steps = padded.reshape(channels, -1, 4)
    parts: list[Int8] = []
    start = 0
    for lanes in [4] * (channels // 4) + [2] * (channels % 4 // 2) + [1] * (channels % 2):
        parts.append(_matvec_block(steps[start : start + lanes], mode))
        start += lanes
    return np.concatenate(parts)


def _matvec_block(steps: Int64, mode: MatmulMode) -> Int8:
    """One block of [lanes, K4 / 4, 4] weights."""
    if mode == "plain" or (mode == "mixed" and steps.shape[0] == 1):
        return steps.transpose(1, 0, 2).astype(np.int8).ravel()
    halves = steps if mode == "wide" else _halves(steps[0::2], steps[1::2])
    by_pair = halves[:, :, [0, 2, 1, 3]].reshape(halves.shape[0], -1, 2)
    return _int16_bytes(by_pair.transpose(1, 0, 2)).ravel()


def _halves(even: Int64, odd: Int64) -> Int64:
    """Two channels in one int16: 256 * odd + even."""
    halves = 256 * odd + even
    if halves.size and (halves.min() < -(2**15) or halves.max() >= 2**15):
        raise ValueError("weights do not fit the mixed layout: see allows_mixed")
    return halves


def _plain(even: Int64, odd: Int64) -> Int8:
    return np.stack([even, odd], axis=2).astype(np.int8)


def _mixed(even: Int64, odd: Int64) -> Int8:
    return _int16_bytes(_halves(even, odd)[:, :, [0, 2, 1, 3]])


def _wide(even: Int64, odd: Int64) -> Int8:
    both = [even[:, :, [0, 2]], odd[:, :, [0, 2]], even[:, :, [1, 3]], odd[:, :, [1, 3]]]
    return _int16_bytes(np.concatenate(both, axis=2))


def _int16_bytes(values: Int64) -> Int8:
    return np.ascontiguousarray(values.astype("<i2")).view(np.int8)


_PAIR_LAYOUTS = {"plain": _plain, "mixed": _mixed, "wide": _wide}


def dense_scratch_bytes(inputs: int) -> int:
    """Scratch of dense_s8_dsp.c.j2: the expanded input."""
    return (inputs + 3) // 4 * 8


def depthwise_plane_width(out_width: int, kernel: int, stride: int, dilation: int) -> int:
    """Halfwords in a row of a depthwise plane: what the outputs read and one more, made even."""
    return ((out_width - 1) * stride + (kernel - 1) * dilation + 4) // 2 * 2


def depthwise_scratch_bytes(
    out_hw: tuple[int, int],
    kernel_hw: tuple[int, int],
    stride_hw: tuple[int, int],
    dilation_hw: tuple[int, int],
) -> int:
    """Scratch of depthwise_s8_dsp.c.j2: one padded plane of int16, a word, a table of weights."""
    rows = (out_hw[0] - 1) * stride_hw[0] + (kernel_hw[0] - 1) * dilation_hw[0] + 1
    width = depthwise_plane_width(out_hw[1], kernel_hw[1], stride_hw[1], dilation_hw[1])
    table = kernel_hw[0] * (kernel_hw[1] // 2 + 1) * 8
    return rows * width * 2 + 4 + table


def conv_scratch_bytes(k4: int, patch_bytes: int, channels_out: int) -> int:
    """Scratch of conv_s8_dsp.c.j2: three int16 columns, then a patch or three rows of outputs."""
    side = max(patch_bytes, PIXELS_PER_BLOCK * channels_out)
    return (PIXELS_PER_BLOCK * 2 * k4 + side + 3) // 4 * 4
