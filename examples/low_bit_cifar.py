"""ResNet-20 on CIFAR-10, trained on from the published float network with few bits.

    python examples/low_bit_cifar.py --bits 4 3 2 --images 50000 --epochs 3
    python examples/low_bit_cifar.py --rounding --images 1024

The first compares quantizers (and with ``--estimators`` gradients), the second BRECQ and AdaRound
with nearest rounding at 4, 3 and 2 bit weights. A GPU is used when there is one; on a CPU core an
epoch of 2,000 images takes about a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from resnet20 import accuracy, cifar10, float_resnet20
from torch import Tensor

import tinyq.learn
from tinyq.learn import FitConfig, QuantConfig, ReconstructConfig, apot_config


class Augmented:
    """Shuffled batches, mirrored and shifted by up to four pixels."""

    def __init__(self, x: Tensor, y: Tensor, seed: int, size: int = 128):
        self.x, self.y, self.size = x, y, size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(self.x), generator=self.generator).split(self.size):
            dy, dx = torch.randint(0, 9, (2,), generator=self.generator).tolist()
            images = torch.nn.functional.pad(self.x[index], (4, 4, 4, 4))
            images = images[:, :, dy : dy + 32, dx : dx + 32]
            if int(torch.randint(0, 2, (1,), generator=self.generator)):
                images = images.flip(-1)
            yield images, self.y[index]


def configuration(quantizer: str, estimator: str, bits: int) -> QuantConfig:
    """Weights and activations at ``bits``."""
    if quantizer == "apot":
        config = replace(apot_config(bits), act_clip=None)
    else:
        config = QuantConfig(
            weight_bits=bits, weight_quantizer=quantizer, act_bits=bits, act_range="learned"
        )
    return replace(config, weight_estimator=estimator, act_estimator=estimator)


def training(
    args: argparse.Namespace, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor
) -> None:
    """Print accuracy by quantizer, estimator and bits; each width starts from the wider one."""
    model = float_resnet20()
    fit = FitConfig(
        epochs=args.epochs, lr=1e-3, quantizer_lr=1e-3, weight_decay=1e-4, ewgs_probes=4
    )
    for quantizer in args.quantizers:
        for estimator in args.estimators:
            last = None
            for bits in args.bits:
                start = time.monotonic()
                torch.manual_seed(args.seed)
                config = configuration(quantizer, estimator, bits)
                if last is None:
                    prepared = tinyq.learn.prepare(model, config, x[:2])
                    tinyq.learn.calibrate(prepared, x[:512].split(128))
                else:
                    prepared = tinyq.learn.step_down(last, model, config, x[:2])
                before = accuracy(prepared.eval(), x_test, y_test)
                tinyq.learn.fit(prepared, Augmented(x, y, args.seed), fit, progress=False)
                prepared.cpu()
                after = accuracy(prepared, x_test, y_test)
                seconds = time.monotonic() - start
                print(
                    f"| {quantizer} | {estimator} | {bits}/{bits} | {before:.1f} | {after:.1f} "
                    f"| {seconds:.0f} s |",
                    flush=True,
                )
                last = prepared


def rounding(args: argparse.Namespace, x: Tensor, x_test: Tensor, y_test: Tensor) -> None:
    """Print accuracy of nearest, AdaRound and BRECQ by bits of weights."""
    settings = ReconstructConfig(steps=args.steps, lr=1e-2, seed=args.seed)
    for bits in args.bits:
        scores = []
        for method in (None, tinyq.learn.adaround, tinyq.learn.brecq):
            config = QuantConfig(weight_bits=bits, weight_range="mse", act_range="max")
            prepared = tinyq.learn.prepare(float_resnet20(), config, x[:2])
            tinyq.learn.calibrate(prepared, x.split(128))
            if method is not None:
                method(prepared, x, settings)
            scores.append(accuracy(prepared.eval(), x_test, y_test))
        print(f"| {bits} | " + " | ".join(f"{s:.1f}" for s in scores) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantizers", nargs="+", default=["uniform", "pot", "apot"])
    parser.add_argument("--estimators", nargs="+", default=["ste"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounding", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = cifar10("train", args.images)
    x_test, y_test = cifar10("test", args.test)
    print(f"float {accuracy(float_resnet20(), x_test, y_test):.1f}", flush=True)
    if args.rounding:
        rounding(args, x, x_test, y_test)
    else:
        training(args, x, y, x_test, y_test)


if __name__ == "__main__":
    main()
