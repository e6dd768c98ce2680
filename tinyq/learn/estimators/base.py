"""What every estimator shares: finding the nearest level and the levels around a value."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Estimator(Protocol):
    """Rounds ``v`` to the nearest of ``levels`` with a gradient of its own.

    ``v`` is in units of the integer levels and already clipped to their range. ``levels`` is None
    when every integer is a level (rounding half to even, as QuantizeLinear does), else sorted [L].
    ``strength`` is the λ of EWGS, a scalar tensor; ``span`` is the distance from the lowest to the
    highest level.
    """

    def __call__(
        self, v: Tensor, levels: Tensor | None, *, span: float, strength: Tensor
    ) -> Tensor:
        """Round ``v``."""
        ...


# From this many values on, a search of each costs more than a table of all half units.
_MANY = 1 << 14


def nearest_level(v: Tensor, levels: Tensor | None) -> Tensor:
    """Nearest level of each value, NaN of NaN; the lower one on a tie of two in a table.

    Levels are integers, so that halfway points are multiples of one half, and the nearest level is
    the same for all values that are rounded up to the same multiple.
    """
    if levels is None:
        return torch.round(v)
    bounds = (levels[1:] + levels[:-1]) / 2
    reach = float(levels[-1] - levels[0])
    if not math.isfinite(reach):  # trained levels that have diverged
        return torch.full_like(v, math.nan)
    span = int(reach)
    if v.numel() < _MANY or span > _MANY // 4:
        return levels[torch.bucketize(v.contiguous(), bounds)] + (v - v)
    halves = torch.arange(2 * span + 1, device=v.device, dtype=levels.dtype) / 2 + levels[0]
    table = levels[torch.bucketize(halves, bounds)]
    index = ((v - levels[0]) * 2).ceil().clamp(0, 2 * span)
    return table[index.nan_to_num(0.0).int()] + (v - v)


def interval(v: Tensor, levels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the levels just below and above each value, always two different ones."""
    if levels is None:
        low = torch.floor(v)
        return low, low + 1
    index = torch.bucketize(v.contiguous(), levels, right=True).clamp(1, len(levels) - 1)
    return levels[index - 1], levels[index]
