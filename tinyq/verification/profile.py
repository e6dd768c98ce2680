"""Measures a compiled folder: exact instructions of every layer, memory and code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyq.build import load_network
from tinyq.emulate.network import RunOptions, run_network
from tinyq.verification.samples import random_samples
from tinyq.verification.verify import read_manifest


@dataclass(frozen=True)
class LayerProfile:
    """One layer of one inference; ``instructions`` are counted, not estimated."""

    index: int
    name: str
    op: str
    kernel: str
    macs: int
    instructions: int
    constant_bytes: int

    @property
    def instructions_per_mac(self) -> float | None:
        """None for a layer that multiplies nothing."""
        return self.instructions / self.macs if self.macs else None


@dataclass(frozen=True)
class Profile:
    """A network on an emulated core; sizes in bytes.

    ``instructions`` is one inference from call to return; the layers' sum lacks what is between
    them. Counts depend on the data where a kernel branches on it: they are of one random sample.
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

    @property
    def instructions_per_mac(self) -> float | None:
        """Over the whole network; None when it multiplies nothing."""
        return self.instructions / self.macs if self.macs else None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object with every field."""
        return {
            **dataclasses.asdict(self),
            "instructions_per_mac": self.instructions_per_mac,
            "layers": [
                {**dataclasses.asdict(x), "instructions_per_mac": x.instructions_per_mac}
                for x in self.layers
            ],
        }


def profile(folder: Path, target: str = "", seed: int = 0) -> Profile:
    """Run one random sample on the emulated core. Raises TQ4xx and TQ503."""
    manifest = read_manifest(folder)
    network = load_network(folder)
    samples = random_samples(network.inputs, 1, seed)
    run = run_network(network, samples.inputs, RunOptions(layers=True, target=target))
    trace, footprint = run.trace, run.artifact.footprint
    if footprint is None or trace.instructions_per_inference is None:
        raise ValueError("the emulator counts no instructions")
    layers = tuple(
        LayerProfile(
            entry["index"],
            entry["name"],
            entry["op"],
            entry["kernel"],
            entry["macs"],
            trace.layer_instructions[entry["name"]][0],
            entry["constant_bytes"],
        )
        for entry in manifest["layers"]
        if entry["name"] in trace.layer_instructions
    )
    return Profile(
        manifest["name"],
        target or network.target,
        manifest["macs"],
        trace.instructions_per_inference[0],
        footprint.flash_bytes,
        footprint.code_bytes,
        network.arena_bytes,
        trace.stack_bytes or 0,
        layers,
    )
