"""Distance-aware quantizer (Kim et al., ICCV 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyq.learn.estimators.base import interval, nearest_level


class RoundDAQ(torch.autograd.Function):
    """Soft argmax over two levels whose temperature adapts so that the forward is rounding."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, levels: Tensor | None, gamma: float, sigma: float) -> Tensor:
        """Round ``v`` to ``levels``, keeping the distance to the nearer of its two levels."""
        low, high = interval(v, levels)
        fraction = (v - low) / (high - low)
        ctx.save_for_backward(torch.minimum(fraction, 1 - fraction).clamp_min(0.0))
        ctx.gamma, ctx.sigma = gamma, sigma
        return nearest_level(v, levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """γ/(2 sinh γ)·(s0 + s1)/|s0 - s1| with s_i = k_i·exp(-distance to level i)."""
        (near,) = ctx.saved_tensors
        nearest, other = daq_scores(near, ctx.sigma)
        # s0 - s1 shrinks to (1 - k1)·e^-½ at one half: bounded below, whatever σ is.
        gap = (nearest - other).abs().clamp_min(1e-3)
        slope = ctx.gamma / (2.0 * math.sinh(ctx.gamma)) * (nearest + other) / gap
        return grad * slope, None, None, None


def daq_scores(near: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Scores of the nearest and of the other level, ``near`` (in steps, 0 to ½) from the first."""
    return torch.exp(-near), math.exp(-1.0 / sigma**2) * torch.exp(near - 1.0)


@dataclass(frozen=True)
class DAQ:
    """``gamma`` is the gap of the scores after the temperature, ``sigma`` the kernel's width."""

    gamma: float = 2.0
    sigma: float = 2.0

    def __call__(
        self, v: Tensor, levels: Tensor | None, *, span: float, strength: Tensor
    ) -> Tensor:
        """Round; see :class:`Estimator`."""
        return RoundDAQ.apply(v, levels, self.gamma, self.sigma)
