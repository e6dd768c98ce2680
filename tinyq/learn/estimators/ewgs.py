"""Element-wise gradient scaling (Lee et al., CVPR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyq.learn.estimators.base import nearest_level


class RoundEWGS(torch.autograd.Function):
    """g_x = g_q * (1 + λ * sign(g_q) * (x - q)), with x and q over the span, so in [0, 1]."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, levels: Tensor | None, span: float, strength: Tensor
    ) -> Tensor:
        """Round ``v`` to ``levels`` and keep the rounding error."""
        q = nearest_level(v, levels)
        ctx.save_for_backward((v - q) / span, strength)
        return q

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale each element by how far it lies from its level, and on which side."""
        error, strength = ctx.saved_tensors
        return grad * (1 + strength * grad.sign() * error), None, None, None


def ewgs_limit(error: Tensor) -> Tensor:
    """Largest λ that keeps every gradient's sign: 1 over the largest rounding error (in [0, 1])."""
    return 1.0 / error.abs().max().clamp_min(1e-12)


@dataclass(frozen=True)
class EWGS:
    """λ comes from the curvature (:mod:`tinyq.learn.curvature`), or is ``fixed``."""

    fixed: float | None = None

    def __call__(
        self, v: Tensor, levels: Tensor | None, *, span: float, strength: Tensor
    ) -> Tensor:
        """Round; see :class:`Estimator`."""
        used = strength if self.fixed is None else torch.full_like(strength, self.fixed)
        return RoundEWGS.apply(v, levels, span, used)
