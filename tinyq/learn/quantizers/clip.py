"""Division by the step and clipping, as one function with a backward of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ClipScaled(torch.autograd.Function):
    """clip(x / step, low, high); gradients stop outside.

    What autograd makes of the three operators costs four times as much as the forward: it splits
    ties of minimum and maximum between their arguments, and sums a gradient of the shape of ``x``
    for each bound. Here the sum over the step is a product of two vectors.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
        """Divide and clip ``x`` [O, ...]; ``step`` is a scalar or broadcasts against it."""
        scaled = x / step
        v = scaled.clamp(low, high)
        ctx.save_for_backward(v, step, scaled == v)
        return v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Inside: 1/step for ``x``, -v/step for ``step``; outside: nothing."""
        v, step, inside = ctx.saved_tensors
        passed = torch.where(inside, grad / step, 0.0)
        of_step = None
        if ctx.needs_input_grad[1]:
            if step.numel() == 1:
                of_step = -_dot(passed, v).reshape(step.shape)
            else:
                of_step = -(passed * v).sum_to_size(step.shape)
        return passed, of_step, None, None


class Rescale(torch.autograd.Function):
    """q * step, the gradient of a single step being a product of two vectors."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, step: Tensor) -> Tensor:
        """Multiply levels ``q`` by ``step``."""
        ctx.save_for_backward(q, step)
        return q * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """step for ``q``, q for ``step``."""
        q, step = ctx.saved_tensors
        of_step = None
        if ctx.needs_input_grad[1]:
            if step.numel() == 1:
                of_step = _dot(grad, q).reshape(step.shape)
            else:
                of_step = (grad * q).sum_to_size(step.shape)
        return grad * step, of_step


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, in the order of memory where both lie channels last."""
    layout = torch.channels_last
    if a.dim() == 4 and all(x.is_contiguous(memory_format=layout) for x in (a, b)):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return a.reshape(-1) @ b.reshape(-1)
