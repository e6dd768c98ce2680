"""The bit ladder: a network of fewer bits starts from the trained one of more bits.

APoT's authors go from float to 4, 3, then 2 bits, each stage with the thresholds of the last. Going
to 2 bits at once leaves whole filters at zero, which do not come back.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from tinyq.errors import TinyqError, error
from tinyq.learn.calibrate import require_prepared
from tinyq.learn.config import QuantConfig
from tinyq.learn.prepare import act_quantizers, prepare, quant_layers
from tinyq.learn.quantizers import (
    ActQuantizer,
    AffineActQuantizer,
    TableActQuantizer,
    WeightQuantizer,
)


def step_down(
    trained: fx.GraphModule, model: nn.Module, config: QuantConfig, example: Tensor
) -> fx.GraphModule:
    """Prepare ``model`` with ``config``, taking weights, statistics and thresholds of ``trained``.

    ``model`` is the float network that ``trained`` was prepared from; it is not changed. Ranges of
    8-bit values stay as they are; levels that adaround chose do not exist at other widths and are
    left behind. Raises TQ654 when ``trained`` is not prepared, or not from ``model``.
    """
    require_prepared(trained, "step_down")
    start = copy.deepcopy(model)
    state, own = trained.state_dict(), start.state_dict()
    for name, value in own.items():
        found = state.get(name, value)
        if found.shape != value.shape:
            raise _another_network(name, f"{list(found.shape)} there, {list(value.shape)} here")
    start.load_state_dict({name: state.get(name, value) for name, value in own.items()})
    lower = prepare(start, config, example)
    before, after = quant_layers(trained), quant_layers(lower)
    for name in sorted(set(before) ^ set(after)):
        raise _another_network(
            name, f"a layer that is only {'there' if name in before else 'here'}"
        )
    for name, layer in after.items():
        _carry_weight(before[name].weight_quantizer, layer.weight_quantizer)
    known = act_quantizers(trained)
    for name, quantizer in act_quantizers(lower).items():
        if name in known:
            _carry_activation(known[name], quantizer)
    return lower


def _another_network(name: str, found: str) -> TinyqError:
    return error(
        "TQ654",
        f"the trained network was prepared from another float network: {found}",
        "Give step_down the float network that the trained one was prepared from.",
        node=name,
    )


@torch.no_grad()
def _carry_weight(old: WeightQuantizer, new: WeightQuantizer) -> None:
    """Keep a trained threshold where both have one of the same shape."""
    if old.mode == new.mode == "learned" and old.step.shape == new.step.shape:
        new.step.copy_(old.step.abs() * (old.largest / new.largest))


@torch.no_grad()
def _carry_activation(old: ActQuantizer, new: ActQuantizer) -> None:
    if not bool(old.ready) or old.signed != new.signed:
        return
    new.step.copy_(old.positive_step() * (_top(old) / _top(new)))
    new.zero_point.copy_(old.zero_point)
    new.ready.fill_(True)


def _top(quantizer: ActQuantizer) -> float:
    """Largest level."""
    if isinstance(quantizer, AffineActQuantizer):
        return float(quantizer.high)
    assert isinstance(quantizer, TableActQuantizer)
    return float(quantizer.level_set.largest)
