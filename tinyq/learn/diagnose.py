"""What goes wrong while training with few bits, said in words with the layer and the cure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyq.learn.calibrate import float_activations
from tinyq.learn.curvature import dead_filters, ewgs_quantizers, largest_strength
from tinyq.learn.prepare import act_quantizers, quant_layers
from tinyq.learn.quantizers import ActQuantizer, AffineActQuantizer

# A level changed in more than this share of recent steps: the weight swings around a boundary.
_OSCILLATION = 0.1
_MOMENTUM = 0.02
# Swinging matters where it is more than this share of the weights' energy: at 8 bits a level is a
# 127th of the largest weight, and all of them may swing without that anything is seen of it.
_ENERGY = 0.01
_RECENT = 20  # steps whose mean loss is compared with the first one's


@dataclass(frozen=True)
class Finding:
    """One thing found: ``kind``, the layer's or quantizer's name, and a sentence with the cure."""

    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def diagnose(
    model: nn.Module, sample: Tensor | None = None, monitor: Monitor | None = None
) -> list[Finding]:
    """Look for dead filters, exploding λ, NaN, and, given them, clipping, divergence, oscillation.

    ``sample`` is a batch of inputs for what only data shows: NaN in it or made of it by a layer,
    and clipping. ``monitor`` is one that saw training.
    """
    found = _not_finite(model) + _dead(model) + _exploding(model)
    if sample is not None:
        found += _sample_not_finite(model, sample) + _clipping(model, sample)
    if monitor is not None:
        found += monitor.findings()
    return found


def _not_finite(model: nn.Module) -> list[Finding]:
    return [
        Finding(
            "nan",
            name,
            "holds NaN or infinity: training has diverged; go back to the last checkpoint, lower "
            "the learning rate, and clip gradients at 1.0",
        )
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def _sample_not_finite(model: nn.Module, sample: Tensor) -> list[Finding]:
    bad = int((~torch.isfinite(sample)).sum())
    if bad:
        text = f"holds NaN or infinity in {bad} of {sample.numel()} values: check the data"
        return [Finding("nan", "the sample", text)]
    name = first_not_finite(model, sample)
    if name is None:
        return []
    text = "is the first to make NaN or infinity of the sample, which is finite"
    return [Finding("nan", name, text)]


@torch.no_grad()
def _run_watched(
    model: nn.Module, x: Tensor, handles: Iterable[torch.utils.hooks.RemovableHandle]
) -> None:
    """Run ``model`` on ``x`` in eval mode for its hooks, and take these off."""
    was_training = model.training
    model.eval()
    try:
        model(x)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()


@torch.no_grad()
def first_not_finite(model: nn.Module, x: Tensor) -> str | None:
    """Name of the first module, in eval mode, whose output for ``x`` holds NaN or infinity."""
    found: list[str] = []

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: object, out: object) -> None:
            if isinstance(out, Tensor) and not bool(torch.isfinite(out).all()):
                found.append(name)

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name, _ in model.named_modules() if name]
    _run_watched(model, x, handles)
    return found[0].removesuffix(".weight_quantizer") if found else None


def explain(model: nn.Module, x: Tensor, y: object, out: Tensor | None) -> str:
    """Say why a step's loss is not finite, and what to do.

    ``x`` (finite) and ``y`` are the batch, ``out`` the network's output, None when it gave none.
    """
    if isinstance(y, Tensor) and not bool(torch.isfinite(y).all()):
        bad = int((~torch.isfinite(y)).sum())
        return (
            f"the batch's targets hold NaN or infinity in {bad} of {y.numel()} values; check the "
            "data, or let the loss function leave them out"
        )
    cure = "go back to the last checkpoint, lower the learning rate, and clip gradients at 1.0"
    names = [f.name for f in _not_finite(model)]
    inserted = tuple(f"{n}." for n in act_quantizers(model))  # these see what the others made
    broken = [n for n in names if not n.startswith(inserted)]
    if broken:
        others = f" and {len(broken) - 1} other tensors hold" if len(broken) > 1 else " holds"
        return f"{broken[0]}{others} NaN or infinity, so training has diverged; {cure}"
    # Ranges that follow the data do not clip what overflows: look without them, too.
    name = first_not_finite(model, x)
    if name is None:
        with float_activations(model):
            name = first_not_finite(model, x)
    if name is not None:
        return f"the weights are finite, '{name}' is the first layer to overflow; {cure}"
    if out is None or not bool(torch.isfinite(out).all()):
        return f"values overflow in training mode only, where BatchNorm sees one batch; {cure}"
    return "the network's output is finite; look at the loss function and at its targets"


def _dead(model: nn.Module) -> list[Finding]:
    return [
        Finding(
            "dead",
            name,
            f"{len(channels)} filters are quantized to zero altogether (channels "
            f"{', '.join(map(str, channels[:8]))}{', …' if len(channels) > 8 else ''}); behind "
            "BatchNorm their gradient grows by 1/sqrt(eps): come down the bit ladder (4, 3, 2) "
            "from a trained network, or start with a smaller threshold, and clip gradients",
        )
        for name, channels in dead_filters(model).items()
    ]


def _exploding(model: nn.Module) -> list[Finding]:
    found = []
    for name, quantizer in ewgs_quantizers(model).items():
        value, limit = float(quantizer.strength), largest_strength(quantizer)
        if value >= limit or math.isnan(value):
            found.append(
                Finding(
                    "lambda",
                    name,
                    f"EWGS's λ is {value:.3g}, at which gradients change sign (limit {limit:.3g}): "
                    "a dead filter inflates the curvature; revive it, or fix λ with "
                    "QuantConfig(ewgs_lambda=1e-3)",
                )
            )
    return found


@torch.no_grad()
def _clipping(model: nn.Module, sample: Tensor, limit: float = 0.01) -> list[Finding]:
    """Quantizers that clip more than ``limit`` of their input at the sample."""
    shares: dict[str, float] = {}

    def watch(name: str, quantizer: ActQuantizer) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            low, high = _covered(quantizer)
            shares[name] = float(((args[0] < low) | (args[0] > high)).float().mean())

        return quantizer.register_forward_pre_hook(hook)

    handles = [watch(n, q) for n, q in act_quantizers(model).items()]
    _run_watched(model, sample, handles)
    return [
        Finding(
            "clipping",
            name,
            f"clips {100 * share:.1f}% of its input: calibrate on more data, use "
            "act_range='mse' or 'max', or let act_range='learned' train the range",
        )
        for name, share in shares.items()
        if share > limit
    ]


def _covered(quantizer: ActQuantizer) -> tuple[float, float]:
    """Smallest and largest value that is not clipped, half a step beyond the last level."""
    step = float(quantizer.positive_step().detach())
    if isinstance(quantizer, AffineActQuantizer):
        zero = int(quantizer.zero_point)
        low, high = quantizer.low - zero, quantizer.high - zero
    else:
        low, high = quantizer.level_set.integers[0], quantizer.level_set.integers[-1]
    # Below zero an unsigned quantizer rounds ReLU's own zeros: nothing is lost there.
    return (low - 0.5) * step, (high + 0.5) * step


class Monitor:
    """Watches the loss, and the integers of weights from step to step (Nagel et al., ICML 2022).

    Call :meth:`step` after each optimiser step; a moving average counts how often each weight
    changes its level.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.steps = 0
        self.first: float | None = None
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._last: dict[str, Tensor] = {}
        self._flips: dict[str, Tensor] = {}
        self._gaps: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, loss: float | None = None) -> None:
        """Compare with the previous call; ``loss`` is the step's, from before its update."""
        self.steps += 1
        if loss is not None:
            self.first = loss if self.first is None else self.first
            self._recent.append(loss)
        for name, layer in quant_layers(self.model).items():
            q, _ = layer.weight_quantizer.integers(layer.weight)
            if name in self._last:
                distance = (q - self._last[name]).abs()
                changed = (distance > 0).to(q.dtype)
                gap = self._gaps.get(name, distance)
                self._gaps[name] = torch.where(distance > 0, distance, gap)
                self._flips[name] = self._flips.get(name, torch.zeros_like(q)).lerp(
                    changed, _MOMENTUM
                )
            self._last[name] = q

    def oscillating(self) -> dict[str, float]:
        """Share of each layer's weights that swing between levels."""
        return {n: float((f > _OSCILLATION).float().mean()) for n, f in self._flips.items()}

    def noise(self, name: str) -> float:
        """Energy of a layer's swings, from level to level, over that of its weights."""
        swings = self._gaps[name].square() * (self._flips[name] > _OSCILLATION)
        return float(swings.mean() / self._last[name].square().mean().clamp_min(1e-12))

    def rise(self) -> tuple[float, float] | None:
        """First loss and mean of the last, when that is at least twice as large; else None.

        Losses below 0.2, of a network that solves its task, must be twenty times as large.
        """
        if self.first is None:
            return None
        now = sum(self._recent) / len(self._recent)
        risen = now > 2.0 * abs(self.first) and (now > 0.2 or now > 20.0 * abs(self.first))
        return (self.first, now) if risen or not math.isfinite(now) else None

    def findings(self, limit: float = 0.02) -> list[Finding]:
        """A loss that rose; layers in which more than ``limit`` of the weights swing, and it shows.

        At 7 or 8 bits a level is too small for that; see :meth:`noise`.
        """
        found = []
        risen = self.rise()
        if risen is not None:
            found.append(
                Finding(
                    "diverged",
                    "loss",
                    f"rose from {risen[0]:.3g} at the first step to {risen[1]:.3g} at the last "
                    f"{len(self._recent)}: training diverges; lower the learning rate, by ten to "
                    "begin with, and clip gradients at 1.0",
                )
            )
        cure = _swing_cure(self.model)
        return found + [
            Finding(
                "oscillation",
                name,
                f"{100 * share:.1f}% of the weights swing between two levels: {cure}",
            )
            for name, share in self.oscillating().items()
            if share > limit and self.noise(name) > _ENERGY
        ]


def _swing_cure(model: nn.Module) -> str:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    moving = [m for m in norms if not getattr(m, "frozen", False)]
    cure = "let the learning rate end at 0"
    if moving:
        return f"freeze BatchNorm (freeze_step), re-estimate it after training, and {cure}"
    if norms:
        return f"re-estimate BatchNorm after training, and {cure}"
    return f"{cure}, train longer at a low one, or choose the rounding afterwards (adaround)"
