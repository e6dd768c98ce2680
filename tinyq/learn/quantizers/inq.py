"""Incremental network quantization (Zhou et al., ICLR 2017): freeze the largest, retrain the rest.

At each stage a larger part of the weights, the largest magnitudes first, becomes powers of two for
good; the others stay in float and are trained further to make up for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinyq.errors import error
from tinyq.learn import levels as level_sets
from tinyq.learn.estimators import Estimator, nearest_level
from tinyq.learn.quantizers.weight import WeightQuantizer

STAGES = (0.50, 0.75, 0.82, 1.00)


class INQQuantizer(WeightQuantizer):
    """Powers of two for the frozen weights, float for the rest until the last stage.

    The step is chosen once, from the float weights, since frozen weights may not move.
    """

    frozen: Tensor
    frozen_levels: Tensor

    def __init__(self, bits: int, estimator: Estimator, *, per_channel: bool = False):
        super().__init__(level_sets.inq(bits), estimator, mode="pot", per_channel=per_channel)

    def initialize(self, weight: Tensor, threshold: float | None = None) -> None:
        """Choose the exponents from ``weight`` and freeze nothing yet."""
        super().initialize(weight, threshold)
        self.mode = "mse"  # from here on the step is a constant
        self.register_buffer("frozen", torch.zeros_like(weight, dtype=torch.bool))
        self.register_buffer("frozen_levels", torch.zeros_like(weight))

    @torch.no_grad()
    def freeze(self, weight: Tensor, fraction: float) -> None:
        """Freeze the largest magnitudes until ``fraction`` of ``weight`` is frozen."""
        size = weight.abs().masked_fill(self.frozen, float("inf")).reshape(-1)
        count = round(fraction * weight.numel())
        chosen = torch.zeros_like(self.frozen).reshape(-1)
        chosen[size.argsort(descending=True)[:count]] = True
        fresh = chosen.reshape(weight.shape) & ~self.frozen
        q = nearest_level((weight / self.step).clamp(*self.bounds()), self.levels())
        self.frozen_levels.copy_(torch.where(fresh, q, self.frozen_levels))
        self.frozen |= fresh

    def forward(self, weight: Tensor) -> Tensor:
        """Frozen weights as levels without gradient, the others as they are."""
        return torch.where(self.frozen, self.frozen_levels * self.step, weight)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Levels and steps; what is not frozen yet is rounded now."""
        q, step = super().integers(weight)
        return torch.where(self.frozen, self.frozen_levels, q), step


def freeze_stage(model: nn.Module, fraction: float) -> None:
    """Freeze ``fraction`` of the weights of every INQ layer; restart the learning rate after it.

    ``fraction`` counts what is frozen already: the paper's stages are 0.5, 0.75, 0.82 and 1.0.
    Raises TQ652 for a fraction outside 0..1 and for a network without INQ layers.
    """
    if not 0.0 <= fraction <= 1.0:
        raise error(
            "TQ652",
            f"fraction is {fraction}; it must be 0 to 1",
            f"Give the share of the weights, such as {STAGES[0]}, not percent.",
        )
    layers = _inq_layers(model)
    if not layers:
        raise error(
            "TQ652",
            "the network has no weights to freeze in stages",
            "Prepare it with QuantConfig(weight_quantizer='inq', weight_bits=3 to 6).",
        )
    for module in layers.values():
        module.weight_quantizer.freeze(module.weight, fraction)


def require_frozen(model: nn.Module) -> None:
    """Raise TQ658 when a layer's INQ weights are not all frozen: the rest is in float."""
    for name, module in _inq_layers(model).items():
        frozen = module.weight_quantizer.frozen
        if not bool(frozen.all()):
            raise error(
                "TQ658",
                f"{100 * float(frozen.float().mean()):.0f}% of the weights are powers of two, the "
                "others are still in float",
                node=name,
            )


def _inq_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight_quantizer", None), INQQuantizer)
    }
