"""Kernels that store weights as codes of 1 to 5 bits and unpack them a block at a time.

Each wraps a kernel for int8 weights: codes become weights in scratch, in the layout of that
kernel, which then computes as it always does. Results are the same integers. Unpacking costs two
to five instructions a weight, little where a weight serves many pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tinyq.ir import AnyArray, Node, Value
from tinyq.ops import dsp, linear
from tinyq.ops.base import InnerFunction, Kernel, KernelCall, PackedConstant, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.conv2d_dsp import geometry_of
from tinyq.ops.conv2d_scalar import columns_call as scalar_columns_call
from tinyq.ops.dense import dense_params
from tinyq.ops.dsp_products import columns_call, vector_call
from tinyq.ops.packed_params import PackedParams, UnpackParams
from tinyq.ops.packing import Int8, MatmulMode, Weights, allows_mixed
from tinyq.quant.encodings import MOST_BITS, Codes, Encoding, pack, recognise
from tinyq.target import Core

Blocked = tuple[Any, tuple[InnerFunction, ...]]

_TURN = {1: 32, 2: 16, 3: 8, 4: 8, 5: 8}
"""Weights that one turn of unpack_codes.c.j2 writes, by bits."""

_UNPACK = {1: 1.7, 2: 1.8, 3: 2.8, 4: 2.3, 5: 2.5}
"""Instructions a weight, counted on cortex-m4 with arm-none-eabi-gcc 12.2 -O2."""

_UNPACK_SINGLY = 4.5
_MANY = 4_096
"""Five bits: with fewer weights than this a table of all pairs, 2 KiB, takes longer to build."""

_PAIR = 6
"""Instructions an entry of that table."""

_ARMV6M = 2
"""Times as many there."""

_CODE_BYTES = 220
_BLOCK_DSP = 20_480
_BLOCK = 4_608
"""Bytes of unpacked weights in scratch: layers with many weights have small activations."""


@lru_cache(maxsize=512)
def encoding_of(weights: Value) -> Encoding | None:
    """How the weights can be stored below eight bits, or None."""
    array = weights.array
    return recognise(array.astype(np.int8)) if array.dtype == np.int8 else None


@dataclass(frozen=True, eq=False)
class _Inner:
    """A kernel for int8 weights, and how it computes ``channels`` outputs in blocks.

    ``blocked`` gives its parameters and cores for a count of blocks; None: it knows no blocks.
    Several blocks are a multiple of its ``groups``, each of ``inputs`` channels.
    ``advances``: it takes the requantization of the block, else that of the layer. A block has a
    multiple of ``multiple`` channels and at most ``limit`` bytes of weights; every block beyond the
    first costs ``again`` instructions.
    """

    call: KernelCall
    channels: int
    blocked: Callable[[int], Blocked] | None = None
    mixed: bool = False
    advances: bool = True
    limit: int = _BLOCK_DSP
    multiple: int = 1
    again: float = 0.0
    groups: int = 1
    inputs: int = 0

    @property
    def data(self) -> Int8:
        """The packed weights."""
        return self.call.constants[0].array.reshape(-1).view(np.int8)

    def blocks(self) -> int:
        """The fewest blocks that fit the limit, 0 where none do."""
        counts = range(1, self.channels + 1 if self.blocked else 2)
        return next((n for n in counts if self._fits(n)), 0)

    def _fits(self, count: int) -> bool:
        width = self.channels // count
        whole = count in (1, self.groups) or width % self.multiple == 0
        divides = self.channels % count == 0 and (count == 1 or count % self.groups == 0)
        return divides and whole and self.data.size // count <= self.limit


def _packed_call(name: str, encoding: Encoding, inner: _Inner, core: Core) -> KernelCall | Refusal:
    """The call of the wrapper."""
    call, blocks = inner.call, inner.blocks()
    if blocks == 0:
        return f"a block of weights takes more than {inner.limit} bytes"
    values = _values(inner.data, inner.mixed).reshape(blocks, -1)
    params, codes = _stored(encoding, inner, values)
    inner_params, cores = inner.blocked(blocks) if inner.blocked else (call.params, call.cores)
    paired = params.table_bytes > 0
    each = _UNPACK[encoding.bits] if paired else _UNPACK_SINGLY
    each *= 1 if core.long_multiply else _ARMV6M
    work = call.instructions + each * values.size + 40 * blocks
    work += _PAIR * 4**encoding.bits if paired else 0
    work += max(0, blocks - inner.groups) * inner.again
    parts = f" in {blocks} blocks" if blocks > 1 else ""
    alone = blocks == 1
    unpack = UnpackParams(encoding.bits, inner.mixed, paired)
    return KernelCall(
        name,
        "ops/packed_s8.c.j2",
        params,
        (
            PackedConstant("codes", codes, params.code_type),
            PackedConstant("levels", np.asarray(encoding.levels, np.int8), "int8_t"),
            *call.constants[1:],
        ),
        scratch_bytes=params.table_bytes + params.weight_bytes + call.scratch_bytes,
        instructions=int(work),
        code_bytes=call.code_bytes + _CODE_BYTES,
        in_place=call.in_place if alone else (),
        overlap=call.overlap if alone else None,
        phase=call.phase if alone else 0,
        includes=tuple(dict.fromkeys((*call.includes, *dsp.INCLUDES))),
        reason=f"{encoding.name} weights unpacked{parts}; {call.reason}",
        encoding=encoding.name,
        cores=(
            *cores,
            InnerFunction("unpack", "unpack_codes", "ops/unpack_codes.c.j2", unpack),
            InnerFunction("inner", f"{call.kernel}_unpacked", call.template, inner_params, True),
        ),
    )


def _stored(encoding: Encoding, inner: _Inner, values: Int8) -> tuple[PackedParams, AnyArray]:
    """Parameters of the wrapper, and the codes of weights [blocks, ...]."""
    blocks, count = values.shape
    turn = _TURN[encoding.bits]
    turns = -(-count // turn)
    packed = store_codes(_codes(encoding, values), encoding.bits)
    paired = encoding.bits < MOST_BITS or values.size >= _MANY
    params = PackedParams(
        bits=encoding.bits,
        mixed=inner.mixed,
        blocks=blocks,
        channels=inner.channels // blocks,
        table_bytes=2 * 4**encoding.bits if paired else 0,
        weight_bytes=turns * turn,
        code_type=f"{packed.dtype}_t",
        block_codes=packed.size // blocks,
        turns=turns,
        shifts=len(inner.call.constants) > 2,
        inner_scratch=inner.call.scratch_bytes > 0,
        advances=inner.advances,
        group_blocks=blocks // inner.groups if blocks > 1 and inner.groups > 1 else 0,
        group_inputs=inner.inputs,
    )
    return params, packed


def store_codes(codes: Codes, bits: int) -> AnyArray:
    """Codes [blocks, ...], blocks padded to whole turns: uint8, or words that fit; bytes if 8."""
    if bits == 8:
        return codes.reshape(-1)
    blocks, count = codes.shape
    turn = _TURN[bits]
    padded = np.zeros((blocks, -(-count // turn) * turn), np.uint8)
    padded[:, :count] = codes
    packed: AnyArray = np.concatenate([pack(row, bits) for row in padded])
    return packed.view("<u4") if bits in (1, 2, 4) else packed


def _values(data: Int8, mixed: bool) -> Int8:
    """Weights in the order in which a kernel's packed bytes hold them."""
    if not mixed:
        return data
    halves = data.view("<i2").astype(np.int64)
    even = (halves & 255).astype(np.uint8).view(np.int8)
    odd = (halves - even) >> 8
    return np.stack([even, odd], axis=1).astype(np.int8).reshape(-1)


