"""Weights to 4, 3 and 2 bits without training: nearest against trained rounding, on digits.

python examples/rounding_digits.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from low_bit_digits import accuracy, digits, float_network
from torch import Tensor, fx

import tinyq.learn
from tinyq.learn import QuantConfig, ReconstructConfig

SEEDS = 3
SETTINGS = ReconstructConfig(steps=400, lr=1e-2)


def _adaquant(prepared: fx.GraphModule, x: Tensor) -> None:
    tinyq.learn.adaquant(prepared, x, ReconstructConfig(steps=400, batch=50), weight_lr=1e-3)


METHODS: dict[str, Callable[[fx.GraphModule, Tensor], None]] = {
    "nearest": lambda p, x: None,
    "bias correction": tinyq.learn.correct_bias,
    "BatchNorm re-estimated": lambda p, x: tinyq.learn.reestimate_batch_norm(p, [x]),
    "AdaRound": lambda p, x: tinyq.learn.adaround(p, x, SETTINGS),
    "BRECQ": lambda p, x: tinyq.learn.brecq(
        p, x, SETTINGS, blocks=[["stem.0"], ["middle.0", "middle.3"], ["head"]]
    ),
    "AdaQuant": _adaquant,
}


def main() -> None:
    torch.set_num_threads(1)
    x, _, x_test, y_test = digits()
    networks = [float_network(seed) for seed in range(SEEDS)]
    print("| weights | " + " | ".join(METHODS) + " |")
    print("|---|" + "---|" * len(METHODS))
    for bits in (4, 3, 2):
        cells = []
        for method in METHODS.values():
            scores = []
            for seed, network in enumerate(networks):
                torch.manual_seed(seed)
                config = QuantConfig(weight_bits=bits, act_range="max", weight_range="mse")
                prepared = tinyq.learn.prepare(network, config, x[:2])
                tinyq.learn.calibrate(prepared, [x[:512]])
                method(prepared, x[:1024])
                scores.append(accuracy(prepared, x_test, y_test))
            cells.append(f"{np.mean(scores):.1f} ± {np.std(scores):.1f}")
        print(f"| {bits} bits | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
