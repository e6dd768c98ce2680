"""Flash that low-bit weights take, beside their nominal bits.

    python examples/low_bit_flash.py mnist_resnet10_4bit.onnx [...]

Compiles each file with ``--kernels packed`` for a core with the DSP extension and one without, and
for the slow multiplier, and adds up what the layers of few levels store: codes with their padding,
words of masks, and tables of levels or digits. Nominal is the width of the codes times the weights
that are left (taps that meet nothing but padding are gone); the last column is what five ternary
digits a byte would take of that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyq.api import CompileOptions, compile_model
from tinyq.ops.packed import encoding_of

RUNS = (("cortex-m4", "packed"), ("cortex-m0plus", "packed"), ("cortex-m0+mul32", "shift"))
TABLES = ("codes", "counts", "levels", "digits")


def row(model: Path, target: str, kernels: str) -> str:
    """One line: bytes of all layers, and the layer with most beyond its nominal bits."""
    compiled = compile_model(model, CompileOptions(target, kernels=kernels))
    stored = nominal = ternary = 0.0
    worst, where = 0.0, ""
    for layer in compiled.schedule.layers:
        encoding = encoding_of(layer.node.input(1)) if layer.call.encoding else None
        if encoding is None:
            continue
        weights = layer.node.input(1).type.elements
        bits = weights * encoding.bits / 8
        taken = sum(c.array.nbytes for c in layer.call.constants if c.suffix in TABLES)
        stored, nominal = stored + taken, nominal + bits
        ternary += weights / 5 if encoding.name == "ternary" else bits
        if taken / bits > worst:
            worst, where = taken / bits, f"{layer.node.name} ({weights:,} weights)"
    cells = [
        model.stem.replace("_", " "), target, f"{nominal:,.0f}", f"{stored:,.0f}",
        f"{100 * (stored / nominal - 1):.1f}%", f"{100 * (worst - 1):.1f}%: {where}",
        f"{ternary / nominal:.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="ONNX files")
    args = parser.parse_args()
    titles = ["network", "core", "nominal", "stored", "more", "worst layer", "five a byte"]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for model in args.models:
        for target, kernels in RUNS:
            print(row(model, target, kernels), flush=True)


if __name__ == "__main__":
    main()
