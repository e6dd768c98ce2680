"""Arena and instructions with activations of few values packed, and without.

    python examples/packed_activations.py cifar10_resnet20_4bit.onnx [...]

Compiles each file (written by ``apot_networks.py``, for instance) and a plain network of 4-bit
weights and activations, once with ``--pack-activations never`` and once with ``always``, for both
goals and two cores, runs it in QEMU and compares every integer of every layer with onnxruntime's.
The plain network has random weights: four 3x3 convolutions at 32x32 and 16x16, no residuals.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import tinyq
import tinyq.learn
from tinyq.learn import QuantConfig
from tinyq.verification.report import VerifyReport
from tinyq.verification.verify import VerifyOptions

TARGETS = ("cortex-m4", "cortex-m0plus")


def plain_network(path: Path) -> Path:
    """A network of 4-bit weights and activations without residuals, exported."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    images = torch.randn(16, 3, 32, 32)
    prepared = tinyq.learn.prepare(model, QuantConfig(weight_bits=4, act_bits=4), images[:2])
    tinyq.learn.calibrate(prepared, [images])
    return tinyq.learn.export(prepared.eval(), path)


def measure(model: Path, target: str, goal: str, packing: str) -> VerifyReport:
    """One compilation, run once; every integer must equal onnxruntime's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        tinyq.compile(
            model, output=folder, target=target, name="net", optimize=goal, pack_activations=packing
        )
        report = tinyq.verify(folder, VerifyOptions(random=1, layers=True))
    if not report.equal or any(layer.different for layer in report.layers):
        raise SystemExit(f"{model} on {target}: {report.outputs_different} integers differ")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files")
    parser.add_argument("--goals", nargs="+", default=["balanced", "size"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        models = [plain_network(Path(name) / "plain_4bit.onnx"), *args.models]
        print("| network | goal | core | arena | packed | flash | packed | instructions | packed |")
        print("|" + "---|" * 9)
        for model in models:
            for goal in args.goals:
                for target in TARGETS:
                    found = [measure(model, target, goal, p) for p in ("never", "always")]
                    cells = [
                        *(f"{r.arena_bytes:,}" for r in found),
                        *(f"{(r.code_bytes or 0) + (r.constant_bytes or 0):,}" for r in found),
                        *(f"{(r.instructions_per_inference or 0) / 1e6:.2f}" for r in found),
                    ]
                    title = f"{model.stem.replace('_', ' ')} | {goal} | {target}"
                    print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
