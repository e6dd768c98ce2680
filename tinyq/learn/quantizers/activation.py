"""Fake quantization of activations: an affine grid, or a table over 8-bit integers.

Both compute what QuantizeLinear does, division by a float32 step and rounding half to even, so that
an exported network agrees with training to the integer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tinyq.errors import error
from tinyq.learn.estimators import Estimator, nearest_level, scale_gradient
from tinyq.learn.estimators.ste import RoundSTE
from tinyq.learn.levels import LevelSet, table_of
from tinyq.learn.observers import Observer
from tinyq.learn.quantizers.clip import ClipScaled, Rescale
from tinyq.learn.quantizers.state import is_frozen, other_levels


class ActQuantizer(nn.Module):
    """What affine and table quantizers share: the observer, and when it acts.

    ``signed`` chooses int8 instead of uint8. ``observing`` lets the range follow the data until
    ``freeze_step`` training steps are done; the count is a buffer, so that a resumed run stops
    where the first would have. ``enabled`` applies quantization; calibration observes without
    quantizing. ``learned`` makes the step a parameter from the first range on.
    """

    step: Tensor
    zero_point: Tensor
    strength: Tensor
    ready: Tensor
    steps: Tensor  # training steps in which the range could move
    table: Tensor  # levels, kept so that states of other widths are told apart
    freeze_step: int | None = None
    name = ""  # in the prepared network

    def __init__(self, estimator: Estimator, observer: Observer, *, signed: bool, learned: bool):
        super().__init__()
        self.estimator, self.observer = estimator, observer
        self.signed, self.learned = signed, learned
        if learned:
            self.step = nn.Parameter(torch.tensor(1.0))
        else:
            self.register_buffer("step", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0))
        self.register_buffer("strength", torch.tensor(0.0))
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("steps", torch.tensor(0))
        self.observing = True
        self.enabled = True
        self.recording = False
        self.recorded: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Fake quantized ``x``, same shape; while observing in training, the range moves first."""
        if self.training and self.observing and not self.frozen:
            if not (self.learned and bool(self.ready)):
                self.observer(x)
                self.refresh()
            self.steps.add_(1)
        if not self.enabled or not bool(self.ready):
            return x
        out = self.quantize(x)
        if self.recording:
            self.recorded = out
        return out

    @property
    def frozen(self) -> bool:
        """Whether the observed range has stopped."""
        return is_frozen(self.steps, self.freeze_step)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the step (and zero point) from what the observer saw. Raises TQ653 for NaN."""
        if not self.observer.finite:
            raise error(
                "TQ653",
                "the activation holds NaN or infinity",
                "tinyq.learn.diagnose(model, batch) names the layer that made it.",
                node=self.name,
            )
        low, high = self.observer.range()
        self.set_range(low, high)
        self.ready.fill_(True)

    @torch.no_grad()
    def set_threshold(self, threshold: float) -> None:
        """Cover zero (or minus ``threshold``, when signed) to ``threshold``."""
        high = torch.tensor(float(threshold), device=self.step.device)
        self.set_range(-high if self.signed else 0 * high, high)
        self.ready.fill_(True)

    def positive_step(self) -> Tensor:
        """Step as it is used: a learned one may try to pass zero."""
        return self.step.abs().clamp_min(1e-12) if self.learned else self.step

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load; TQ656 for other levels. States of earlier versions have no levels and steps."""
        if prefix + "step" in state:
            state.setdefault(prefix + "steps", torch.zeros_like(self.steps))
            found = state.setdefault(prefix + "table", self.table)
            if not torch.equal(found.cpu(), self.table.cpu()):
                raise other_levels(prefix, found, self.table)
        super()._load_from_state_dict(state, prefix, *args)

    def exported_step(self) -> Tensor:
        """Step of the integers that are exported."""
        return self.positive_step()

    def rounded_step(self) -> Tensor:
        """Step of the grid to which values are rounded."""
        return self.exported_step()

    @property
    def exported_zero(self) -> int:
        """Zero point in the exported uint8, where signed values lie 128 higher."""
        return int(self.zero_point) + (128 if self.signed else 0)

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Make the step cover [low, high]."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """Fake quantize ``x``."""
        raise NotImplementedError

    def integers(self) -> Tensor:
        """Integers that may be exported, zero point taken off, int64 [levels]."""
        raise NotImplementedError

    def boundaries(self) -> Tensor:
        """Values, in rounded steps, at which the exported integer changes, float64 [levels - 1]."""
        raise NotImplementedError


class AffineActQuantizer(ActQuantizer):
    """Integers from ``low`` to ``high``, a step and a zero point.

    ``symmetric`` keeps the zero point 0; a learned step is always symmetric, and an unsigned
    quantizer has zero point 0 since what it quantizes is never negative.
    """

    def __init__(
        self,
        bits: int,
        estimator: Estimator,
        observer: Observer,
        *,
        signed: bool,
        learned: bool = False,
        symmetric: bool = False,
    ):
        super().__init__(estimator, observer, signed=signed, learned=learned)
        self.bits, self.symmetric = bits, symmetric or learned
        self.low = -(2 ** (bits - 1)) if signed else 0
        self.high = self.low + 2**bits - 1
        self.register_buffer("table", torch.arange(self.low, self.high + 1.0))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [low, high]; a constant zero gets step 1/high, as any step represents it."""
        if not self.signed:
            step = high / self.high
        elif self.symmetric:
            step = torch.maximum(-low / -self.low, high / self.high)
        else:
            step = (high - low) / (self.high - self.low)
        step = torch.where(step > 0, step, torch.full_like(step, 1.0 / self.high))
        self.step.copy_(step)
        if self.signed and not self.symmetric:
            zero = (self.low - low / step).round().clamp(self.low, self.high)
            self.zero_point.copy_(zero.to(self.zero_point.dtype))

    def quantize(self, x: Tensor) -> Tensor:
        """(clip(round(x/s) + z) - z)·s; z is added after rounding, as in ONNX."""
        step = self.positive_step()
        if self.learned:
            step = scale_gradient(step, x.numel() // max(1, x.shape[0]), float(self.high))
        zero = int(self.zero_point)
        span = float(self.high - self.low)
        v = ClipScaled.apply(x, step, float(self.low - zero), float(self.high - zero))
        q = self.estimator(v, None, span=span, strength=self.strength)
        return Rescale.apply(q, step)

    @torch.no_grad()
    def integers(self) -> Tensor:
        """As the base class says."""
        zero = int(self.zero_point)
        return torch.arange(self.low - zero, self.high - zero + 1)

    def boundaries(self) -> Tensor:
        """As the base class says."""
        return self.integers()[:-1].double() + 0.5


class TableActQuantizer(ActQuantizer):
    """Non-uniform levels behind an 8-bit quantizer: integer, table of 256, integer times a step.

    The 8-bit step is the level step over ``fine``, the largest odd number that fits: odd, so that
    midpoints between levels an odd distance apart are rounding boundaries and nothing moves; where
    the distance is even, a value within half an 8-bit step of the midpoint may take the other
    level, which is equally near.

    What the table gives is the level times ``factor``, the largest that fits: biases of the layers
    that read it are whole in units of its step, and that unit becomes finer at no cost.
    """

    def __init__(
        self, level_set: LevelSet, estimator: Estimator, observer: Observer, *, learned: bool
    ):
        super().__init__(estimator, observer, signed=level_set.integers[0] < 0, learned=learned)
        self.level_set = level_set
        room = 127 if self.signed else 255
        if level_set.largest > room:
            raise error(
                "TQ652",
                f"the levels of an activation reach {level_set.largest}, which does not fit 8 bits",
                f"Give act_codebook whole numbers up to {room}, or fractions, which are scaled.",
            )
        self.factor = room // level_set.largest
        self.fine = self.factor if self.factor % 2 else max(1, self.factor - 1)
        self.register_buffer("table", table_of(level_set))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Put the largest level on the larger end."""
        top = torch.maximum(high, -low) if self.signed else high
        top = torch.where(top > 0, top, torch.ones_like(top))
        self.step.copy_(top / self.level_set.largest)

    def rounded_step(self) -> Tensor:
        """Step of the 8-bit integers that index the table, float32."""
        return self.positive_step() / self.fine

    def exported_step(self) -> Tensor:
        """Step of what :meth:`lookup` gives, float32."""
        return self.positive_step() / self.factor

    def quantize(self, x: Tensor) -> Tensor:
        """Nearest level of the 8-bit value, times the level step."""
        step = self.positive_step()
        if self.learned:
            step = scale_gradient(
                step, x.numel() // max(1, x.shape[0]), float(self.level_set.largest)
            )
        low, high = self.level_set.integers[0], self.level_set.integers[-1]
        bounds = float(low * self.fine), float(high * self.fine)
        fine = ClipScaled.apply(x, step / self.fine, *bounds)
        v = RoundSTE.apply(fine, None) / self.fine
        q = self.estimator(v, self.table, span=float(high - low), strength=self.strength)
        return Rescale.apply(q, step)

    @torch.no_grad()
    def lookup(self) -> Tensor:
        """Level times ``factor`` of each 8-bit integer, int64 [256]: from -128 or, unsigned, 0."""
        start = -128 if self.signed else 0
        index = torch.arange(start, start + 256, dtype=torch.float32)
        low, high = self.level_set.integers[0], self.level_set.integers[-1]
        v = index.clamp(low * self.fine, high * self.fine) / self.fine
        return nearest_level(v, self.table.cpu()).long() * self.factor

    def integers(self) -> Tensor:
        """As the base class says."""
        return self.lookup().unique()

    @torch.no_grad()
    def boundaries(self) -> Tensor:
        """As the base class says."""
        table = self.lookup()
        start = -128 if self.signed else 0
        return torch.nonzero(table[1:] != table[:-1]).flatten().double() + (start + 0.5)
