"""Ranges and statistics from data: what a prepared network needs before training or converting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tinyq.errors import error
from tinyq.learn.convert import is_converted
from tinyq.learn.layers import _FreezingBatchNorm
from tinyq.learn.prepare import act_quantizers, config_of
from tinyq.learn.quantizers import ActQuantizer
from tinyq.learn.quantizers.state import FROZEN


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[object], *, keep: Iterable[ActQuantizer] = ()
) -> None:
    """Give activation quantizers their ranges from ``batches`` of inputs, nothing else changes.

    A batch is a float tensor or array [N, ...], or a tuple that begins with one, as loaders of
    pairs give; a single tensor is a single batch. Runs in eval mode with activations in float, so
    that ranges are those of unquantized values. Quantizers in ``keep`` act and stay as they are:
    thresholds that are known already.

    Weights that are normalised lose their scale, so BatchNorm statistics of the float network do
    not fit them: they are measured anew first, unless there are thresholds to ``keep``, which come
    with statistics of their own.

    Raises TQ653 when there is no batch, or NaN in one or behind a layer; TQ654 for a network that
    is not prepared, or converted already.
    """
    require_prepared(model, "calibrate")
    kept = {id(q) for q in keep}
    given = inputs_of(batches, model)
    if config_of(model).normalize_weights and not kept:
        with float_activations(model):
            reestimate_batch_norm(model, given)
    quantizers = [q for q in act_quantizers(model).values() if id(q) not in kept]
    was_training = model.training
    model.eval()
    for quantizer in quantizers:
        quantizer.enabled = False
        quantizer.observer.reset()
    handles = [q.register_forward_pre_hook(_observe) for q in quantizers]
    try:
        for batch in given:
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


def require_prepared(model: nn.Module, what: str) -> None:
    """Raise TQ654 when ``what`` is called with a network that is not prepared, or converted."""
    if is_converted(model):
        raise error(
            "TQ654",
            f"{what} was given a converted network, whose integers do not change any more",
            f"Call {what} with the prepared network, and convert afterwards.",
        )
    config_of(model)


def inputs_of(batches: Iterable[object], model: nn.Module) -> list[Tensor]:
    """Inputs of ``model`` [N, ...] from what loaders give: tensors, arrays, or tuples of them.

    Arrays become tensors of the network's type. Raises TQ653 when there is none, when one holds NaN
    or infinity, and when one is something else.
    """
    like = next((p for p in model.parameters()), torch.zeros(()))
    given = [batches] if isinstance(batches, Tensor | np.ndarray) else list(batches)
    if not given:
        raise error(
            "TQ653",
            "there is no batch of inputs",
            "Give a list of input batches, or a loader; a generator is empty once it was used.",
        )
    made = []
    for k, batch in enumerate(given):
        x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if isinstance(x, np.ndarray):
            x = torch.as_tensor(x, dtype=like.dtype)
        if not isinstance(x, Tensor):
            raise error(
                "TQ653",
                f"batch {k} is a {type(x).__name__}",
                "Give tensors [N, ...], arrays, or tuples that begin with one.",
            )
        require_finite(x, f"batch {k}")
        made.append(x.to(like.device))
    return made


def require_finite(x: Tensor, what: str) -> None:
    """Raise TQ653 when the data ``x``, called ``what``, holds NaN or infinity."""
    bad = ~torch.isfinite(x) if x.is_floating_point() else torch.zeros(())
    if bool(bad.any()):
        raise error(
            "TQ653",
            f"{what} holds NaN or infinity in {int(bad.sum())} of {bad.numel()} values",
            "Check the data and how it is normalised: a division by a deviation of zero does that.",
        )


def freeze(model: nn.Module) -> None:
    """Stop BatchNorm statistics and observed ranges now, for loops that decide the moment.

    State dicts hold it. Raises TQ654 for a network that is not prepared.
    """
    config_of(model)
    for module in model.modules():
        if isinstance(module, _FreezingBatchNorm | ActQuantizer):
            module.steps.fill_(FROZEN)


@contextmanager
def float_activations(model: nn.Module) -> Iterator[None]:
    """Activations of a prepared network in float, as long as this lasts."""
    switched = [q for q in act_quantizers(model).values() if q.enabled]
    for quantizer in switched:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in switched:
            quantizer.enabled = True


@torch.no_grad()
def reestimate_batch_norm(prepared: nn.Module, batches: Iterable[object]) -> None:
    """Measure BatchNorm statistics anew on the quantized network, as plain means over batches.

    ``batches`` as for :func:`calibrate`; what was frozen is frozen again afterwards. Raises TQ653
    when there is no batch, or NaN in one.
    """
    given = inputs_of(batches, prepared)
    norms = [m for m in prepared.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m.momentum, _steps(m), getattr(m, "freeze_step", None)) for m in norms]
    was_training = prepared.training
    prepared.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.freeze_step = None, None
        if isinstance(norm, _FreezingBatchNorm):
            norm.steps.zero_()
        norm.train()
    try:
        for batch in given:
            prepared(batch)
    finally:
        for norm, (momentum, steps, freeze_step) in zip(norms, kept, strict=True):
            norm.momentum, norm.freeze_step = momentum, freeze_step
            if steps is not None:
                norm.steps.copy_(steps)
        prepared.train(was_training)


def _steps(norm: nn.Module) -> Tensor | None:
    return norm.steps.clone() if isinstance(norm, _FreezingBatchNorm) else None