def _codes(encoding: Encoding, values: Int8) -> Codes:
    """Codes; zeros that pad a column multiply zeros, so that any code serves."""
    return encoding.encode(np.where(np.isin(values, encoding.levels), values, encoding.levels[0]))


def _encoding(node: Node) -> Encoding | Refusal:
    if node.input(1).array.dtype != np.int8:
        return "weights of 16 bits"
    return encoding_of(node.input(1)) or "the weights have more than 32 values"


def _layout(weights: Weights, groups: int = 1) -> MatmulMode:
    """Two channels in a halfword where all channels of a group pair up and fit."""
    return "mixed" if len(weights) // groups % 2 == 0 and allows_mixed(weights) else "plain"


class Conv2dS8DspPacked(Kernel):
    """Convolutions by columns, on cores with the DSP extension."""

    name = "conv2d_s8_dsp_packed"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses depthwise ones, more than 32 values of weights, and what the int8 kernel does."""
        encoding, requant, p = _encoding(node), linear.requant_of(node), conv2d_params(node)
        refusal = dsp.refuses(core)
        if refusal or isinstance(encoding, str):
            return refusal or str(encoding)
        if p.in_c == p.groups > 1:
            return "depthwise"
        weights = dsp.weights_of(node).reshape(p.out_c, -1)
        layout = _layout(weights, p.groups)
        geometry = geometry_of(p)
        call = columns_call(
            "conv2d_s8_dsp", geometry, weights, requant, dsp.SHORT, layout, core.pairs
        )
        if isinstance(call, str):
            return call
        core_function, params = call.cores[0], call.params

        def blocked(count: int) -> Blocked:
            parts = count if count > 1 else p.groups
            product = replace(core_function.params, o=p.out_c // parts)
            size = params.group_bytes * p.groups // parts
            inner = replace(params, blocks=count, group_bytes=size)
            return inner, (replace(core_function, params=product),)

        gather = p.out_h * p.out_w * (1.6 * core_function.params.k4 + 30)
        inner = _Inner(
            call, p.out_c, blocked, layout == "mixed", True, _BLOCK_DSP, 2, gather, p.groups,
            p.in_c // p.groups,
        )  # fmt: skip
        return _packed_call(self.name, encoding, inner, core)


class DenseS8DspPacked(Kernel):
    """Dense layers of one row, on cores with the DSP extension."""

    name = "dense_s8_dsp_packed"

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses several rows, more than 32 values of weights, and what the int8 kernel does."""
        encoding, requant = _encoding(node), linear.requant_of(node)
        refusal = dsp.refuses(core)
        if refusal or isinstance(encoding, str):
            return refusal or str(encoding)
        if dense_params(node).rows > 1:
            return "there are several rows"
        weights = dsp.weights_of(node)
        layout = _layout(weights)
        call = vector_call("dense_s8_dsp", weights, requant, dsp.SHORT, layout)
        if isinstance(call, str):
            return call
        channels, core_function, params = len(weights), call.cores[0], call.params

        def blocked(count: int) -> Blocked:
            product = replace(core_function.params, o=channels // count)
            inner = replace(params, block=channels // count if count > 1 else 0)
            return inner, (replace(core_function, params=product),)

        inner = _Inner(call, channels, blocked, layout == "mixed", True, _BLOCK, 4)
        return _packed_call(self.name, encoding, inner, core)


class Conv2dS8Packed(Kernel):
    """Convolutions by columns of int8, on every core."""

    name = "conv2d_s8_packed"
    takes_fixed_point = True

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses depthwise ones and more than 32 values of weights."""
        encoding, p = _encoding(node), conv2d_params(node)
        if isinstance(encoding, str):
            return encoding
        if p.in_c == p.groups > 1:
            return "depthwise"
        call = scalar_columns_call("conv2d_s8_columns", node, p, core)
        core_function, params = call.cores[0], call.params

        def blocked(count: int) -> Blocked:
            parts = count if count > 1 else p.groups
            product = replace(core_function.params, o=p.out_c // parts, grouped=parts > 1)
            return replace(params, blocks=count), (replace(core_function, params=product),)

        volume = p.kernel_h * p.kernel_w * p.in_c // p.groups
        gather = 40 + 12 * p.kernel_h + volume * (0.6 if p.in_c % 4 == 0 else 5)
        gather *= p.out_h * p.out_w
        inner = _Inner(
            call, p.out_c, blocked, False, False, _BLOCK, 1, gather, p.groups, p.in_c // p.groups
        )
        return _packed_call(self.name, encoding, inner, core)


class WholePacked(Kernel):
    """Any kernel whose weights are few enough to be unpacked at once."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name  # type: ignore[misc]
        self.takes_fixed_point = kernel.takes_fixed_point  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses what the kernel refuses, more than 32 values of weights, and many weights."""
        encoding = _encoding(node)
        if isinstance(encoding, str):
            return encoding
        call = self.kernel.plan(node, core)
        if isinstance(call, str):
            return call
        inner = _Inner(call, node.input(1).type.shape[0])
        return _packed_call(self.name, encoding, inner, core)
