"""A plain training loop for those who have none; any other loop works as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyq.errors import error
from tinyq.learn.curvature import Loss, ewgs_quantizers, update_ewgs
from tinyq.learn.diagnose import Finding, Monitor, diagnose

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FitConfig:
    """How :func:`fit` trains.

    Adam with a cosine to zero; ``quantizer_lr`` for steps and thresholds, without weight decay.
    ``clip`` is the largest gradient norm. λ of EWGS is found anew every ``ewgs_every`` epochs, with
    at most ``ewgs_probes`` random vectors, on the first ``ewgs_images`` of each of three batches
    (all of them when None); ``guarded`` False leaves its guards out, to show what they are for.
    ``warm_up`` (epochs of EWGS at λ = 0) lets the network settle first.
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

    A GPU is used when there is one, unless ``device`` says otherwise. ``checkpoint`` is written
    after every epoch and, where it exists, resumed from. ``validate`` is called after each epoch in
    eval mode. Raises TQ655 when the loss stops being finite, naming what :func:`diagnose` finds.
    """
    settings = config or FitConfig()
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(where)
    chosen = optimizer or torch.optim.Adam(parameter_groups(model, settings))
    base = [float(group["lr"]) for group in chosen.param_groups]
    result = FitResult()
    start = _resume(checkpoint, model, chosen, result)
    monitor = Monitor(model)
    with _progress(progress, settings.epochs - start) as advance:
        for epoch in range(start, settings.epochs):
            rate = 0.5 * (1.0 + math.cos(math.pi * epoch / settings.epochs))
            for group, lr in zip(chosen.param_groups, base, strict=True):
                group["lr"] = lr * rate
            _refresh_strength(model, data, loss, settings, epoch, result, where)
            result.losses.append(_epoch(model, data, chosen, loss, settings, monitor, where))
            if validate is not None:
                model.eval()
                with torch.no_grad():
                    result.scores.append(validate(model))
            _save(checkpoint, model, chosen, result, epoch)
            advance(result.losses[-1])
    result.findings = diagnose(model, monitor=monitor)
    model.eval()
    return result


def _epoch(
    model: nn.Module,
    data: Batches,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    config: FitConfig,
    monitor: Monitor,
    device: torch.device,
) -> float:
    model.train()
    total, count = 0.0, 0
    for x, y in data:
        value = loss(model(x.to(device)), y.to(device))
        if not bool(torch.isfinite(value)):
            found = "; ".join(map(str, diagnose(model))) or "nothing else was found"
            raise error("TQ655", f"the loss is {float(value.detach())}: {found}")
        optimizer.zero_grad()
        value.backward()
        if config.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        monitor.step()
        total, count = total + float(value.detach()), count + 1
    return total / max(count, 1)


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
    three = [(x[:first].to(device), y[:first].to(device)) for x, y in islice(iter(data), 3)]
    result.strengths.append(
        update_ewgs(model, three, loss, probes=config.ewgs_probes, guarded=config.guarded)
    )


def _save(
    path: str | Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: FitResult,
    epoch: int,
) -> None:
    if path is None:
        return
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch + 1,
        "losses": result.losses,
        "scores": result.scores,
    }
    partial = Path(path).with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)  # an interrupted write leaves the previous checkpoint whole


def _resume(
    path: str | Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: FitResult,
) -> int:
    if path is None or not Path(path).exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    result.losses[:], result.scores[:] = state["losses"], state["scores"]
    return int(state["epoch"])


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
