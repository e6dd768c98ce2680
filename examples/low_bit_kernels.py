"""Flash and instructions of low-bit networks, with int8 kernels and with kernels of packed weights.

    python examples/low_bit_kernels.py mnist_resnet10_4bit.onnx [...]
    python examples/low_bit_kernels.py --weights int4 pot4 lut4 -- kws_int8.onnx

Compiles each file (written by ``apot_networks.py``, for instance) for several cores, runs it in
QEMU and compares every integer with onnxruntime. ``int8`` rows are compiled for speed with kernels
that read int8 weights and multiply, ``packed`` rows with the default goal, and rows of
``--weights`` (or ``--weights all``), whose weights are rounded first, with ``--kernels packed``.
The last column stands for a Cortex-M0 whose multiplier takes 32 cycles: instructions, and 31 more
for every multiply-accumulate of a layer that multiplies; the int8 row multiplies there, the others
take what is best. Constants, code and arena are those of the first core.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tinyq
from tinyq.api import CompileOptions, lower_model
from tinyq.codegen import GenerateOptions, generate, write_program
from tinyq.ops import REGISTRY
from tinyq.plan.memory import plan_shared
from tinyq.plan.order import order_layers
from tinyq.select import Goal, select
from tinyq.target import load_core
from tinyq.verification.report import VerifyReport
from tinyq.verification.verify import VerifyOptions

TARGETS = ("cortex-m4", "cortex-m33", "cortex-m3", "cortex-m0plus")
SLOW = "cortex-m0+mul32"
FORMATS = (
    "int4", "int2", "ternary", "binary", "pot4", "apot4", "apot3", "lut5", "lut4", "lut3", "lut2",
)  # fmt: skip
WITHOUT_PRODUCTS = {
    kernel.name
    for operator in REGISTRY.operators.values()
    for kernel in operator.kernels
    if kernel.without_products
}


def compile_int8(model: Path, folder: Path, target: str) -> None:
    """For speed, each layer with the fastest kernel that reads int8 weights and multiplies."""
    graph, _, kept = lower_model(model, CompileOptions(target))
    core = load_core(target)
    forced = {}
    for layer in select(graph, core, Goal.SPEED).layers:
        calls = [c.call for c in layer.candidates if c.call is not None and not c.call.encoding]
        if layer.call.encoding:
            forced[layer.node.name] = min(calls, key=lambda call: call.instructions).kernel
    whole = select(graph, core, Goal.SPEED, forced)
    plans = [plan_shared(schedule) for schedule in (whole, order_layers(whole))]
    chosen, memory = min(plans, key=lambda planned: planned[1].arena_bytes)
    write_program(generate(chosen, memory, "net", GenerateOptions(model=kept)), folder)


def measure(model: Path, target: str, **options: str) -> VerifyReport:
    """One compilation, run once; every integer must equal onnxruntime's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        if options.pop("only_int8", ""):
            compile_int8(model, folder, target)
        else:
            tinyq.compile(model, output=folder, target=target, name="net", **options)
        report = tinyq.verify(folder, VerifyOptions(random=1, layers=True))
    if not report.equal:
        raise SystemExit(f"{model} on {target}: {report.outputs_different} integers differ")
    return report


def slow_cycles(report: VerifyReport) -> int:
    """Instructions, and what the slow multiplier adds."""
    waiting = sum(31 * la.macs for la in report.layers if la.kernel not in WITHOUT_PRODUCTS)
    return (report.instructions_per_inference or 0) + waiting


def row(model: Path, kernels: str) -> str:
    """One line of the table."""
    options = {"int8": {"only_int8": "yes"}, "packed": {}}.get(kernels, {"weights": kernels})
    packed = {"kernels": "packed"} if "weights" in options else {}
    reports = {target: measure(model, target, **options, **packed) for target in TARGETS}
    slow = reports["cortex-m0plus"] if kernels == "int8" else measure(model, SLOW, **options)
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
    parser.add_argument("--weights", nargs="+", help="formats to round the weights to, or `all`")
    args = parser.parse_args()
    formats = FORMATS if args.weights == ["all"] else args.weights
    titles = ["network", "kernels", "constants KiB", "code KiB", "arena KiB", *TARGETS, SLOW]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for model in args.models:
        for kernels in ("int8", *(formats or ("packed",))):
            print(row(model, kernels), flush=True)


if __name__ == "__main__":
    main()
