"""Convolutions and dense layers for cores with Helium."""

from __future__ import annotations

from tinyq.ir import Node
from tinyq.ops import linear, mve
from tinyq.ops.base import Kernel, KernelCall, Refusal
from tinyq.ops.conv2d import conv2d_params
from tinyq.ops.conv2d_dsp import geometry_of, takes_input_whole
from tinyq.ops.dense import dense_params
from tinyq.ops.dsp_params import ColumnsParams
from tinyq.target import Core


class Conv2dS8Mve(Kernel):
    """Two patches by two channels at a time, sixteen products an instruction."""

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix
        self.name = f"conv2d_s8_mve{suffix}"  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses groups and weights of 16 bits."""
        requant, p = linear.requant_of(node), conv2d_params(node)
        refusal = mve.refuses(core, node)
        if refusal:
            return refusal
        if p.groups != 1:
            return "groups"
        weights = mve.weights_of(node).reshape(p.out_c, -1)
        if takes_input_whole(p):
            return mve.vector_call(self.name, weights, requant, self.suffix)
        return mve.columns_call(self.name, geometry_of(p), weights, requant, self.suffix)


class DenseS8Mve(Kernel):
    """Four outputs at a time from one row; several rows are a 1x1 convolution."""

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix
        self.name = f"dense_s8_mve{suffix}"  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses weights of 16 bits."""
        requant, p = linear.requant_of(node), dense_params(node)
        refusal = mve.refuses(core, node)
        if refusal:
            return refusal
        weights = mve.weights_of(node)
        if p.rows == 1:
            return mve.vector_call(self.name, weights, requant, self.suffix)
        rows = ColumnsParams(h=1, w=p.rows, c=p.in_features, oh=1, ow=p.rows, o=p.out_features)
        return mve.columns_call(self.name, rows, weights, requant, self.suffix)
