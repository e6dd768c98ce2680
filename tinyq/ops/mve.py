"""What the Helium kernels share: refusals, packing, parameters, products of columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyq.ir import AnyArray, Node
from tinyq.ops import dsp
from tinyq.ops.base import InnerFunction, KernelCall, NamedParams, PackedConstant, Refusal
from tinyq.ops.dsp_params import ColumnsParams, Corrections, EpilogueParams
from tinyq.ops.dsp_products import overlap_of
from tinyq.ops.guards import guard_headers, rule_pairs
from tinyq.ops.packing import Int8
from tinyq.quant import Requant
from tinyq.target import Core

INCLUDES = ("tinyq_mve.h",)
LANES = 16
"""Bytes of a vector."""

UNROLLED = {"": 9, "_short": 2}
"""Suffix of a kernel's name: steps of its product without a loop, some 64 bytes of code each."""


@dataclass(frozen=True)
class ProductParams(EpilogueParams):
    """``ops/product_s8_mve.c.j2``: ``columns`` of 16 * ``steps`` values by ``o`` channels."""

    columns: int
    steps: int
    o: int
    unroll: int


@dataclass(frozen=True)
class MveColumnsParams(ColumnsParams):
    """``ops/conv_s8_mve.c.j2`` (variable ``mm``: the product); ``column`` bytes are one patch."""

    column: int = 0


@dataclass(frozen=True)
class MveDenseParams(NamedParams):
    """``ops/dense_s8_mve.c.j2`` (variable ``mv``: the product)."""

    k: int
    fixes: Corrections


def refuses(core: Core, node: Node) -> Refusal:
    """Why no Helium kernel of a linear operator can serve, or an empty text."""
    if not core.mve:
        return "the core has no Helium"
    if node.input(1).array.dtype != np.int8:
        return "weights of 16 bits"
    return ""


def weights_of(node: Node) -> Int8:
    """The weights as the graph holds them, of a node that is not refused."""
    return node.input(1).array.astype(np.int8, copy=False)


