"""Differentiable soft quantization (Gong et al., ICCV 2019), hard forward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyq.learn.estimators.base import interval, nearest_level


class RoundDSQ(torch.autograd.Function):
    """Backward is the slope of a tanh that joins neighbouring levels."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, levels: Tensor | None, alpha: float) -> Tensor:
        """Round ``v`` to ``levels`` and keep where in its interval each value lies."""
        low, high = interval(v, levels)
        ctx.save_for_backward((v - low) / (high - low))
        ctx.alpha = alpha
        return nearest_level(v, levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """½·s·k·(1 - tanh²(k(f - ½))), k = ln(2/α - 1), s = 1/(1 - α), f the fraction of a step."""
        (fraction,) = ctx.saved_tensors
        k = math.log(2.0 / ctx.alpha - 1.0)
        s = 1.0 / (1.0 - ctx.alpha)
        slope = 0.5 * s * k * (1.0 - torch.tanh(k * (fraction - 0.5)).square())
        return grad * slope, None, None


@dataclass(frozen=True)
class DSQ:
    """``alpha`` in (0, 1): small is close to a step, large close to the identity."""

    alpha: float = 0.4

    def __call__(
        self, v: Tensor, levels: Tensor | None, *, span: float, strength: Tensor
    ) -> Tensor:
        """Round; see :class:`Estimator`."""
        return RoundDSQ.apply(v, levels, self.alpha)
