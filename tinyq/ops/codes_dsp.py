"""Kernels that multiply straight from codes, for the DSP extension and layers of few pixels.

Unpacking a weight costs two instructions, and as much again to store and load it; where few pixels
share it, loading pairs of weights from a table by their codes at each use costs less.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tinyq.ir import Node
from tinyq.ops import dsp, linear
from tinyq.ops.base import Kernel, KernelCall, PackedConstant, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.conv2d_dsp import geometry_of
from tinyq.ops.conv2d_scalar import rows_as_pixels
from tinyq.ops.dense import dense_params
from tinyq.ops.dsp_products import overlap_of
from tinyq.ops.packed import encoding_of
from tinyq.ops.packed_params import CodesParams
from tinyq.ops.params import Conv2dParams
from tinyq.quant.encodings import Codes, Encoding, pack
from tinyq.target import Core

_CHUNK = {1: 32, 2: 16, 3: 8, 4: 8}
"""Inputs of one turn of the inner loop, by bits: their codes fill a word, or three bytes."""

_ORDER = (0, 2, 1, 3)
"""As SXTB16 parts the bytes of a word."""


class CodesS8Dsp(Kernel):
    """Convolutions and dense layers; ``name`` is that of the kernel."""

    takes_fixed_point: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses other cores, depthwise convolutions, and more than 16 values of weights."""
        if not core.dsp:
            return "the core has no DSP extension"
        encoding = encoding_of(node.input(1))
        if encoding is None or encoding.bits not in _CHUNK:
            return "the weights have more than 16 values"
        p = conv2d_params(node) if node.op == "conv2d" else rows_as_pixels(dense_params(node))
        if p.in_c == p.groups > 1:
            return "depthwise"
        return _call(self.name, node, p, encoding)


def _call(name: str, node: Node, shape: Conv2dParams, encoding: Encoding) -> KernelCall:
    inputs, outputs = shape.in_c // shape.groups, shape.out_c // shape.groups
    volume = shape.kernel_h * shape.kernel_w * inputs
    run = inputs * (shape.kernel_w if shape.groups == shape.dilation_w == 1 else 1)
    pixels, bits = shape.out_h * shape.out_w, encoding.bits
    columns = 1 if pixels == 1 else 2 if pixels == 2 else 4
    most = 4 // columns if bits == 4 else 2 // min(columns, 2)  # what the registers hold
    channels = next(n for n in (4, 2, 1) if n <= most and outputs % n == 0)
    chunk = _CHUNK[bits]
    k = -(-volume // chunk) * chunk
    params = CodesParams(shape, bits, columns, channels, k, chunk, run % 4 == 0 and inputs % 4 == 0)
    table = 4 * 4**bits
    blocks = -(-pixels // columns)
    distance = overlap_of(geometry_of(shape), columns)
    # Measured on cortex-m4 with arm-none-eabi-gcc 12.2 -O2.
    pair = (2.0 if bits == 4 else 2.3) + columns * (1 + 0.7 / channels)
    work = blocks * shape.out_c * (k / 2 * (pair + 3 / (chunk / 2) / channels) + 12 * columns + 6)
    work += (
        shape.groups * blocks * columns * (k * (1.8 if params.crossed else 6) + 60) + 9 * 4**bits
    )
    return KernelCall(
        name,
        "ops/codes_s8_dsp.c.j2",
        params,
        (
            PackedConstant("codes", _codes(node, params, encoding), "uint8_t"),
            PackedConstant("levels", np.asarray(encoding.levels, np.int8), "int8_t"),
            *linear.requant_constants(linear.linear_requant_of(node)),
        ),
        scratch_bytes=table + 2 * k * columns,
        instructions=int(work),
        code_bytes=520,
        in_place=(0,) if distance is not None and distance <= 0 else (),
        overlap=distance,
        includes=dsp.INCLUDES,
        reason=f"{encoding.name} weights by pairs from a table, {columns} pixels at a time",
        encoding=encoding.name,
    )


def _codes(node: Node, p: CodesParams, encoding: Encoding) -> Codes:
    """Codes by group of channels, chunk and channel."""
    array = node.input(1).array.astype(np.int8)
    codes = encoding.encode(array.reshape(p.shape.out_c, -1))
    padded = np.pad(codes, ((0, 0), (0, p.k - codes.shape[1])))
    if p.crossed:
        padded = padded.reshape(len(padded), -1, 4)[:, :, _ORDER]
    chunks = padded.reshape(-1, p.channels, p.k // p.chunk, p.chunk).transpose(0, 2, 1, 3)
    packed = pack(np.ascontiguousarray(chunks), p.bits)
    return np.append(packed, np.uint8(0)) if p.bits == 3 else packed  # a word is loaded there
