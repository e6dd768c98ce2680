"""Ranges of activations, from what passes by.

Smaller than torch.ao's, which are deprecated with their package: one module keeps the extremes,
their moving average and a sample of the values, and every rule reads what it needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SAMPLE = 4096  # values kept of each batch, evenly spaced
_KEEP = 1 << 18  # values kept in all; the oldest go


class Observer(nn.Module):
    """Sees tensors and tells the range [low, high] that a quantizer should cover.

    ``rule``: ``max`` extremes of all batches, ``ema`` moving average of the batches' extremes,
    ``percentile`` of the values at both ends, ``mse`` the fraction of the extremes with the least
    squared error at ``levels`` levels. The range always holds zero, which padding and ReLU need.
    """

    low: Tensor
    high: Tensor
    average_low: Tensor
    average_high: Tensor
    seen: Tensor

    def __init__(self, rule: str, levels: int, percentile: float = 99.99, ema: float = 0.05):
        super().__init__()
        self.rule, self.levels, self.percentile, self.ema = rule, levels, percentile, ema
        for name in ("low", "high", "average_low", "average_high"):
            self.register_buffer(name, torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))
        self._sample: list[Tensor] = []

    def reset(self) -> None:
        """Forget what was seen."""
        for value in (self.low, self.high, self.average_low, self.average_high, self.seen):
            value.zero_()
        self._sample.clear()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Note ``x`` and return it."""
        flat = x.detach().reshape(-1)
        low, high = torch.aminmax(flat)
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))
        weight = 1.0 if int(self.seen) == 0 else self.ema
        self.average_low.lerp_(low, weight)
        self.average_high.lerp_(high, weight)
        self.seen.add_(1)
        if self.rule in ("percentile", "mse", "learned"):
            self._sample.append(flat[:: max(1, flat.numel() // _SAMPLE)].cpu())
            while len(self._sample) > _KEEP // _SAMPLE:
                self._sample.pop(0)
        return x

    @property
    def finite(self) -> bool:
        """Whether every value seen was a finite number, whichever of them the rule reads."""
        return bool(torch.isfinite(self.low) & torch.isfinite(self.high))

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the range to cover, two scalars with low <= 0 <= high."""
        if self.rule == "ema":
            low, high = self.average_low, self.average_high
        elif self.rule == "percentile" and self._sample:
            low, high = self._percentile()
        elif self.rule in ("mse", "learned") and self._sample:
            low, high = self._least_squares()
        else:
            low, high = self.low, self.high
        return low.clamp_max(0.0), high.clamp_min(0.0)

    def _percentile(self) -> tuple[Tensor, Tensor]:
        data = torch.cat(self._sample).sort().values
        skip = int((1.0 - self.percentile / 100.0) * len(data))
        return data[skip].to(self.low), data[len(data) - 1 - skip].to(self.low)

    def _least_squares(self) -> tuple[Tensor, Tensor]:
        data = torch.cat(self._sample)
        low, high = float(self.low.clamp_max(0.0)), float(self.high.clamp_min(0.0))
        best, best_fraction = float("inf"), 1.0
        for fraction in torch.linspace(0.02, 1.0, 50).tolist():
            step = max((high - low) * fraction / (self.levels - 1), 1e-12)
            clipped = data.clamp(low * fraction, high * fraction)
            loss = float(((clipped / step).round() * step - data).square().mean())
            if loss < best:
                best, best_fraction = loss, fraction
        return self.low * best_fraction, self.high * best_fraction


class FixedRange(Observer):
    """A range that no data moves: [0, ``high``]."""

    def __init__(self, high: float):
        super().__init__("max", 2**8)
        self.most = high

    def range(self) -> tuple[Tensor, Tensor]:
        """As it was given."""
        return torch.zeros_like(self.low), torch.full_like(self.high, self.most)
