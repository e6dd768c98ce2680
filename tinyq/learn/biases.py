"""Biases of converted layers: whole in the accumulator's unit, and what becomes of the output.

A network of few levels forgives nothing: one activation on another level moves its neighbours, and
a bias that is off by half a unit is enough. Two things undo that. Accumulators are multiples of
what weights and inputs have in common, and the output's integers change at few of them, so that
several whole biases give the very integers that the real one gives (:func:`least_moved`). And where
weights have 8 bits and nothing is common, their steps can be moved by a thousandth beforehand, so
that the bias is whole (:func:`align_biases`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx, nn

from tinyq.learn.layers import QuantConv2d, QuantLinear
from tinyq.learn.prepare import input_quantizer, require_ranges
from tinyq.learn.quantizers import ActQuantizer
from tinyq.learn.trace import module_of, operations

_FURTHEST = 32  # whole biases tried on either side of the nearest


def folded_bias(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Bias [O] behind ``layer`` and its BatchNorm, and the factor [O] of the products."""
    assert isinstance(layer, QuantConv2d | QuantLinear)
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return bias.clone(), torch.ones_like(bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    bias = (bias - norm.running_mean) * factor
    return bias if norm.bias is None else bias + norm.bias.detach(), factor


def least_moved(
    bias: Tensor, weight: Tensor, unit: Tensor, quantizer: ActQuantizer, after: ActQuantizer,
    norm: nn.Module | None,
) -> Tensor:  # fmt: skip
    """Whole biases [O], int32, with which the fewest outputs differ from those of the real ones.

    ``bias`` [O] is in accumulator units, ``weight`` [O, ...] integers, ``unit`` [O] what one of the
    accumulator is worth, ``quantizer`` gives the inputs and ``after`` takes the outputs. Outputs
    are weighed by how often BatchNorm says they occur, a normal distribution of its bias and scale.
    Among equals the nearest wins.
    """
    rows = weight.reshape(len(weight), -1).double()
    inputs = quantizer.integers().double().to(bias.device)
    stride = _common_factors(inputs[None]) * _common_factors(rows)
    ends = torch.stack([rows * inputs.min(), rows * inputs.max()])
    first = torch.ceil(ends.amin(0).sum(1) / stride)[:, None]
    last = torch.floor(ends.amax(0).sum(1) / stride)[:, None] + 1

    at = after.boundaries().to(bias.device) * after.rounded_step().detach().double()
    likely = _likely(at, norm, len(rows))
    limits = at / unit.double()[:, None]

    def reached(whole: Tensor) -> Tensor:
        """How many strides it takes to each boundary, [O, B]."""
        k = torch.ceil((limits - whole[:, None]) / stride[:, None])
        return torch.minimum(torch.maximum(k, first), last)

    real = reached(bias)
    best = torch.round(bias)
    fewest = ((reached(best) - real).abs() * likely).sum(1)
    for distance in range(1, _FURTHEST + 1):
        if not bool(fewest.any()):
            break
        side = torch.where(bias >= torch.round(bias), 1.0, -1.0)
        for sign in (1.0, -1.0):
            tried = torch.round(bias) + sign * side * distance
            moved = ((reached(tried) - real).abs() * likely).sum(1)
            best = torch.where(moved < fewest, tried, best)
            fewest = torch.minimum(moved, fewest)
    return best.to(torch.int32)


def _common_factors(rows: Tensor) -> Tensor:
    """Greatest common divisor of each row of integers, float64 [O]; 1 where all are zero."""
    found = np.gcd.reduce(rows.cpu().numpy().astype(np.int64), axis=1)
    return torch.from_numpy(np.maximum(found, 1)).double().to(rows.device)


def _likely(at: Tensor, norm: nn.Module | None, channels: int) -> Tensor:
    """Density at the values ``at`` [B] for each channel, [O, B]; even where no BatchNorm tells."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not norm.affine:
        return torch.ones(channels, len(at), dtype=torch.float64, device=at.device)
    mean, spread = norm.bias.detach().double(), norm.weight.detach().double().abs()
    away = (at - mean[:, None]) / spread[:, None].clamp_min(1e-12)
    return torch.exp(-0.5 * away.square())


@torch.no_grad()
def align_biases(model: nn.Module, limit: float = 0.01) -> int:
    """Enlarge the steps of 8-bit weights by up to ``limit`` so that biases are whole.

    For a prepared network whose other, low-bit layers make each change of an activation count:
    steps per output channel grow until the bias behind the layer and its BatchNorm is a whole
    number of accumulator units, and stay constant from then on. Do it when training and calibration
    are over; what the network computes afterwards is what :func:`convert` and the exported file
    compute. Channels whose bias is far below 1 / ``limit`` units may keep their step.

    Returns the number of channels whose bias is whole now. Raises TQ654 for a network that is not
    prepared, or converted already, TQ653 when a quantizer has no range yet.
    """
    from tinyq.learn.calibrate import require_prepared  # which reads convert, which reads this

    require_prepared(model, "align_biases")
    require_ranges(model)
    assert isinstance(model, fx.GraphModule)
    aligned = 0
    for node, op in operations(model):
        layer = module_of(model, node)
        if op.kind not in ("conv", "linear") or not isinstance(layer, QuantConv2d | QuantLinear):
            continue
        weights = layer.weight_quantizer
        if not (weights.per_channel and weights.level_set.uniform and weights.largest >= 127):
            continue
        step = weights.current_step(weights.prepared(layer.weight))
        bias, factor = folded_bias(layer, following_norm(model, node))
        unit = input_quantizer(model, node).exported_step() * step.flatten() * factor.abs()
        units = (bias.double().abs() / unit.double()).nan_to_num(0.0, 0.0, 0.0)
        larger = units / torch.floor(units).clamp_min(1.0)
        chosen = (units >= 1.0) & (larger <= 1.0 + limit)
        larger = torch.where(chosen, larger, torch.ones_like(larger)).reshape(step.shape)
        weights.set_step((step.double() * larger).to(step))
        aligned += int(chosen.sum())
    return aligned


def following_norm(model: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """BatchNorm that alone reads ``node``, or None."""
    users = list(node.users)
    norm = module_of(model, users[0]) if len(users) == 1 else None
    return norm if isinstance(norm, nn.modules.batchnorm._BatchNorm) else None