def steps_of(length: int) -> int:
    """Vectors that hold ``length`` bytes."""
    return -(-length // LANES)


def pack_weights(weights: Int8) -> Int8:
    """Weights [O, K] in the order of product_s8_mve.c.j2, rows padded with zeros."""
    channels, length = weights.shape
    steps = steps_of(length)
    padded = np.zeros((channels, steps * LANES), np.int8)
    padded[:, :length] = weights
    whole = channels // 4 * 4
    # Axes of a block: (A, C) or (B, D) last, so that a vector of each channel follows the other.
    blocks = padded[:whole].reshape(-1, 2, 2, steps, LANES).transpose(0, 2, 3, 1, 4)
    return np.concatenate([blocks.reshape(-1), padded[whole:].reshape(-1)])


def pack_requant(requant: Requant) -> PackedConstant:
    """Four multipliers, then four addends of each block; pairs of the channels left over.

    What the rule of a guard reads follows, pairs in the order of the channels.
    """
    pairs = np.stack([requant.multiplier, requant.addend], axis=1).astype(np.int32)
    whole = len(pairs) // 4 * 4
    blocks = pairs[:whole].reshape(-1, 4, 2).transpose(0, 2, 1)
    own = np.concatenate([blocks.reshape(-1), pairs[whole:].reshape(-1)])
    array = np.concatenate([own, rule_constants(requant)])
    return PackedConstant("requant", array, "int32_t", headers=guard_headers(requant))


def product_params(columns: int, weights: Int8, requant: Requant, suffix: str) -> ProductParams:
    """The product of ``columns`` patches by weights [O, K]."""
    channels, length = weights.shape
    steps = steps_of(length)
    unroll = dsp.largest_unroll(steps, UNROLLED[suffix])
    return ProductParams(columns, steps, channels, unroll, **EpilogueParams.of(requant))


def rule_constants(requant: Requant) -> AnyArray:
    """What the rule of a guard reads behind the requantization, int32."""
    return np.concatenate([np.zeros(0, np.int32), *(p.ravel() for p in rule_pairs(requant))])


def product_cost(p: ProductParams) -> int:
    """Instructions of one call."""
    held = p.steps <= 2
    turns = 0 if p.unroll == p.steps else p.steps // p.unroll
    step = 2 + 2 * p.columns + (0 if held else p.columns)
    half = p.steps * step + 3 * p.columns + 4 + (2 * turns + 6 if turns else 0)
    form = 4 if p.guard else 0 if p.ties == "up" else 4
    block = 2 * half + 5 + (6 + (p.pre_shift > 0) + form) * p.columns
    left = p.steps * (1 + 2 * p.columns) + 10 + 14 * p.columns
    return 40 + p.o // 4 * block + p.o % 4 * left


def product_bytes(p: ProductParams) -> int:
    """Code of one product, without the accumulator of corrections."""
    half = (3 + 3 * p.columns if p.steps > 2 else 2 + 2 * p.columns) * 4 * p.unroll
    return 60 + 60 * p.columns + (2 * half if p.o > 3 else 0) + (70 * p.columns if p.o % 4 else 0)


def columns_call(
    name: str, geometry: ColumnsParams, weights: Int8, requant: Requant, suffix: str = ""
) -> KernelCall:
    """A convolution without groups, weights [O, K] in OHWI order."""
    g = geometry
    length = weights.shape[1]
    # A copied vector may reach 15 bytes over the end of its patch.
    column = LANES * steps_of(length + (LANES - 1 if g.kh * g.kw * g.c % LANES else 0))
    params = MveColumnsParams(**{**vars(g), "fixes": dsp.corrections_of(requant), "column": column})
    core = product_params(2, weights, requant, suffix)
    pixels = g.oh * g.ow
    runs = g.kh if g.dw == 1 else g.kh * g.kw
    gather = 20 + runs * (4 + 2 * steps_of(length // runs))
    last_row = (g.oh - 1) * g.sh + (g.kh - 1) * g.dh
    last_column = (g.ow - 1) * g.sw + (g.kw - 1) * g.dw
    inside = (g.pt, g.pl) == (0, 0) and last_row < g.h and last_column < g.w
    distance = overlap_of(g, 2)
    return KernelCall(
        name,
        "ops/conv_s8_mve.c.j2",
        params,
        (
            PackedConstant("weights", pack_weights(weights), "int8_t", 16),
            pack_requant(requant),
        ),
        scratch_bytes=2 * column + LANES,
        instructions=30 + -(-pixels // 2) * (product_cost(core) + 2 * gather + 12),
        code_bytes=(170 if inside else 500) + 80 * bool(params.fixes) + product_bytes(core),
        in_place=(0,) if distance is not None and distance <= 0 else (),
        overlap=distance,
        includes=INCLUDES,
        reason=f"two columns of {length} int8",
        cores=(InnerFunction("mm", "product_s8_mve", "ops/product_s8_mve.c.j2", core),),
    )


def vector_call(name: str, weights: Int8, requant: Requant, suffix: str = "") -> KernelCall:
    """One vector by weights [O, K]."""
    length, fixes = weights.shape[1], dsp.corrections_of(requant)
    core = product_params(1, weights, requant, suffix)
    return KernelCall(
        name,
        "ops/dense_s8_mve.c.j2",
        MveDenseParams(length, fixes),
        (
            PackedConstant("weights", pack_weights(weights), "int8_t", 16),
            pack_requant(requant),
        ),
        scratch_bytes=LANES * steps_of(length) if length % LANES else 0,
        instructions=20 + product_cost(core),
        code_bytes=40 + 80 * bool(fixes) + product_bytes(core),
        includes=INCLUDES,
        reason="four channels at a time",
        cores=(InnerFunction("mv", "product_s8_mve", "ops/product_s8_mve.c.j2", core),),
    )
