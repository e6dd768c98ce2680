"""Estimates of cycles beside each other: the core's table, its pipeline, and LLVM's analyser.

python -m bench.pipelines [--cores cortex-m7 ...] [--networks kws ...] [--kernels tinyq|cmsis-nn]

llvm-mca is optional (LLVM 19 or newer): it schedules every block by LLVM's model of the core, and
makes each instruction wait until all before it have written back, which the core does not do.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.measure import CORES, MODELS, NETWORKS
from bench.tables import table

from tinyq.api import CompileOptions, compile_model
from tinyq.build import build_firmware, load_network
from tinyq.build.arm import arm_toolchain
from tinyq.build.disassembly import Functions
from tinyq.build.elf import read_elf
from tinyq.codegen import write_program
from tinyq.emulate.counting import count_instructions
from tinyq.emulate.cycles import cost_by_function
from tinyq.emulate.pipeline import functions_by_block
from tinyq.target import Core, CycleTable, Pipeline, load_board, load_core
from tinyq.verification.samples import random_samples

_MARKS = ("tinyq_layer_begin", "tinyq_layer_end")
_FEW, _MANY = 4, 12
_MODELS = {
    "cortex-m3": "", "cortex-m4": "cortex-m4", "cortex-m7": "cortex-m7", "cortex-m33": "cortex-m33",
    "cortex-m55": "cortex-m55",
}  # fmt: skip


@dataclass(frozen=True)
class Estimates:
    """Instructions of one inference and cycles by each way, 0 where there is none."""

    network: str
    core: str
    macs: int
    instructions: int
    by_table: int
    by_pipeline: int
    by_llvm: int


def estimate(network: str, core: Core, kernels: str) -> Estimates:
    """Compile, build with hooks and count one inference; raises what those raise.

    CMSIS-NN's functions run under their own arithmetic, as on the boards of MLPerf Tiny.
    """
    oracle = "cmsis-nn" if kernels == "cmsis-nn" else "ort"
    options = CompileOptions(
        core.name, name=network, optimize="speed", kernels=kernels, oracle=oracle
    )
    compiled = compile_model(MODELS / f"{network}_int8.onnx", options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_program(compiled.program, folder / network)
        loaded = load_network(folder / network)
        artifact = build_firmware(
            loaded, core, load_board(core.board), folder / "build", profile=True
        )
        found = arm_toolchain("").functions(artifact.executable, core)
        at = {s.name: s.address & ~1 for s in read_elf(artifact.executable).symbols}
        sample = random_samples(loaded.inputs, 1, 0).inputs
        phases = count_instructions(artifact, sample, (at[_MARKS[0]], at[_MARKS[1]]))
    counts: dict[int, int] = {}
    for phase in phases[3::2]:
        for address, times in phase.items():
            counts[address] = counts.get(address, 0) + times
    functions = {name: body for name, body in found.items() if name not in _MARKS}
    by_table = cost_by_function(functions, counts, core.timing)
    by_pipeline = cost_by_function(functions, counts, core.timing, core.pipeline)
    return Estimates(
        network, core.name, compiled.program.manifest["macs"],
        sum(cost.instructions for cost in by_table.values()),
        round(sum(cost.cycles for cost in by_table.values())),
        round(sum(cost.cycles for cost in by_pipeline.values())) if core.pipeline else 0,
        by_llvm(functions, counts, core),
    )  # fmt: skip


def by_llvm(functions: Functions, counts: Mapping[int, int], core: Core) -> int:
    """Cycles by llvm-mca, with the table's cost of taken branches; 0 without it or a model."""
    program = next(filter(None, map(shutil.which, _analysers())), None)
    if program is None or not _MODELS.get(core.name):
        return 0
    blocks = []
    for name, address, times, size, _ in functions_by_block(functions, counts, _ONE_BY_ONE):
        body = functions[name]
        first = next(k for k, one in enumerate(body) if one.address == address)
        lines = [_assembly(one.mnemonic, one.operands) for one in body[first : first + size]]
        blocks.append((times, lines))
    few, many = (_analyse(program, core.name, [b for _, b in blocks], n) for n in (_FEW, _MANY))
    total = sum(
        times * (high - low) / (_MANY - _FEW)
        for (times, _), low, high in zip(blocks, few, many, strict=True)
    )
    return round(total + _taken(functions, counts, core.timing))


_ONE_BY_ONE = replace(
    load_core("cortex-m7").pipeline or Pipeline("", 1, 1, 0, 0, 0, (), {}), width=1
)


def _analysers() -> list[str]:
    return [*(f"llvm-mca-{version}" for version in range(25, 18, -1)), "llvm-mca"]


def _assembly(mnemonic: str, operands: str) -> str:
    text = re.sub(r"[0-9a-f]+ <[^>]*>", "#0", operands.split("@", maxsplit=1)[0])
    if mnemonic in ("le", "letp", "wls", "wlstp.8", "dls"):
        return "nop"
    return f"{mnemonic.removesuffix('.w').removesuffix('.n')} {text}"


def _analyse(program: str, cpu: str, blocks: Sequence[Sequence[str]], rounds: int) -> list[int]:
    text = ""
    for number, lines in enumerate(blocks):
        text += f"# LLVM-MCA-BEGIN b{number}\n" + "\n".join(lines) + "\n# LLVM-MCA-END\n"
    command = [
        program, "-mtriple=thumbv8.1m.main", f"-mcpu={cpu}", f"-iterations={rounds}", "-json",
        "-instruction-info=false", "-resource-pressure=false",
        "-skip-unsupported-instructions=any",
    ]  # fmt: skip
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program}: {done.stderr[-2000:]}")
    regions: Any = json.loads(done.stdout)["CodeRegions"]
    found = {region["Name"]: region["SummaryView"]["TotalCycles"] for region in regions}
    return [found.get(f"b{number}", 0) for number in range(len(blocks))]


def _taken(functions: Functions, counts: Mapping[int, int], timing: CycleTable) -> float:
    """Cycles of taken branches beyond their issue, as in the table."""
    free = replace(timing, branch_taken=timing.branch_not_taken)
    with_, without = (
        sum(cost.cycles for cost in cost_by_function(functions, counts, t).values())
        for t in (timing, free)
    )
    return with_ - without


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cores", nargs="+", choices=CORES, default=["cortex-m7"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--kernels", choices=("tinyq", "cmsis-nn"), default="tinyq")
    arguments = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    for core in arguments.cores:
        for network in arguments.networks:
            found = estimate(network, load_core(core), arguments.kernels)
            best = found.by_pipeline or found.by_table
            rows.append(
                (
                    core, network, found.instructions, found.by_table, found.by_pipeline or "-",
                    found.by_llvm or "-", f"{best / found.macs:.2f}",
                )
            )  # fmt: skip
            print(rows[-1], file=sys.stderr)
    head = ("core", "network", "instructions", "table", "pipeline", "llvm-mca", "cycles a MAC")
    print("\n".join(table(head, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
