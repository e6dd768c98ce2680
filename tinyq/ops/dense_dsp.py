"""Dense layers for cores with the DSP extension."""

from __future__ import annotations

from tinyq.ir import Node
from tinyq.ops import dsp, linear
from tinyq.ops.base import Kernel, KernelCall, Refusal
from tinyq.ops.dense import dense_params
from tinyq.ops.dsp import Effort
from tinyq.ops.dsp_params import ColumnsParams
from tinyq.ops.dsp_products import columns_call, vector_call
from tinyq.target import Core


class DenseS8Dsp(Kernel):
    """Four outputs at a time from one row; several rows are a 1x1 convolution."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.name = f"dense_s8_dsp{effort.suffix}"  # type: ignore[misc]

    def plan(self, node: Node, core: Core) -> KernelCall | Refusal:
        """Refuses sizes beyond the reach of the instructions."""
        requant, p = linear.requant_of(node), dense_params(node)
        refusal = dsp.refuses(core)
        if refusal:
            return refusal
        weights = dsp.weights_of(node)
        if p.rows == 1:
            return vector_call(self.name, weights, requant, self.effort)
        rows = ColumnsParams(h=1, w=p.rows, c=p.in_features, oh=1, ow=p.rows, o=p.out_features)
        return columns_call(self.name, rows, weights, requant, self.effort, paired=core.pairs)
