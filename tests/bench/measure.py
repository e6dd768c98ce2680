"""Measures the reference networks: instructions, flash, arena and stack, exact and repeatable."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tinyq.api import CompileOptions, compile_model
from tinyq.build import load_network
from tinyq.codegen import write_program
from tinyq.emulate.network import RunOptions, run_network
from tinyq.verification.reference import outputs

HERE = Path(__file__).parent
MODELS = HERE.parents[1].parent / "shared" / "models" / "mlperf-tiny"
RECORDED = HERE / "recorded.json"
REFERENCE = HERE / "reference.json"
BOARDS = HERE / "boards.json"

NETWORKS = ("kws", "vww", "ic", "ad", "sww")
CORES = (
    "cortex-m0", "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"
)  # fmt: skip
GOALS = ("speed", "balanced", "size")

WORSE = 1.01
"""A figure may grow by this factor before it counts as worse."""


@dataclass(frozen=True)
class LayerFigures:
    """One layer: its kernel, multiply-accumulates and counted instructions."""

    name: str
    op: str
    kernel: str
    macs: int
    instructions: int


@dataclass(frozen=True)
class Figures:
    """One network on one core; sizes in bytes. ``equal``: outputs equal the reference's.

    ``cycles`` is an estimate without wait states, 0 where none was made.
    """

    network: str
    core: str
    goal: str
    instructions: int
    code: int
    constants: int
    arena: int
    data: int
    stack: int
    arena_bound: int
    macs: int
    equal: bool
    layers: tuple[LayerFigures, ...] = ()
    cycles: int = 0

    @property
    def flash(self) -> int:
        """Code and constants."""
        return self.code + self.constants

    @property
    def ram(self) -> int:
        """Arena, variables and the measured stack."""
        return self.arena + self.data + self.stack

    @property
    def compared(self) -> dict[str, int]:
        """What must not get worse; cycles where they were estimated."""
        found = {
            "instructions": self.instructions,
            "flash": self.flash,
            "ram": self.ram,
            "arena": self.arena,
            "stack": self.stack,
        }
        return {**found, "cycles": self.cycles} if self.cycles else found


def measure(
    network: str,
    core: str,
    goal: str,
    layers: bool = False,
    kernels: str = "tinyq",
    cycles: bool = False,
    oracle: str = "ort",
) -> Figures:
    """Compile, build and run one inference of a network; raises what those raise."""
    options = CompileOptions(core, name=network, optimize=goal, kernels=kernels, oracle=oracle)
    compiled = compile_model(MODELS / f"{network}_int8.onnx", options)
    manifest = compiled.program.manifest
    value = compiled.graph.inputs[0]
    x = np.random.default_rng(0).integers(-128, 128, value.type.shape).astype(np.int8)
    with tempfile.TemporaryDirectory() as folder:
        write_program(compiled.program, Path(folder) / network)
        loaded = load_network(Path(folder) / network)
        run = run_network(loaded, [x], RunOptions(layers=layers or cycles, costs=cycles))
    footprint, trace = run.artifact.footprint, run.trace
    assert footprint is not None
    assert trace.instructions_per_inference is not None
    wanted = outputs(compiled.graph, {value.name: x})
    equal = all(
        np.array_equal(w.reshape(-1), got[0].reshape(-1))
        for w, got in zip(wanted, trace.outputs, strict=True)
    )
    counted = tuple(
        LayerFigures(
            layer["name"], layer["op"], layer["kernel"], layer["macs"],
            trace.layer_instructions.get(layer["name"], (0,))[0],
        )
        for layer in manifest["layers"]
    ) if layers else ()  # fmt: skip
    return Figures(
        network=network, core=core, goal=goal,
        instructions=trace.instructions_per_inference[0],
        code=footprint.code_bytes, constants=footprint.constant_bytes,
        arena=loaded.arena_bytes, data=footprint.data_bytes, stack=trace.stack_bytes or 0,
        arena_bound=manifest["arena_lower_bound"], macs=manifest["macs"], equal=equal,
        layers=counted, cycles=round(run.costs.total.cycles) if run.costs else 0,
    )  # fmt: skip


def compiler() -> str:
    """The cross compiler's version, on which instruction counts and code sizes depend."""
    command = ["arm-none-eabi-gcc", "-dumpversion"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def key_of(network: str, core: str, goal: str) -> str:
    """Name of a measurement in the recorded file."""
    return f"{network} {core} {goal}"


def read_recorded() -> dict[str, object]:
    """The recorded figures, empty when there are none."""
    if not RECORDED.is_file():
        return {"compiler": "", "figures": {}}
    return dict(json.loads(RECORDED.read_text(encoding="utf-8")))


def worse(found: Figures, recorded: dict[str, int]) -> list[str]:
    """What grew by more than a hundredth, in words."""
    return [
        f"{key_of(found.network, found.core, found.goal)}: {name} {recorded[name]:,} -> {now:,}"
        for name, now in found.compared.items()
        if name in recorded and now > recorded[name] * WORSE
    ]


def as_json(figures: list[Figures]) -> dict[str, object]:
    """Every figure, for machines."""
    return {
        "compiler": compiler(),
        "figures": [{**asdict(f), "flash": f.flash, "ram": f.ram} for f in figures],
    }
