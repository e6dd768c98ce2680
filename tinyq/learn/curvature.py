"""Strength λ of element-wise gradient scaling, from the curvature of the loss.

λ = max(0, mean over batches of (Tr(H)/N) / (3·std(g))), H and g with respect to the quantized
tensor over its span, so in [0, 1]; the trace by Hutchinson's estimator with Rademacher vectors (Lee
et al., CVPR 2021). Three guards that the published code lacks:

* a filter that is quantized to nothing has BatchNorm variance 0, and its gradient is multiplied by
  1/sqrt(eps), about 316: such filters are left out, of g and of the trace;
* 0/0 and infinities (a dead layer) give λ = 0;
* λ is at most 1 over the largest rounding error, beyond which gradients change sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from tinyq.learn.estimators import EWGS
from tinyq.learn.layers import QuantConv2d, QuantLinear
from tinyq.learn.quantizers import (
    ActQuantizer,
    AffineActQuantizer,
    TableActQuantizer,
    WeightQuantizer,
)

Loss = Callable[[Tensor, Tensor], Tensor]
_Quantizer = WeightQuantizer | ActQuantizer


def ewgs_quantizers(model: nn.Module) -> dict[str, _Quantizer]:
    """Quantizers whose estimator is EWGS with a λ to be found, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, WeightQuantizer | ActQuantizer)
        and isinstance(module.estimator, EWGS)
        and module.estimator.fixed is None
    }


def update_ewgs(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    *,
    probes: int = 50,
    tolerance: float = 1e-3,
    guarded: bool = True,
) -> dict[str, float]:
    """Set λ of every EWGS quantizer from ``batches`` (three are usual) and return it by name.

    Call it every few epochs, not at every step. ``guarded`` False reproduces the published rule.
    """
    quantizers = ewgs_quantizers(model)
    sums = dict.fromkeys(quantizers, 0.0)
    count = 0
    for x, y in batches:
        count += 1
        for name, value in _one_batch(model, quantizers, loss, x, y, probes, tolerance, guarded):
            sums[name] += value
    for name, quantizer in quantizers.items():
        value = sums[name] / max(count, 1)
        if guarded:
            value = 0.0 if math.isnan(value) else min(value, largest_strength(quantizer))
        quantizer.strength.fill_(value if math.isnan(value) else max(0.0, value))
    return {name: float(q.strength) for name, q in quantizers.items()}


def largest_strength(quantizer: _Quantizer) -> float:
    """One over the largest rounding error: half the widest gap, over the span."""
    if isinstance(quantizer, AffineActQuantizer):
        return 2.0 * (quantizer.high - quantizer.low)
    assert isinstance(quantizer, WeightQuantizer | TableActQuantizer)
    integers = quantizer.level_set.integers
    gaps = [b - a for a, b in pairwise(integers)]
    return 2.0 * (integers[-1] - integers[0]) / max(gaps)


def _span(quantizer: _Quantizer) -> Tensor:
    """Distance from the lowest to the highest value, in the tensor's own units."""
    if isinstance(quantizer, WeightQuantizer):
        low, high = quantizer.bounds()
        return quantizer.step.detach().abs().mean() * (high - low)
    if isinstance(quantizer, AffineActQuantizer):
        return quantizer.positive_step().detach() * (quantizer.high - quantizer.low)
    assert isinstance(quantizer, TableActQuantizer)
    integers = quantizer.level_set.integers
    return quantizer.positive_step().detach() * (integers[-1] - integers[0])


def _one_batch(
    model: nn.Module,
    quantizers: dict[str, _Quantizer],
    loss: Loss,
    x: Tensor,
    y: Tensor,
    probes: int,
    tolerance: float,
    guarded: bool,
) -> list[tuple[str, float]]:
    for quantizer in quantizers.values():
        quantizer.recording, quantizer.recorded = True, None
    try:
        value = loss(model(x), y)
        tensors = {n: q.recorded for n, q in quantizers.items() if _trains(q.recorded)}
        wanted = [t for t in tensors.values() if t is not None]
        gradients = torch.autograd.grad(value, wanted, create_graph=True)
        return [
            (name, _strength(t, g, _span(quantizers[name]), probes, tolerance, guarded))
            for (name, t), g in zip(tensors.items(), gradients, strict=True)
        ]
    finally:
        for quantizer in quantizers.values():
            quantizer.recording, quantizer.recorded = False, None


def _trains(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _strength(
    tensor: Tensor, gradient: Tensor, span: Tensor, probes: int, tolerance: float, guarded: bool
) -> float:
    alive = torch.ones_like(tensor)
    if guarded and tensor.dim() in (2, 4):
        dead = tensor.detach().reshape(len(tensor), -1).abs().amax(1) == 0
        alive[dead] = 0.0
    count = float(alive.sum())
    if count < 2:
        return 0.0
    spread = gradient.detach()[alive > 0].std()
    mean, last = 0.0, float("inf")
    for k in range(probes):
        probe = (torch.randint(0, 2, tensor.shape, device=tensor.device) * 2 - 1).to(tensor) * alive
        (product,) = torch.autograd.grad(gradient, tensor, probe, retain_graph=True)
        mean += (float((product * probe).sum()) - mean) / (k + 1)
        if abs(mean - last) <= tolerance * max(abs(last), 1e-6):
            break
        last = mean
    return float(mean / count * span / (3.0 * spread))


def dead_filters(model: nn.Module) -> dict[str, list[int]]:
    """Output channels whose weights are all quantized to zero, by layer."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantConv2d | QuantLinear):
            q, _ = module.weight_quantizer.integers(module.weight)
            dead = q.reshape(len(q), -1).abs().amax(1) == 0
            if bool(dead.any()):
                found[name] = dead.nonzero().flatten().tolist()
    return found
