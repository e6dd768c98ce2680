"""Learned step size (Esser et al., ICLR 2020).

The gradient of the step needs no formula of its own: with y = s·q(clip(x/s)) and a
straight-through q, differentiating gives q - x/s inside the clip and the bound outside, which is
LSQ's. What LSQ adds is how that gradient is scaled and how the step starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyq.learn.estimators.ste import RoundSTE


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant; the value stays exact to the bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """Return ``x``."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Multiply the gradient."""
        return grad * ctx.factor, None


def scale_gradient(step: Tensor, elements: int, highest: float) -> Tensor:
    """LSQ's balance: the step's gradient times 1/sqrt(N·Qp), N the number of elements."""
    return ScaleGradient.apply(step, 1.0 / math.sqrt(elements * highest))


def initial_step(x: Tensor, highest: float) -> Tensor:
    """LSQ's start: 2·mean|x|/sqrt(Qp), a scalar."""
    return (2.0 * x.detach().abs().mean() / math.sqrt(highest)).clamp_min(1e-8)


@dataclass(frozen=True)
class LSQ:
    """Straight-through rounding; a quantizer that uses it learns its step."""

    def __call__(
        self, v: Tensor, levels: Tensor | None, *, span: float, strength: Tensor
    ) -> Tensor:
        """Round; see :class:`Estimator`."""
        return RoundSTE.apply(v, levels)
