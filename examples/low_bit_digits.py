"""Quantizer x estimator x bits on scikit-learn's digits: a table of accuracies with their spread.

    python examples/low_bit_digits.py [--seeds 3] [--quick]

A CNN of 3.8 thousand parameters is trained in float, then trained on with fake quantization. Every
run takes seconds, so that the table can be repeated; its noise is about one point.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

import tinyq.learn
from tinyq.learn import FitConfig, QuantConfig, apot_config


class DigitsCNN(nn.Module):
    """[N, 1, 8, 8] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.middle = nn.Sequential(
            nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class Batches:
    """Shuffled batches, another order at each pass, the same in every run."""

    def __init__(self, x: Tensor, y: Tensor, seed: int, size: int = 64):
        self.x, self.y, self.size = x, y, size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator)
        for index in order.split(self.size):
            yield self.x[index], self.y[index]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels: 1,078 and 719."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = (data.images[:, None] / 16.0).astype(np.float32)
    parts = train_test_split(
        images, data.target, test_size=0.4, random_state=0, stratify=data.target
    )
    x, x_test, y, y_test = (torch.from_numpy(p) for p in parts)
    return x, y, x_test, y_test


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent right, in eval mode."""
    model.eval()
    with torch.no_grad():
        return 100.0 * float((model(x).argmax(1) == y).float().mean())


def float_network(seed: int, epochs: int = 30) -> nn.Module:
    """Train the float network."""
    x, y, _, _ = digits()
    torch.manual_seed(seed)
    model = DigitsCNN()
    tinyq.learn.fit(model, Batches(x, y, seed), FitConfig(epochs=epochs, lr=5e-3), progress=False)
    return model


def train(model: nn.Module, config: QuantConfig, seed: int, fit: FitConfig) -> nn.Module:
    """Prepare, calibrate and train."""
    x, y, _, _ = digits()
    torch.manual_seed(seed)
    prepared = tinyq.learn.prepare(model, config, x[:2])
    tinyq.learn.calibrate(prepared, [x[:256]])
    tinyq.learn.fit(prepared, Batches(x, y, seed), fit, progress=False)
    return prepared


def train_down(model: nn.Module, estimator: str, seed: int, fit: FitConfig) -> nn.Module:
    """APoT at 2 bits by the ladder 4, 3, 2 of its authors."""
    x, y, _, _ = digits()
    trained = train(model, configuration("apot", estimator, 4), seed, fit)
    for bits in (3, 2):
        config = configuration("apot", estimator, bits)
        trained = tinyq.learn.step_down(trained, model, config, x[:2])
        tinyq.learn.fit(trained, Batches(x, y, seed), fit, progress=False)
    return trained


def configuration(quantizer: str, estimator: str, bits: int) -> QuantConfig:
    """Weights and activations at ``bits``, learned ranges, uniform activations except for APoT."""
    if quantizer == "apot":
        config = replace(apot_config(bits), act_clip=None)
    else:
        config = QuantConfig(
            weight_bits=bits, weight_quantizer=quantizer, act_bits=bits, act_range="learned"
        )
    return replace(config, weight_estimator=estimator, act_estimator=estimator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one seed, 4 bits only, three epochs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = 1 if args.quick else args.seeds
    fit = FitConfig(epochs=3 if args.quick else args.epochs, lr=2e-3, quantizer_lr=1e-3)
    *_, x_test, y_test = digits()
    networks = [float_network(seed) for seed in range(seeds)]
    scores = [accuracy(n, x_test, y_test) for n in networks]
    print(f"float {np.mean(scores):.1f} ± {np.std(scores):.1f} ({seeds} seeds)")
    print("| quantizer | bits | " + " | ".join(ESTIMATORS) + " |")
    print("|---|---|" + "---|" * len(ESTIMATORS))
    start = time.monotonic()
    for quantizer in ("uniform", "pot", "apot", "kmeans", "quantile", "lcq"):
        for bits in (4,) if args.quick else (4, 3, 2):
            cells = [cell(networks, quantizer, e, bits, fit, x_test, y_test) for e in ESTIMATORS]
            print(f"| {quantizer} | {bits} | " + " | ".join(cells) + " |", flush=True)
    if not args.quick:
        row = []
        for e in ESTIMATORS:
            down = [
                accuracy(train_down(n, e, s, fit), x_test, y_test) for s, n in enumerate(networks)
            ]
            row.append(spread(down))
        print("| apot, ladder 4-3-2 | 2 | " + " | ".join(row) + " |")
    print(f"{time.monotonic() - start:.0f} s")


ESTIMATORS = ("ste", "ewgs", "dsq", "daq", "lsq")


def cell(
    networks: list[nn.Module],
    quantizer: str,
    estimator: str,
    bits: int,
    fit: FitConfig,
    x: Tensor,
    y: Tensor,
) -> str:
    """Mean and standard deviation over the seeds, as text."""
    config = configuration(quantizer, estimator, bits)
    scores = [accuracy(train(n, config, s, fit), x, y) for s, n in enumerate(networks)]
    return spread(scores)


def spread(scores: list[float]) -> str:
    return f"{np.mean(scores):.1f} ± {np.std(scores):.1f}"


if __name__ == "__main__":
    main()
