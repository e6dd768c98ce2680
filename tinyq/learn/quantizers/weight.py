"""Fake quantization of weights: integers of a level set, times a step per tensor or channel.

A BatchNorm that follows is never folded into the weight before it is quantized: its factor goes to
the step of its channel afterwards. For steps per channel the integers are the same either way; for
one step per tensor (APoT, codebooks) they stay levels of the set; and training needs no second
convolution to undo the folding while statistics still move.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tinyq.errors import error
from tinyq.learn import levels as level_sets
from tinyq.learn.estimators import Estimator, nearest_level, scale_gradient
from tinyq.learn.levels import LevelSet
from tinyq.learn.quantizers.clip import ClipScaled, Rescale
from tinyq.learn.quantizers.state import other_levels

FOUND_IN_WEIGHTS = ("kmeans", "quantile")  # sets whose levels come from the float weights
_CANDIDATES = 80  # steps tried by the least-error search, as BRECQ does


class WeightQuantizer(nn.Module):
    """Maps a weight [O, ...] to levels times a step.

    ``mode``: ``max`` the step follows the largest magnitude; ``mse`` it is set once, by least
    squared error; ``learned`` it starts so and is trained with LSQ's gradient; ``pot`` a power of
    two by INQ's rule. ``normalize`` is APoT's: minus mean, over deviation, not put back.

    A state dict holds the levels (``table``), whether a step that ``mode`` would compute was set
    instead (``fixed``), and, once :meth:`choose` was called, the levels ``chosen`` for each weight.
    """

    step: Tensor
    strength: Tensor
    table: Tensor
    fixed: Tensor
    chosen: Tensor | None

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
        self.register_buffer("table", level_sets.table_of(level_set))
        self.register_buffer("strength", torch.tensor(0.0))
        self.register_buffer("fixed", torch.tensor(False))
        self.register_buffer("chosen", None)
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
        self.fixed.fill_(True)
        self.step.fill_(threshold / self.largest)

    @torch.no_grad()
    def set_step(self, step: Tensor) -> None:
        """Take ``step``, shaped as :meth:`current_step`'s; it is constant or trained from here."""
        self.fixed.fill_(True)
        self.step.copy_(step)

    @torch.no_grad()
    def choose(self, levels: Tensor) -> None:
        """Take ``levels`` [O, ...] for the weight from here on, whatever its values become."""
        self.chosen = levels.clone()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load, with levels found in other weights and chosen rounding. Raises TQ656."""
        if prefix + "a" in state and prefix + "below" in state:
            raise error(
                "TQ656",
                "the state was written between the steps of adaround, or by an earlier version",
                "Load the state from before adaround and call adaround again.",
                node=prefix.removesuffix("."),
            )
        if prefix + "step" in state:
            self._load_levels(state, prefix)
            chosen = state.get(prefix + "chosen")
            self.chosen = None if chosen is None else chosen.to(self.step.device, copy=True)
        super()._load_from_state_dict(state, prefix, *args)

    def _load_levels(self, state: dict[str, Any], prefix: str) -> None:
        """Adopt the state's levels where weights gave them; elsewhere they must be the same."""
        state.setdefault(prefix + "fixed", torch.zeros_like(self.fixed))  # of earlier versions
        found = state.setdefault(prefix + "table", self.table)
        if self.level_set.name not in FOUND_IN_WEIGHTS:
            if not torch.equal(found.cpu(), self.table.cpu()):
                raise other_levels(prefix, found, self.table)
        elif found is self.table:
            raise error(
                "TQ656",
                f"the state, an earlier one, lacks the levels of {self.level_set.name}",
                "Prepare the float weights that this run began with, whose levels are the same, "
                "and load {**prepared.state_dict(), **state}.",
                node=prefix.removesuffix("."),
            )
        else:
            self.table = found.to(self.table.device, copy=True)
            integers = tuple(int(v) for v in found.tolist())
            self.level_set = LevelSet(self.level_set.name, integers)

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
        if self.chosen is not None:
            return Rescale.apply(self.chosen, step)
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
        q = self.chosen
        if q is None:
            q = nearest_level((x / step).clamp(*self.bounds()), self.levels())
        return q.clone(), step.reshape(-1).expand(weight.shape[0]).clone()

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest level."""
        return float(self.level_set.integers[0]), float(self.level_set.integers[-1])

    def levels(self) -> Tensor | None:
        """Sorted levels, or None when every integer is one."""
        return None if self.level_set.uniform else self.table

    def current_step(self, x: Tensor) -> Tensor:
        """Step that broadcasts against ``x``, positive."""
        if self.mode == "max" and not self.fixed:
            return self._max_step(x.detach())
        if self.mode == "pot" and not self.fixed:
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
