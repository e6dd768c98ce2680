"""Handwritten digits, from training to firmware that was checked integer by integer.

    python examples/digits/demo.py [--target cortex-m4] [--out out/digits] [--package]

Trains a small CNN on the 8x8 scans that come with scikit-learn, quantizes it after training, writes
ONNX, compiles that to C and runs every held-out digit on an emulated core. Takes under a minute.
With --package the network and 100 held-out digits become those that `tinyq demo` carries.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import tinyq
from tinyq.demo import MODEL, SAMPLES
from tinyq.ptq import PtqConfig, inputs_of, load_calibration, quantize
from tinyq.verification.verify import VerifyOptions

EPOCHS = 30
SEED = 0


class DigitsCNN(nn.Module):
    """[N, 1, 8, 8] to [N, 10]: 5,546 parameters, one residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.down = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.block(x))
        return self.head(self.down(x).mean((2, 3)))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,257 digits to train with and 540 held out; pixels from 0 to 1."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    split = train_test_split(images, data.target, test_size=0.3, random_state=SEED)
    x_train, x_test, y_train, y_test = (torch.from_numpy(np.asarray(part)) for part in split)
    return x_train, y_train, x_test, y_test


def train(x: Tensor, y: Tensor) -> nn.Module:
    """A trained network in evaluation mode."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = DigitsCNN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-3)
    steps = EPOCHS * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cortex-m4")
    parser.add_argument("--out", type=Path, default=Path("out/digits"))
    parser.add_argument("--package", action="store_true", help="renew what `tinyq demo` carries")
    options = parser.parse_args()
    console, out = Console(highlight=False), options.out
    out.mkdir(parents=True, exist_ok=True)

    x_train, y_train, x_test, y_test = digits()
    console.print(f"Training on {len(x_train)} digits ...")
    model = train(x_train, y_train)
    float_accuracy = accuracy(model, x_test, y_test)
    console.print(f"  float accuracy on {len(x_test)} held-out digits: {float_accuracy:.2%}")

    console.print("Exporting and quantizing ...")
    float_path, int8_path = out / "digits_float.onnx", out / "digits.onnx"
    torch.onnx.export(
        model, (x_test[:1],), float_path, input_names=["image"], output_names=["scores"],
        dynamo=False, opset_version=17,
    )  # fmt: skip
    np.savez(out / "calibration.npz", x=x_train[:256].numpy(), y=y_train[:256].numpy())
    samples = load_calibration(out / "calibration.npz", inputs_of(float_path))
    quantize(float_path, samples, PtqConfig(bias_correction=True)).save(int8_path)

    if options.package:
        shutil.copy(int8_path, MODEL)
        np.savez_compressed(SAMPLES, x=x_test[:100].numpy(), y=y_test[:100].numpy())

    console.print(f"Compiling for {options.target} ...")
    folder = out / "firmware"
    compiled = tinyq.compile(int8_path, output=folder, target=options.target, name="digits")

    console.print(f"Running {len(x_test)} digits on an emulated {options.target} ...")
    held_out = out / "held_out.npz"
    np.savez(held_out, x=x_test.numpy(), y=y_test.numpy())
    report = tinyq.verify(folder, VerifyOptions(samples=held_out))

    table = Table(title="Handwritten digits, in integers alone", show_header=False)
    agreement = f"{report.outputs_compared - report.outputs_different:,} of "
    agreement += f"{report.outputs_compared:,} output integers equal"
    rows = (
        ("accuracy, float PyTorch", f"{float_accuracy:.2%}"),
        ("accuracy, int8 in onnxruntime", f"{report.oracle_accuracy:.2%}"),
        (f"accuracy, int8 C on {report.target}", f"{report.accuracy:.2%}"),
        ("agreement with onnxruntime", agreement),
        ("flash", f"{report.flash_bytes:,} bytes (code {report.code_bytes:,})"),
        ("RAM", f"{report.ram_bytes:,} bytes (arena {report.arena_bytes:,}, "
                f"stack {report.stack_bytes:,})"),
        ("instructions", f"{report.instructions_per_inference:,} an inference"),
        ("multiply-accumulates", f"{compiled.program.manifest['macs']:,} an inference"),
    )  # fmt: skip
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    console.print(f"The C code is in {folder}; again: tinyq verify {folder}", soft_wrap=True)
    return 0 if report.equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
