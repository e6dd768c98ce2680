"""Why additive powers of two and EWGS fail together at 2 bits, and what cures them.

    python examples/apot_ewgs.py apot_ewgs.png

A survey reports that EWGS loses accuracy on APoT's grid and blames its level 0. On digits the level
alone does nothing. What fails is a filter that is quantized to zero altogether: its BatchNorm has
variance 0, the gradient through it is multiplied by 1/sqrt(eps), about 316, the curvature estimate
with it, and λ grows until gradients change sign. A filter whose BatchNorm bias is negative hides
behind ReLU, and Adam forgives, since it divides gradients by their size; SGD, with which APoT's
authors train, does not. Here two filters are put to zero on purpose, and the network is trained on
in several ways.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from low_bit_digits import Batches, accuracy, configuration, digits, float_network, train_down
from torch import nn

import tinyq.learn
from tinyq.errors import TinyqError
from tinyq.learn import FitConfig, QuantConfig
from tinyq.learn.curvature import ewgs_quantizers

EPOCHS = 8


@dataclass(frozen=True)
class Variant:
    """One way to train on: estimator, guards of λ, gradient clip, BatchNorm's epsilon."""

    label: str
    estimator: str = "ewgs"
    guarded: bool = False
    clip: float | None = None
    eps: float = 1e-5
    dead: bool = True
    fixed: float | None = None


VARIANTS = (
    Variant("EWGS, no filter dead", dead=False),
    Variant("EWGS as published, two filters dead"),
    Variant("guards of λ alone", guarded=True),
    Variant("gradient clip alone", clip=1.0),
    Variant("guards and clip (tinyq's default)", guarded=True, clip=1.0),
    Variant("BatchNorm epsilon 1e-2", eps=1e-2),
    Variant("λ fixed at 1e-3, clip", fixed=1e-3, clip=1.0),
    Variant("STE, clip", estimator="ste", clip=1.0),
)


def kill_filters(prepared: nn.Module, filters: tuple[int, ...]) -> None:
    """Put filters at the layer's mean, which normalisation maps to zero; open the ReLU behind.

    A dead filter whose BatchNorm bias is negative is cut off by ReLU and harms nobody.
    """
    weight = prepared.get_submodule("middle.0").weight
    with torch.no_grad():
        prepared.get_submodule("middle.1").bias[list(filters)] = 0.5
        weight[list(filters)] = weight.mean() + 1e-4 * torch.randn_like(weight[list(filters)])


def run(
    start: torch.fx.GraphModule, model: nn.Module, variant: Variant, seed: int
) -> dict[str, list[float]]:
    """Accuracy and largest λ after each epoch."""
    x, y, x_test, y_test = digits()
    config: QuantConfig = replace(
        configuration("apot", variant.estimator, 2), ewgs_lambda=variant.fixed
    )
    prepared = tinyq.learn.step_down(start, model, config, x[:2])
    if variant.dead:
        kill_filters(prepared, (0, 1))
    for module in prepared.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = variant.eps
    tinyq.learn.reestimate_batch_norm(prepared, x.split(256))
    torch.manual_seed(seed)
    fit = FitConfig(
        epochs=EPOCHS,
        lr=2e-2,
        quantizer_lr=2e-3,
        clip=variant.clip,
        guarded=variant.guarded,
        warm_up=0,
        ewgs_probes=6,
    )
    scores: list[float] = []
    strengths: list[float] = []

    def validate(m: nn.Module) -> float:
        scores.append(accuracy(m, x_test, y_test))
        strengths.append(max((float(q.strength) for q in ewgs_quantizers(m).values()), default=0.0))
        return scores[-1]

    groups = tinyq.learn.parameter_groups(prepared, fit)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    try:
        tinyq.learn.fit(
            prepared,
            Batches(x, y, seed),
            fit,
            optimizer=optimizer,
            validate=validate,
            progress=False,
        )
    except TinyqError as stop:  # the loss is no number any more: chance from here on
        print(f"  {variant.label}: {str(stop)[:100]}")
    scores += [10.0] * (EPOCHS - len(scores))
    return {"accuracy": scores, "strength": strengths}


def main() -> None:
    torch.set_num_threads(1)
    seeds = 3
    starts = []
    for seed in range(seeds):
        model = float_network(seed)
        fit = FitConfig(epochs=5, lr=2e-3, quantizer_lr=1e-3)
        starts.append((train_down(model, "ste", seed, fit), model))
    results = {
        v.label: [run(start, model, v, s) for s, (start, model) in enumerate(starts)]
        for v in VARIANTS
    }
    print("| training | largest λ | accuracy at the end | lowest on the way |")
    print("|---|---|---|---|")
    for label, runs in results.items():
        final = [r["accuracy"][-1] for r in runs]
        lowest = min(min(r["accuracy"]) for r in runs)
        strength = max((max(r["strength"], default=0.0) for r in runs), default=0.0)
        spread = f"{np.mean(final):.1f} ± {np.std(final):.1f}"
        print(f"| {label} | {strength:.3g} | {spread} | {lowest:.1f} |")
    plot(results, sys.argv[1] if len(sys.argv) > 1 else "apot_ewgs.png")


def plot(results: dict[str, list[dict[str, list[float]]]], path: str) -> None:
    """Mean accuracy and largest λ over the seeds, by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 8), sharex=True)
    for label, runs in results.items():
        means = np.mean([r["accuracy"] for r in runs], axis=0)
        (line,) = top.plot(range(1, EPOCHS + 1), means, label=label)
        # Runs that ended in NaN have fewer values: the largest of those that there are.
        largest = [
            max(r["strength"][e] for r in runs if len(r["strength"]) > e)
            for e in range(max(len(r["strength"]) for r in runs))
        ]
        if max(largest, default=0.0) > 0.0:
            bottom.semilogy(range(1, len(largest) + 1), largest, color=line.get_color())
    top.set_ylabel("test accuracy, %")
    top.legend(fontsize=7)
    bottom.set_ylabel("largest λ of any layer and seed")
    bottom.set_xlabel("epoch")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
