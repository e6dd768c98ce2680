"""Straight-through estimator (Bengio et al., 2013): the gradient of rounding is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyq.learn.estimators.base import nearest_level


class RoundSTE(torch.autograd.Function):
    """Nearest level forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, levels: Tensor | None) -> Tensor:
        """Round ``v`` to ``levels``."""
        return nearest_level(v, levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient as it is."""
        return grad, None


@dataclass(frozen=True)
class STE:
    """Identity inside the clip; the clip itself stops the gradient outside."""

    def __call__(
        self, v: Tensor, levels: Tensor | None, *, span: float, strength: Tensor
    ) -> Tensor:
        """Round; see :class:`Estimator`."""
        return RoundSTE.apply(v, levels)
