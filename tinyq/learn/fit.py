"""A plain training loop for those who have none; any other loop works as well."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyq.errors import TinyqError, error
from tinyq.learn.config import QuantConfig
from tinyq.learn.convert import is_converted
from tinyq.learn.curvature import Loss, ewgs_quantizers, update_ewgs
from tinyq.learn.diagnose import Finding, Monitor, diagnose, explain
from tinyq.learn.prepare import quant_layers
from tinyq.learn.trace import origin_of

Batches = Iterable[tuple[Tensor, Tensor]]

_REMEDY = "tinyq.learn.diagnose(model, batch) says more about the network as it is now."
_RUNAWAY = 1e4  # an epoch's mean loss over the first one: nothing is left to be trained further


@dataclass(frozen=True)
class FitConfig:
    """How :func:`fit` trains.

    Adam with a cosine to zero, step by step where ``len(data)`` or the first epoch says how many
    there are (the first epoch of data without a length has the full rate). ``quantizer_lr`` is for
    steps and thresholds, without weight decay. ``clip`` is the largest gradient norm.

    λ of EWGS is found anew every ``ewgs_every`` epochs, with at most ``ewgs_probes`` random
    vectors, on the first ``ewgs_images`` of each of three batches (all of them when None);
    ``guarded`` False leaves its guards out, to show what they are for. ``warm_up`` (epochs of EWGS
    at λ = 0) lets the network settle first.
    """

    epochs: int = 10
    lr: float = 1e-3
    quantizer_lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float | None = 1.0
    ewgs_every: int = 1
    ewgs_probes: int = 50
    ewgs_images: int | None = None
    warm_up: int = 1
    guarded: bool = True


@dataclass
class FitResult:
    """Mean loss of each epoch, what ``validate`` returned after it, λ by quantizer, findings."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    strengths: list[dict[str, float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def parameter_groups(model: nn.Module, config: FitConfig) -> list[dict[str, object]]:
    """Weights with decay, and the quantizers' own parameters without, at their own rate."""
    own = [p for n, p in model.named_parameters() if n.endswith((".step", ".rise"))]
    known = {id(p) for p in own}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        {"params": rest, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": own, "lr": config.quantizer_lr, "weight_decay": 0.0},
    ]


