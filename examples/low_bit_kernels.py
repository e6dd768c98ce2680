"""Flash and instructions of low-bit networks, with int8 kernels and with kernels of packed weights.

    python examples/low_bit_kernels.py mnist_resnet10_4bit.onnx [...]

Compiles each file (written by ``apot_networks.py``, for instance) for several cores, runs it in
QEMU and compares every integer with onnxruntime. ``int8`` rows are compiled for speed, ``packed``
rows with the default goal. The last column stands for a Cortex-M0 whose multiplier takes 32 cycles:
instructions, and 31 more for every multiply-accumulate of a layer that multiplies. Constants, code
and arena are those of the first core.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tinyq
from tinyq.verification.report import VerifyReport
from tinyq.verification.verify import VerifyOptions

TARGETS = ("cortex-m4", "cortex-m33", "cortex-m3", "cortex-m0plus")
SLOW = "cortex-m0+mul32"
SUMS = "conv2d_s8_sums"


def measure(model: Path, target: str, goal: str) -> VerifyReport:
    """One compilation, run once; every integer must equal onnxruntime's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        tinyq.compile(model, output=folder, target=target, optimize=goal, name="net")
        report = tinyq.verify(folder, VerifyOptions(random=1, layers=True))
    if not report.equal:
        raise SystemExit(f"{model} on {target}: {report.outputs_different} integers differ")
    return report


def slow_cycles(report: VerifyReport) -> int:
    """Instructions, and what the slow multiplier adds."""
    waiting = sum(31 * la.macs for la in report.layers if la.kernel != SUMS)
    return (report.instructions_per_inference or 0) + waiting


def row(model: Path, kernels: str) -> str:
    """One line of the table."""
    goal = "speed" if kernels == "int8" else "balanced"
    reports = {target: measure(model, target, goal) for target in TARGETS}
    slow = reports["cortex-m0plus"] if kernels == "int8" else measure(model, SLOW, goal)
    first = reports[TARGETS[0]]
    counts = [(r.instructions_per_inference or 0) / 1e6 for r in reports.values()]
    cells = [
        model.stem.replace("_", " "),
        kernels,
        f"{(first.constant_bytes or 0) / 1024:.1f}",
        f"{(first.code_bytes or 0) / 1024:.1f}",
        f"{first.arena_bytes / 1024:.1f}",
        *(f"{millions:.2f}" for millions in counts),
        f"{slow_cycles(slow) / 1e6:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="ONNX files")
    args = parser.parse_args()
    titles = ["network", "kernels", "constants KiB", "code KiB", "arena KiB", *TARGETS, SLOW]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for model in args.models:
        for kernels in ("int8", "packed"):
            print(row(model, kernels), flush=True)


if __name__ == "__main__":
    main()
