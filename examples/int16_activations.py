"""int16 activations beside int8, wholly and mixed by the search: error, instructions, flash, RAM.

    TINYQ_MODELS=../shared/models python examples/int16_activations.py [ic] [ad]

Prints the table of docs/quantization.md for two networks of MLPerf Tiny, quantized, compiled and
verified in QEMU. The networks and images are not part of the project, see mlperf_tiny_ptq.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from mlperf_tiny_ptq import MODELS, Array, cifar10, machine_sounds, run

import tinyq
from tinyq.ptq import PtqConfig, from_arrays, inputs_of, quantize, search
from tinyq.verification.verify import VerifyOptions

TARGETS = ("cortex-m4", "cortex-m0plus", "cortex-m55")
SAMPLES = 8
KEPT = {"ic": 0.005, "ad": 0.004}
"""The loss that the search may leave: of classes, of the root mean squared error."""


def main(names: list[str]) -> None:
    columns = "| network | activations | RMS error | core | instructions | flash | RAM |"
    print(columns, "|---|---|---|---|---|---|---|", sep="\n")
    for name in names:
        if name == "ic":
            calibration, test = cifar10("train", 300)[0], cifar10("test", 500)[0]
        else:
            calibration, test = machine_sounds(300, 1), machine_sounds(500, 2)
        path = MODELS / "mlperf-tiny" / f"{name}_float.onnx"
        infos = inputs_of(path)
        data = from_arrays(infos, {infos[0].name: calibration})
        wanted = run(onnx.load(path), test)
        mixed = search(path, data, PtqConfig(), keep_accuracy=KEPT[name])
        print(f"{name}: the search raised {mixed.raised}", file=sys.stderr)
        models = {
            "int8": quantize(path, data, PtqConfig()).model,
            "mixed": mixed.result.model,
            "int16": quantize(path, data, PtqConfig(activations="int16")).model,
        }
        for label, model in models.items():
            rms = float(np.sqrt(np.mean((run(model, test) - wanted) ** 2)))
            report(name, label, model, rms, test[:SAMPLES])


def report(name: str, label: str, model: onnx.ModelProto, rms: float, samples: Array) -> None:
    """One row a core; a network that does not verify ends the run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}_{label}.onnx"
        onnx.save(model, file)
        np.save(Path(folder) / "x.npy", samples)
        for target in TARGETS:
            out = Path(folder) / target
            tinyq.compile(file, target=target, output=out)
            found = tinyq.verify(out, VerifyOptions(samples=Path(folder) / "x.npy"))
            if not found.equal:
                sys.exit(f"{file.name} on {target} does not verify: {found.steps}")
            figures = (found.instructions_per_inference, found.flash_bytes, found.ram_bytes)
            shown = " | ".join(f"{figure or 0:,}" for figure in figures)
            print(f"| {name} | {label} | {rms:.6f} | {target} | {shown} |", flush=True)
            if found.steps is not None:
                print(f"{name} {label} {target}: {found.steps}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:] or ["ic", "ad"])
