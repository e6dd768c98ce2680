"""What goes wrong while training with few bits, said in words with the layer and the cure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyq.learn.curvature import dead_filters, ewgs_quantizers, largest_strength
from tinyq.learn.prepare import act_quantizers, quant_layers
from tinyq.learn.quantizers import ActQuantizer, AffineActQuantizer

# A level changed in more than this share of recent steps: the weight swings around a boundary.
_OSCILLATION = 0.1
_MOMENTUM = 0.02


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
    """Look for dead filters, exploding λ, NaN, and, given them, clipping and oscillation.

    ``sample`` is a batch of inputs for what only data shows; ``monitor`` one that saw training.
    """
    found = _not_finite(model) + _dead(model) + _exploding(model)
    if sample is not None:
        found += _clipping(model, sample)
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
    was_training = model.training
    model.eval()
    try:
        model(sample)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
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
    """Watches the integers of weights from step to step (Nagel et al., ICML 2022).

    Call :meth:`step` after each optimiser step; a moving average counts how often each weight
    changes its level.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.steps = 0
        self._last: dict[str, Tensor] = {}
        self._flips: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Compare with the previous call."""
        self.steps += 1
        for name, layer in quant_layers(self.model).items():
            q, _ = layer.weight_quantizer.integers(layer.weight)
            if name in self._last:
                changed = (q != self._last[name]).to(q.dtype)
                self._flips[name] = self._flips.get(name, torch.zeros_like(q)).lerp(
                    changed, _MOMENTUM
                )
            self._last[name] = q

    def oscillating(self) -> dict[str, float]:
        """Share of each layer's weights that swing between levels."""
        return {n: float((f > _OSCILLATION).float().mean()) for n, f in self._flips.items()}

    def findings(self, limit: float = 0.02) -> list[Finding]:
        """Layers in which more than ``limit`` of the weights swing."""
        return [
            Finding(
                "oscillation",
                name,
                f"{100 * share:.1f}% of the weights swing between two levels: freeze BatchNorm "
                "(freeze_step), re-estimate it after training, and let the learning rate end at 0",
            )
            for name, share in self.oscillating().items()
            if share > limit
        ]