def fit(
    model: nn.Module,
    data: Batches,
    config: FitConfig | None = None,
    *,
    loss: Loss = F.cross_entropy,
    validate: Callable[[nn.Module], float] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a prepared (or float) network on ``data``, an iterable of (input, target) batches.

    ``data`` is gone through once an epoch: a list or a loader, not a generator. A GPU is used when
    there is one, unless ``device`` says otherwise. ``checkpoint`` is written after every epoch and,
    where it exists, resumed from. ``validate`` is called after each epoch in eval mode.

    Raises TQ655 when the loss stops being finite, saying whether it was the data and else which
    layer was first, when it rises without bound, and when an epoch has no batch; TQ654 for a
    converted network; TQ656 for a checkpoint of another configuration; TQ703 where none can be
    written. Warns of a loss that rose.
    """
    settings = config or FitConfig()
    _check(model, data, settings)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(where)
    chosen = optimizer or torch.optim.Adam(parameter_groups(model, settings))
    base = [float(group["lr"]) for group in chosen.param_groups]
    result = FitResult()
    start, batches = _resume(checkpoint, model, chosen, result)
    batches = _length(data) or batches
    monitor = Monitor(model)
    monitor.first = result.losses[0] if result.losses else None
    with _progress(progress, settings.epochs - start) as advance:
        for epoch in range(start, settings.epochs):
            _refresh_strength(model, data, loss, settings, epoch, result, where)
            model.train()
            total, count = 0.0, 0
            for x, y in _pairs(data, where):
                share = min(1.0, count / batches) if batches else 0.0
                rate = 0.5 * (1.0 + math.cos(math.pi * (epoch + share) / settings.epochs))
                for group, lr in zip(chosen.param_groups, base, strict=True):
                    group["lr"] = lr * rate
                _require_finite(x, epoch, count)
                value = _step(model, x, y, chosen, loss, settings)
                monitor.step(value)
                total, count = total + value, count + 1
            result.losses.append(_mean(total, count, epoch, monitor))
            batches = batches or count
            if validate is not None:
                model.eval()
                with torch.no_grad():
                    result.scores.append(validate(model))
            _save(checkpoint, model, chosen, result, epoch, batches)
            advance(result.losses[-1])
    result.findings = diagnose(model, monitor=monitor)
    for finding in result.findings:
        if finding.kind == "diverged":
            warnings.warn(str(finding), stacklevel=2)
    model.eval()
    return result


def _check(model: nn.Module, data: Batches, config: FitConfig) -> None:
    if is_converted(model):
        raise error(
            "TQ654",
            "fit was given a converted network, whose integers do not train",
            "Train the prepared network, and convert afterwards.",
        )
    probing = config.warm_up == 0 and bool(ewgs_quantizers(model))
    if isinstance(data, Iterator) and (config.epochs > 1 or probing):
        raise error(
            "TQ655",
            "data can be gone through once only, as generators can, and training needs more",
            "Give a list of batches, a DataLoader, or an object whose __iter__ starts anew.",
        )
    chosen = [n for n, q in quant_layers(model).items() if q.weight_quantizer.chosen is not None]
    if chosen:
        warnings.warn(
            f"the levels of {len(chosen)} layers were chosen by adaround or brecq (first "
            f"{chosen[0]}): their weights stay as they are in training",
            stacklevel=3,
        )


def _length(data: Batches) -> int | None:
    """Batches of an epoch, where ``data`` can say so."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None


def _pairs(data: Batches, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch as two tensors on ``device``; arrays become tensors."""
    for k, batch in enumerate(data):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise error(
                "TQ655",
                f"batch {k} is a {type(batch).__name__}, not a pair of input and target",
                "Give (input, target) for each batch.",
            )
        x, y = (torch.as_tensor(v) if isinstance(v, np.ndarray) else v for v in batch)
        yield x.to(device), y.to(device)


def _require_finite(x: Tensor, epoch: int, count: int) -> None:
    """Raise TQ655 for NaN in a batch before statistics and ranges have seen it."""
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        raise error(
            "TQ655",
            f"batch {count} of epoch {epoch + 1} holds NaN or infinity in {int(bad.sum())} of "
            f"{bad.numel()} input values",
            "Check the data and how it is normalised. The network has not seen this batch.",
        )


def _step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    config: FitConfig,
) -> float:
    """Train on one batch and return its loss. Raises TQ655 when that is not finite."""
    try:
        out = model(x)
    except TinyqError as exc:
        if exc.diagnostics[0].code != "TQ653":
            raise
        where = f"'{exc.diagnostics[0].node}' sees NaN or infinity"
        raise error("TQ655", f"{where}: {explain(model, x, y, None)}", _REMEDY) from exc
    value = loss(out, y)
    if not bool(torch.isfinite(value)):
        found = f"the loss is {float(value.detach())}: {explain(model, x, y, out)}"
        raise error("TQ655", found, _REMEDY)
    optimizer.zero_grad()
    value.backward()
    if config.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    return float(value.detach())


def _mean(total: float, count: int, epoch: int, monitor: Monitor) -> float:
    """Mean loss of an epoch. Raises TQ655 when it had no batch, and when the loss ran away."""
    if count == 0:
        raise error(
            "TQ655",
            f"data gave no batch in epoch {epoch + 1}",
            "Give a list of batches or a DataLoader that is not empty, not a used generator.",
        )
    mean, first = total / count, abs(monitor.first or 0.0)
    if not mean < _RUNAWAY * max(first, 1e-2):
        raise error(
            "TQ655",
            f"the loss rose from {first:.3g} at the first step to {mean:.3g}, the mean of epoch "
            f"{epoch + 1}",
            "Go back to the last checkpoint, lower the learning rate, by ten to begin with, and "
            "clip gradients (FitConfig.clip).",
        )
    return mean


def _refresh_strength(
    model: nn.Module,
    data: Batches,
    loss: Loss,
    config: FitConfig,
    epoch: int,
    result: FitResult,
    device: torch.device,
) -> None:
    if epoch < config.warm_up or epoch % config.ewgs_every or not ewgs_quantizers(model):
        return
    model.train()
    first = config.ewgs_images
    three = [(x[:first], y[:first]) for x, y in islice(_pairs(data, device), 3)]
    result.strengths.append(
        update_ewgs(model, three, loss, probes=config.ewgs_probes, guarded=config.guarded)
    )


def _save(
    path: str | Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: FitResult,
    epoch: int,
    batches: int | None,
) -> None:
    if path is None:
        return
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch + 1,
        "batches": batches,
        "losses": result.losses,
        "scores": result.scores,
        "quantization": _quantization(model),
    }
    partial = Path(path).with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)  # an interrupted write leaves the previous checkpoint whole


def _resume(
    path: str | Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: FitResult,
) -> tuple[int, int | None]:
    """Epochs that are done already, and the batches of each."""
    if path is None:
        return 0, None
    if Path(path).is_dir() or not Path(path).parent.is_dir():
        is_folder = Path(path).is_dir()
        found = "is a folder" if is_folder else f"the folder {Path(path).parent} does not exist"
        remedy = "Name a file." if is_folder else "Create the folder."
        raise error("TQ703", f"no checkpoint can be written: {found}", remedy, file=str(path))
    if not Path(path).exists():
        return 0, None
    anew = "Delete the file to start anew, or give another name."
    try:
        state = torch.load(path, weights_only=True)
        saved = state.get("quantization")
    except Exception as exc:  # torch and pickle raise many types for files of another kind
        raise error("TQ656", f"the file is not a checkpoint: {exc}", anew, file=str(path)) from exc
    own = _quantization(model)
    if saved is not None and saved != own:
        differing = [n for n in {**saved, **own} if saved.get(n) != own.get(n)]
        said = ", ".join(f"{n} was {saved.get(n)}, is {own.get(n)}" for n in differing[:3])
        kind = said if saved and own else "one of the two networks is not quantized"
        raise error("TQ656", f"the checkpoint has another configuration: {kind}", anew,
                    file=str(path))  # fmt: skip
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except TinyqError as exc:
        (own_error,) = exc.diagnostics
        found = f"the checkpoint is of another network: {own_error.found}"
        raise error("TQ656", found, anew, node=own_error.node, file=str(path)) from exc
    except (RuntimeError, ValueError, KeyError) as exc:
        found = f"the checkpoint is of another network or optimizer: {exc}"
        raise error("TQ656", found, anew, file=str(path)) from exc
    result.losses[:], result.scores[:] = state["losses"], state["scores"]
    return int(state["epoch"]), state.get("batches")


def _quantization(model: nn.Module) -> dict[str, str]:
    """Fields of the network's QuantConfig as text, none for a float network; rules have no name."""
    origin = origin_of(model)
    config = None if origin is None else origin.config
    if not isinstance(config, QuantConfig):
        return {}
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {n: "a rule" if callable(v) else repr(v) for n, v in values.items()}


@contextmanager
def _progress(shown: bool, epochs: int) -> Iterator[Callable[[float], None]]:
    """Yield a function that ends an epoch and shows its loss."""
    if not shown:
        yield lambda loss: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} epochs"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=epochs)
        yield lambda loss: bar.update(task, advance=1, description=f"loss {loss:.4f}")
