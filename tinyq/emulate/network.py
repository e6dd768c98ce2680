"""Builds and runs a network in one call, layer by layer when asked."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tinyq.build import Artifact, Network, build_firmware, build_host
from tinyq.emulate.costs import NetworkCosts, network_costs
from tinyq.emulate.host import HostRunner
from tinyq.emulate.qemu import QemuRunner
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Emulator, Samples
from tinyq.emulate.trace import RunTrace
from tinyq.errors import error
from tinyq.target import load_board, load_core

EMULATORS = ("qemu", "host")


@dataclass(frozen=True)
class RunOptions:
    """How to build and run.

    ``emulator`` is one of ``EMULATORS``. ``layers`` records every layer, by a second, profiled
    build; ``costs`` also counts what each layer executes, function by function (QEMU only).
    ``target`` and ``board`` replace the manifest's target and the core's emulated board.
    ``sanitize`` is for the host only, ``allow_float`` for firmware only; ``timeout`` is in seconds
    a run.
    """

    emulator: str = "qemu"
    layers: bool = False
    costs: bool = False
    target: str = ""
    board: str = ""
    sanitize: bool = False
    allow_float: bool = False
    timeout: float = DEFAULT_TIMEOUT


@dataclass(frozen=True)
class NetworkRun:
    """A trace and the (unprofiled) artifact it came from.

    The artifact's files are gone: only what was read from them is left. ``costs`` holds what the
    first sample cost, if that was asked for.
    """

    trace: RunTrace
    artifact: Artifact
    costs: NetworkCosts | None = None


def run_network(
    network: Network, samples: Samples, options: RunOptions | None = None
) -> NetworkRun:
    """Build ``network`` in a temporary folder and run it over ``samples``.

    With ``layers`` the outputs, counts and stack come from the plain build and the layers from the
    profiled one. Raises what the builds and the emulators raise, and TQ303 for an unknown emulator.
    """
    options = options or RunOptions()
    if options.emulator not in EMULATORS:
        raise error(
            "TQ303",
            f"unknown emulator '{options.emulator}'",
            f"Accepted: {', '.join(EMULATORS)}.",
        )
    runner: Emulator = HostRunner() if options.emulator == "host" else QemuRunner()
    with tempfile.TemporaryDirectory(prefix="tinyq-build-") as name:
        folder = Path(name)
        costs: NetworkCosts | None = None
        artifact = _build(network, folder / "plain", options, profile=False)
        trace = runner.run(artifact, samples, timeout=options.timeout)
        if options.layers:
            profiled = _build(network, folder / "profiled", options, profile=True)
            by_layer = runner.run(profiled, samples, timeout=options.timeout)
            trace = dataclasses.replace(
                trace,
                layers=by_layer.layers,
                layer_instructions=by_layer.layer_instructions,
                elapsed=trace.elapsed + by_layer.elapsed,
            )
            if options.costs:
                costs = network_costs(profiled, [array[:1] for array in samples])
    return NetworkRun(trace, artifact, costs)


def _build(network: Network, folder: Path, options: RunOptions, *, profile: bool) -> Artifact:
    if options.emulator == "host":
        return build_host(network, folder, profile=profile, sanitize=options.sanitize)
    core = load_core(options.target or network.target)
    board = load_board(options.board or core.board)
    return build_firmware(
        network, core, board, folder, profile=profile, allow_float=options.allow_float
    )
