"""Fake quantization of weights: integers of a level set, times a step per tensor or channel.

A BatchNorm that follows is never folded into the weight before it is quantized: its factor goes to
the step of its channel afterwards. For steps per channel the integers are the same either way; for
one step per tensor (APoT, codebooks) they stay levels of the set; and training needs no second
convolution to undo the folding while statistics still move.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinyq.learn import levels as level_sets
from tinyq.learn.estimators import Estimator, nearest_level, scale_gradient
from tinyq.learn.levels import LevelSet
from tinyq.learn.quantizers.clip import ClipScaled, Rescale

_CANDIDATES = 80  # steps tried by the least-error search, as BRECQ does


class WeightQuantizer(nn.Module):
    """Maps a weight [O, ...] to levels times a step.

    ``mode``: ``max`` the step follows the largest magnitude; ``mse`` it is set once, by least
    squared error; ``learned`` it starts so and is trained with LSQ's gradient; ``pot`` a power of
    two by INQ's rule. ``normalize`` is APoT's: minus mean, over deviation, not put back.
    """

    step: Tensor
    strength: Tensor
    table: Tensor | None

    def __init__(
        self,
        level_set: LevelSet,
        estimator: Estimator,
        *,
        mode: str = "max",
        per_channel: bool = True,
        normalize: bool = False,
        clip_gradient: bool = True,
    ):
        super().__init__()
        self.level_set, self.estimator, self.mode = level_set, estimator, mode
        self.per_channel, self.normalize, self.clip_gradient = per_channel, normalize, clip_gradient
        table = None if level_set.uniform else level_sets.table_of(level_set)
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("strength", torch.tensor(0.0))
        self.recorded: Tensor | None = None
        self.recording = False

    @property
    def largest(self) -> float:
        """Largest level's magnitude."""
        return float(self.level_set.largest)

    def initialize(self, weight: Tensor, threshold: float | None = None) -> None:
        """Make the step for ``weight`` [O, ...]; ``threshold``, if known, is the largest level."""
        x = self.prepared(weight.detach())
        if threshold is not None:
            step = torch.full(self._step_shape(x), threshold / self.largest)
        elif self.mode == "max":
            step = self._max_step(x)
        elif self.mode == "pot":
            step = self._pot_step(x)
        else:
            step = self._least_error_step(x)
        step = step.to(weight)
        if self.mode == "learned":
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)

    @torch.no_grad()
    def set_threshold(self, threshold: float) -> None:
        """Put the largest level at ``threshold``; the step is constant or trained from here on."""
        self.mode = "mse" if self.mode in ("max", "pot") else self.mode
        self.step.fill_(threshold / self.largest)

    @torch.no_grad()
    def set_step(self, step: Tensor) -> None:
        """Take ``step``, shaped as :meth:`current_step`'s; it is constant or trained from here."""
        self.mode = "mse" if self.mode in ("max", "pot") else self.mode
        self.step.copy_(step)

    def prepared(self, weight: Tensor) -> Tensor:
        """Weight as it is quantized; the normalisation's statistics get no gradient."""
        if not self.normalize:
            return weight
        mean, std = weight.detach().mean(), weight.detach().std()
        return (weight - mean) / std

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake quantized weight, same shape and dtype."""
        x = self.prepared(weight)
        step = self.current_step(x)
        if isinstance(self.step, nn.Parameter):
            step = scale_gradient(step, x.numel() // step.numel(), self.largest)
        low, high = self.bounds()
        v = ClipScaled.apply(x, step, low, high)
        q = self.estimator(v, self.levels(), span=high - low, strength=self.strength)
        out = Rescale.apply(q, step)
        if not self.clip_gradient:
            outside = ((x / step).detach().abs() > high).to(x.dtype)
            out = out + (x - x.detach()) * outside  # adds exact zeros, and the clipped gradient
        if self.recording:
            self.recorded = out
        return out

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Levels [O, ...] and positive steps [O] whose product forward returns exactly."""
        x = self.prepared(weight)
        step = self.current_step(x)
        q = nearest_level((x / step).clamp(*self.bounds()), self.levels())
        return q, step.reshape(-1).expand(weight.shape[0]).clone()

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest level."""
        return float(self.level_set.integers[0]), float(self.level_set.integers[-1])

    def levels(self) -> Tensor | None:
        """Sorted levels, or None when every integer is one."""
        return self.table

    def current_step(self, x: Tensor) -> Tensor:
        """Step that broadcasts against ``x``, positive."""
        if self.mode == "max":
            return self._max_step(x.detach())
        if self.mode == "pot":
            return self._pot_step(x.detach())
        return self.step.abs().clamp_min(1e-12) if self.mode == "learned" else self.step

    def _step_shape(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[0] if self.per_channel else 1,) + (1,) * (x.dim() - 1)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1) if self.per_channel else x.reshape(1, -1)

    def _max_step(self, x: Tensor) -> Tensor:
        peak = self._flat(x).abs().amax(dim=1)
        peak = torch.where(peak > 0, peak, torch.ones_like(peak))  # a dead channel: any step does
        return (peak / self.largest).reshape(self._step_shape(x))

    def _pot_step(self, x: Tensor) -> Tensor:
        peaks = self._flat(x).abs().amax(dim=1)
        tops = [2.0 ** level_sets.inq_exponent(float(p)) / self.largest for p in peaks]
        return torch.tensor(tops, dtype=x.dtype, device=x.device).reshape(self._step_shape(x))

    def _least_error_step(self, x: Tensor) -> Tensor:
        flat = self._flat(x)
        full = self._max_step(x).reshape(-1, 1)
        low, high = self.bounds()
        table = self.levels()
        best, chosen = torch.full_like(full, float("inf")), full.clone()
        for k in range(1, _CANDIDATES + 1):
            step = full * (k / _CANDIDATES) * (1.0 if self.largest > 1 else 1.5)
            q = nearest_level((flat / step).clamp(low, high), table)
            loss = (q * step - flat).square().mean(dim=1, keepdim=True)
            chosen = torch.where(loss < best, step, chosen)
            best = torch.minimum(best, loss)
        return chosen.reshape(self._step_shape(x))
