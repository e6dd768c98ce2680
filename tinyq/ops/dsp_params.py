"""Parameters of the kernels for the DSP extension, as their templates name them.

Sizes are elements, activations int8 [H, W, C]. What a template requires of them is stated on its
top; the constants of each kernel are the packed weights and ``tinyq_requant_t`` [O].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinyq.ops.base import NamedParams
from tinyq.ops.guards import GuardParams, guard_params
from tinyq.ops.params import Conv2dParams
from tinyq.quant import Requant, Ties


@dataclass(frozen=True)
class Correction:
    """An output ``before`` of ``channel`` whose accumulator is ``acc`` becomes ``after``."""

    channel: int
    acc: int
    before: int
    after: int


Corrections = tuple[Correction, ...]


@dataclass(frozen=True, kw_only=True)
class EpilogueParams(NamedParams):
    """What ends every sum (``ops/dsp_epilogue.j2``), as in tinyq.ops.params.RequantParams."""

    pre_shift: int
    post_shift: int
    qmin: int
    qmax: int
    ties: Ties = "up"
    guard: GuardParams | None = None

    @classmethod
    def of(cls, requant: Requant) -> dict[str, Any]:
        """The fields of this class."""
        return {
            "pre_shift": requant.pre_shift, "post_shift": requant.post_shift,
            "qmin": requant.qmin, "qmax": requant.qmax,
            "ties": requant.ties, "guard": guard_params(requant),
        }  # fmt: skip


@dataclass(frozen=True)
class ProductParams(EpilogueParams):
    """``ops/matmul_s8_dsp.c.j2``: three columns of ``k4`` by ``o`` channels; rows of y lie
    ``y_stride`` bytes apart. ``unroll`` steps of four are one turn of the loop.
    ``paired``: loads stand beside multiplications, for a core that issues two instructions a cycle.
    """

    k4: int
    o: int
    paired: bool
    y_stride: int
    mode: str
    unroll: int


@dataclass(frozen=True)
class VectorParams(EpilogueParams):
    """``ops/matvec_s8_dsp.c.j2``: one column of ``k4`` by ``o`` channels; ``direct``: int8."""

    k4: int
    o: int
    mode: str
    unroll: int
    direct: bool


@dataclass(frozen=True)
class ColumnsParams(NamedParams):
    """``ops/conv_s8_dsp.c.j2`` (variable ``mm``: the product).

    ``blocks`` above 1: a call computes one block of o / blocks channels, see packed_s8.c.j2.
    """

    h: int
    w: int
    c: int
    oh: int
    ow: int
    o: int
    kh: int = 1
    kw: int = 1
    sh: int = 1
    sw: int = 1
    dh: int = 1
    dw: int = 1
    pt: int = 0
    pl: int = 0
    in_zp: int = 0
    groups: int = 1
    group_bytes: int = 0
    fixes: Corrections = ()
    blocks: int = 1


@dataclass(frozen=True)
class VectorDenseParams(NamedParams):
    """``ops/dense_s8_dsp.c.j2`` (variable ``mv``: the product); ``direct``: without scratch.

    ``block`` above 0: a call computes so many channels, see packed_s8.c.j2.
    """

    k: int
    direct: bool
    fixes: Corrections
    block: int = 0


@dataclass(frozen=True)
class WideColumnsParams:
    """``ops/conv_s16_dsp.c.j2``: columns of ``k4`` taps; ``direct``: they lie in x as they are.

    ``unroll`` steps of four taps are one turn of the loop.
    """

    geometry: Conv2dParams
    k4: int
    direct: bool
    unroll: int


@dataclass(frozen=True)
class Plane3x3Params(EpilogueParams):
    """``ops/plane3x3_s8_dsp.c.j2``: one channel; ``unroll`` pairs of outputs are one turn.
    ``paired`` as in :class:`ProductParams`.
    """

    oh: int
    ow: int
    paired: bool
    o: int
    unroll: int


@dataclass(frozen=True)
class PlaneParams(EpilogueParams):
    """``ops/plane_s8_dsp.c.j2``: one channel; ``pw`` halfwords are a row of the plane."""

    oh: int
    ow: int
    o: int
    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    pw: int


@dataclass(frozen=True)
class DepthwiseParams(EpilogueParams):
    """``ops/depthwise_s8_dsp.c.j2`` (variable ``core``: one channel, except for ``planar``)."""

    variant: str
    h: int
    w: int
    c: int
    oh: int
    ow: int
    multiplier: int
    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    pt: int
    pl: int
    in_zp: int
    fixes: Corrections


@dataclass(frozen=True)
class Stride2Params(EpilogueParams):
    """``ops/depthwise3x3s2_s8_dsp.c.j2``; ``unroll`` outputs are one turn."""

    h: int
    w: int
    c: int
    oh: int
    ow: int
    pt: int
    pl: int
    in_zp: int
    unroll: int
    fixes: Corrections
    in_place: bool
