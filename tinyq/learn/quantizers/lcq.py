"""Learnable companding (Yamamoto, CVPR 2021): train the spacing of the levels.

A monotone piecewise linear function on [0, 1] compresses the magnitude, uniform rounding follows,
and its inverse expands. The expanded levels are rounded to int8 integers inside the forward, so
that what is trained is what is exported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinyq.learn.estimators import Estimator, nearest_level
from tinyq.learn.levels import CODEBOOK_MAX, LevelSet
from tinyq.learn.quantizers.weight import WeightQuantizer

SEGMENTS = 16


class LCQQuantizer(WeightQuantizer):
    """Levels spaced by a trained companding of ``SEGMENTS`` segments whose rises are a softmax."""

    def __init__(self, bits: int, estimator: Estimator, *, per_channel: bool = True):
        count = 2 ** (bits - 1) - 1
        start = tuple(round(CODEBOOK_MAX * j / count) for j in range(-count, count + 1))
        super().__init__(LevelSet("lcq", start), estimator, mode="learned", per_channel=per_channel)
        self.count = count
        self.rise = nn.Parameter(torch.zeros(SEGMENTS))

    @property
    def largest(self) -> float:
        """Largest level: int8's."""
        return float(CODEBOOK_MAX)

    def _knots(self) -> tuple[Tensor, Tensor]:
        """Ends of the segments: magnitudes [S+1], even, and their compressed values [S+1]."""
        compressed = torch.cat([self.rise.new_zeros(1), self.rise.softmax(0).cumsum(0)])
        even = torch.linspace(0.0, 1.0, SEGMENTS + 1, device=self.rise.device)
        return even, compressed / compressed[-1]

    def magnitudes(self) -> Tensor:
        """Expanded levels 0..1, rounded to multiples of 1/127, straight through, [count + 1]."""
        even, compressed = self._knots()
        grid = torch.arange(self.count + 1, device=even.device, dtype=even.dtype) / self.count
        expanded = _interpolate(grid, compressed, even) * CODEBOOK_MAX
        return expanded + (expanded.round() - expanded).detach()

    def levels(self) -> Tensor:
        """Signed integer levels now, sorted [2·count + 1]."""
        positive = self.magnitudes().detach().round()
        return torch.cat([-positive.flip(0)[:-1], positive])

    def forward(self, weight: Tensor) -> Tensor:
        """Fake quantized weight; gradients reach the companding through the chosen levels."""
        out = super().forward(weight)
        if self.chosen is not None:
            return out
        positive = self.magnitudes()
        step = self.current_step(weight)
        v = (weight / step).detach().abs().clamp(max=self.largest)
        bounds = ((positive[1:] + positive[:-1]) / 2).detach()
        chosen = positive[torch.bucketize(v.contiguous(), bounds)]
        moved = (chosen - chosen.detach()) * weight.detach().sign() * step.detach()
        return out + moved  # adds exact zeros, and the levels' own gradient

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Levels and steps, as forward rounds them."""
        if self.chosen is not None:
            return super().integers(weight)
        step = self.current_step(weight)
        q = nearest_level((weight / step).clamp(*self.bounds()), self.levels())
        return q, step.reshape(-1).expand(weight.shape[0]).clone()


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear function through (xs, ys), xs increasing; differentiable in both."""
    index = torch.searchsorted(xs.detach(), x.contiguous(), right=True).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[index - 1], xs[index], ys[index - 1], ys[index]
    return y0 + (x - x0) / (x1 - x0).clamp_min(1e-12) * (y1 - y0)
