"""Measures a compiled folder: exact instructions of every layer, estimated cycles, memory, code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyq.build import load_network
from tinyq.emulate.costs import NetworkCosts
from tinyq.emulate.cycles import Cost
from tinyq.emulate.network import NetworkRun, RunOptions, run_network
from tinyq.errors import TinyqError, error
from tinyq.target import Core, load_core
from tinyq.verification.samples import random_samples
from tinyq.verification.verify import read_manifest


@dataclass(frozen=True)
class LayerProfile:
    """One layer of one inference; ``instructions`` are counted, ``cycles`` estimated from them."""

    index: int
    name: str
    op: str
    kernel: str
    macs: int
    instructions: int
    constant_bytes: int
    cycles: int | None = None

    @property
    def instructions_per_mac(self) -> float | None:
        """None for a layer that multiplies nothing."""
        return self.instructions / self.macs if self.macs else None

    @property
    def macs_per_cycle(self) -> float | None:
        """None for a layer that multiplies nothing, or without cycles."""
        return self.macs / self.cycles if self.macs and self.cycles else None


@dataclass(frozen=True)
class FunctionProfile:
    """One function of the generated code, or a library's, over one inference."""

    name: str
    instructions: int
    cycles: int


@dataclass(frozen=True)
class Profile:
    """A network on an emulated core; sizes in bytes.

    ``instructions`` is one inference from call to return; the layers' sum lacks what is between
    them. Counts depend on the data where a kernel branches on it: they are of one random sample.
    ``cycles`` is an estimate by the core's table or pipeline, without wait states and caches, None
    where it could not be made, and ``cycles_note`` then says why. ``clock_hz`` is the clock that
    milliseconds are given for (0: none). ``notes`` say what
    was used in place of what is missing.
    """

    name: str
    target: str
    macs: int
    instructions: int
    flash_bytes: int
    code_bytes: int
    arena_bytes: int
    stack_bytes: int
    layers: tuple[LayerProfile, ...]
    functions: tuple[FunctionProfile, ...] = ()
    cycles: int | None = None
    cycles_note: str = ""
    clock_hz: int = 0
    emulator: str = "qemu"
    compiler: str = ""
    notes: tuple[str, ...] = ()

    @property
    def instructions_per_mac(self) -> float | None:
        """Over the whole network; None when it multiplies nothing."""
        return self.instructions / self.macs if self.macs else None

    @property
    def macs_per_cycle(self) -> float | None:
        """Over the whole network; None when it multiplies nothing, or without cycles."""
        return self.macs / self.cycles if self.macs and self.cycles else None

    @property
    def milliseconds(self) -> float | None:
        """One inference at the clock, from the estimated cycles; None without either."""
        return 1e3 * self.cycles / self.clock_hz if self.cycles and self.clock_hz else None

    @property
    def core(self) -> Core:
        """The core it ran on."""
        return load_core(self.target)

    @property
    def mac_efficiency(self) -> float | None:
        """Multiply-accumulates a cycle as a part of the most that the core's instructions allow."""
        reached = self.macs_per_cycle
        return reached / self.core.peak_macs_per_cycle if reached else None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object with every field."""
        derived = ("instructions_per_mac", "macs_per_cycle")
        return {
            **dataclasses.asdict(self),
            **{name: getattr(self, name) for name in derived},
            "milliseconds": self.milliseconds,
            "mac_efficiency": self.mac_efficiency,
            "layers": [
                {**dataclasses.asdict(x), **{name: getattr(x, name) for name in derived}}
                for x in self.layers
            ],
        }


def profile(
    folder: Path,
    target: str = "",
    seed: int = 0,
    clock_hz: int = 0,
    *,
    emulator: str = "",
    toolchain: str = "",
) -> Profile:
    """Run one random sample on the emulated core.

    ``emulator`` (one) and ``toolchain`` as in :func:`tinyq.emulate.choose`. Raises TQ303 for an
    emulator that counts no instructions, TQ4xx and TQ503.
    """
    if emulator not in ("", "qemu", "unicorn", "renode"):
        raise error("TQ303", f"--emulator {emulator}", "Accepted: qemu, unicorn, renode.")
    manifest = read_manifest(folder)
    network = load_network(folder)
    samples = random_samples(network.inputs, 1, seed)
    # Renode counts instructions between two places, but not how often each one ran.
    costs = emulator != "renode"
    note = "" if costs else "Cycles are not estimated: Renode does not count single instructions."
    options = RunOptions(
        emulator=emulator, toolchain=toolchain, layers=True, costs=costs, target=target
    )
    try:
        run = run_network(network, samples.inputs, options)
    except TinyqError as problem:
        # The counting plugin needs a compiler for this machine, which the rest does not.
        if {d.code for d in problem.diagnostics} != {"TQ410"}:
            raise
        note = f"Cycles are not estimated: {problem.diagnostics[0].found}."
        run = run_network(network, samples.inputs, dataclasses.replace(options, costs=False))
    footprint, counts = run.artifact.footprint, run.trace.instructions_per_inference
    if footprint is None or counts is None:
        raise ValueError("the emulator counts no instructions")
    return Profile(
        name=manifest["name"],
        target=target or network.target,
        macs=manifest["macs"],
        instructions=counts[0],
        flash_bytes=footprint.flash_bytes,
        code_bytes=footprint.code_bytes,
        arena_bytes=network.arena_bytes,
        stack_bytes=run.trace.stack_bytes or 0,
        layers=_layers(manifest, run),
        functions=_functions(run.costs) if run.costs else (),
        cycles=round(run.costs.total.cycles) if run.costs else None,
        cycles_note=note,
        clock_hz=clock_hz,
        emulator=run.trace.emulator,
        compiler=run.artifact.compiler,
        notes=run.notes,
    )


def _layers(manifest: dict[str, Any], run: NetworkRun) -> tuple[LayerProfile, ...]:
    counted = run.trace.layer_instructions
    return tuple(
        LayerProfile(
            entry["index"], entry["name"], entry["op"], entry["kernel"], entry["macs"],
            counted[entry["name"]][0], entry["constant_bytes"],
            round(run.costs.layer(entry["name"]).cycles) if run.costs else None,
        )
        for entry in manifest["layers"]
        if entry["name"] in counted
    )  # fmt: skip


def _functions(costs: NetworkCosts) -> tuple[FunctionProfile, ...]:
    def row(name: str, cost: Cost) -> FunctionProfile:
        return FunctionProfile(name, cost.instructions, round(cost.cycles))

    return tuple(row(name, cost) for name, cost in costs.functions.items())
