"""QEMU and unicorn side by side: outputs, every layer, and exact counts of the published networks.

    python tests/networks/emulators.py [--toolchains gcc,zig] [--cores cortex-m0,cortex-m4]

Prints a line for each network, core and compiler; the exit status is 0 when all agree.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import tinyq
from tinyq.emulate.unicorn import MODELS as CORES
from tinyq.verification.verify import VerifyOptions

sys.path.insert(0, str(Path(__file__).parent))
from test_networks import MODELS, MOST_FIXES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", default=",".join(CORES))
    parser.add_argument("--toolchains", default="gcc,zig")
    arguments = parser.parse_args()
    agree = True
    print("| network | core | compiler | integers | qemu | unicorn | agree |")
    print("|---|---|---|---|---|---|---|")
    for name in MOST_FIXES:
        for core in arguments.cores.split(","):
            for toolchain in arguments.toolchains.split(","):
                same, row = compared(name, core, toolchain)
                agree &= same
                print(f"| {name} | {core} | {toolchain} | {row} | {'yes' if same else 'NO'} |")
                sys.stdout.flush()
    return 0 if agree else 1


def compared(name: str, core: str, toolchain: str) -> tuple[bool, str]:
    """Whether the emulators agree with onnxruntime and with one another, and the figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / name
        tinyq.compile(MODELS / f"{name}_int8.onnx", output=out, target=core, name=name)
        options = VerifyOptions(
            emulator="qemu,unicorn", toolchain=toolchain, random=1, seed=5, layers=True
        )
        report = tinyq.verify(out, options)
    qemu, unicorn = report.runs
    same = (
        report.equal
        and qemu.instructions_per_inference == unicorn.instructions_per_inference is not None
        and qemu.stack_bytes == unicorn.stack_bytes
    )
    integers = report.outputs_compared + 2 * sum(layer.elements for layer in report.layers)
    counts = (qemu.instructions_per_inference, unicorn.instructions_per_inference)
    return same, " | ".join(f"{number:,}" for number in (integers, *counts))


if __name__ == "__main__":
    raise SystemExit(main())
