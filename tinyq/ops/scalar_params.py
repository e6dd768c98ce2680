"""Parameters of the blocked kernels for cores without SIMD: what ``p`` is in their templates."""

from __future__ import annotations

from dataclasses import dataclass

from tinyq.ops.params import Conv2dParams, RequantParams


@dataclass(frozen=True)
class ProductParams:
    """``ops/product_s8.c.j2``: columns of ``k`` by ``o`` channels; ``grouped``: of one group."""

    k: int
    o: int
    weight_type: str
    grouped: bool
    requant: RequantParams


@dataclass(frozen=True)
class ColumnsParams:
    """``ops/columns_s8.c.j2`` (variable ``product``: the product of two columns).

    ``blocks`` above 1: a call computes one block of the channels, see packed_s8.c.j2. ``indexed``:
    the product finds the weights of a group by its first channel.
    """

    shape: Conv2dParams
    blocks: int = 1
    indexed: bool = False


@dataclass(frozen=True)
class PlanesParams:
    """``ops/depthwise_s8.c.j2``; ``element`` is the C type of a plane's elements."""

    shape: Conv2dParams
    element: str
