"""Ranges and statistics from data: what a prepared network needs before training or converting."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tinyq.learn.layers import _FreezingBatchNorm
from tinyq.learn.prepare import act_quantizers, config_of
from tinyq.learn.quantizers import ActQuantizer


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[Tensor], *, keep: Iterable[ActQuantizer] = ()
) -> None:
    """Give activation quantizers their ranges from ``batches`` of inputs, nothing else changes.

    Runs in eval mode with activations in float, so that ranges are those of unquantized values.
    Quantizers in ``keep`` act and stay as they are: thresholds that are known already.

    Weights that are normalised lose their scale, so BatchNorm statistics of the float network do
    not fit them: they are measured anew first, unless there are thresholds to ``keep``, which come
    with statistics of their own.
    """
    kept = {id(q) for q in keep}
    batches = list(batches)
    if config_of(model).normalize_weights and not kept:
        _with_float_activations(model, lambda: reestimate_batch_norm(model, batches))
    quantizers = [q for q in act_quantizers(model).values() if id(q) not in kept]
    was_training = model.training
    model.eval()
    for quantizer in quantizers:
        quantizer.enabled = False
        quantizer.observer.reset()
    handles = [q.register_forward_pre_hook(_observe) for q in quantizers]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        for quantizer in quantizers:
            quantizer.enabled = True
        model.train(was_training)
    for quantizer in quantizers:
        quantizer.refresh()


def _observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    assert isinstance(module, ActQuantizer)
    module.observer(args[0])


def freeze(model: nn.Module) -> None:
    """Stop BatchNorm statistics and observed ranges now, for loops that decide the moment."""
    for module in model.modules():
        if isinstance(module, _FreezingBatchNorm):
            module.freeze_step = 0
        elif isinstance(module, ActQuantizer):
            module.observing = False


def _with_float_activations(model: nn.Module, act: Callable[[], None]) -> None:
    switched = [q for q in act_quantizers(model).values() if q.enabled]
    for quantizer in switched:
        quantizer.enabled = False
    try:
        act()
    finally:
        for quantizer in switched:
            quantizer.enabled = True


@torch.no_grad()
def reestimate_batch_norm(prepared: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure BatchNorm statistics anew on the quantized network, as plain means over batches."""
    norms = [m for m in prepared.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m.momentum, getattr(m, "freeze_step", None)) for m in norms]
    was_training = prepared.training
    prepared.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.freeze_step = None, None
        norm.train()
    for batch in batches:
        prepared(batch)
    for norm, (momentum, freeze_step) in zip(norms, kept, strict=True):
        norm.momentum, norm.freeze_step = momentum, freeze_step
    prepared.train(was_training)
