"""Builds and runs a network in one call, on one emulator or several, layer by layer when asked."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinyq.build import Artifact, Network, build_firmware, build_host
from tinyq.emulate.choice import Choice, choose
from tinyq.emulate.costs import NetworkCosts, network_costs
from tinyq.emulate.host import HostRunner
from tinyq.emulate.qemu import QemuRunner
from tinyq.emulate.renode import RenodeRunner
from tinyq.emulate.renode_platform import platform
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Emulator, Samples
from tinyq.emulate.trace import RunTrace
from tinyq.emulate.unicorn import TIMER, UnicornRunner
from tinyq.errors import error
from tinyq.target import Core, load_board, load_core


@dataclass(frozen=True)
class RunOptions:
    """How to build and run.

    ``emulator`` and ``toolchain`` as in :func:`choose`. ``layers`` records every layer, by a
    second, profiled build; ``costs`` also counts what each layer executes, function by function
    (QEMU and unicorn).
    ``target`` and ``board`` replace the manifest's target and the core's emulated board.
    ``sanitize`` is for the host only, ``allow_float`` for firmware only; ``timeout`` is in seconds
    a run.
    """

    emulator: str = ""
    layers: bool = False
    costs: bool = False
    target: str = ""
    board: str = ""
    sanitize: bool = False
    allow_float: bool = False
    timeout: float = DEFAULT_TIMEOUT
    toolchain: str = ""


@dataclass(frozen=True)
class NetworkRun:
    """A trace and the (unprofiled) artifact it came from; ``notes`` say what was replaced and why.

    The artifact's files are gone: only what was read from them is left. ``costs`` holds what the
    first sample cost, if that was asked for.
    """

    trace: RunTrace
    artifact: Artifact
    notes: tuple[str, ...] = ()
    costs: NetworkCosts | None = None


def run_network(
    network: Network, samples: Samples, options: RunOptions | None = None
) -> NetworkRun:
    """Build ``network`` in a temporary folder and run it over ``samples`` on one emulator.

    As :func:`run_everywhere`; raises TQ303 when several emulators are named.
    """
    runs = run_everywhere(network, samples, options)
    if len(runs) > 1:
        raise error("TQ303", f"{len(runs)} emulators", "Name one.")
    return runs[0]


def run_everywhere(
    network: Network, samples: Samples, options: RunOptions | None = None
) -> tuple[NetworkRun, ...]:
    """Build ``network`` and run it over ``samples`` on every emulator of ``options``, in order.

    QEMU and unicorn run the same firmware of the same board; Renode's has another port. With
    ``layers`` the outputs, counts and stack come from the plain build and the layers from the
    profiled one. Raises what the builds and the emulators raise, and TQ303 for an unknown emulator
    or compiler.
    """
    options = options or RunOptions()
    core = load_core(options.target or network.target)
    choice = choose(options.emulator, options.toolchain, core.name)
    if options.sanitize and set(choice.emulators) != {"host"}:
        raise error(
            "TQ303",
            f"--sanitize on {', '.join(choice.emulators)}",
            "Sanitizers run on this machine alone: add --emulator host.",
        )
    if options.allow_float and "unicorn" in choice.emulators:
        raise error("TQ409", "unicorn's cores start without their FPU")
    with tempfile.TemporaryDirectory(prefix="tinyq-build-") as folder:
        builds = _Builds(network, core, Path(folder), options, choice)
        return tuple(_run(builds, name, samples) for name in choice.emulators)


@dataclass
class _Builds:
    """The artifacts of one network; each is built when it is first asked for."""

    network: Network
    core: Core
    folder: Path
    options: RunOptions
    choice: Choice
    made: dict[tuple[str, bool], Artifact] = field(default_factory=dict)

    def get(self, emulator: str, *, profile: bool) -> Artifact:
        """The artifact that ``emulator`` runs."""
        options, board = self.options, load_board(self.options.board or self.core.board)
        own_timer = board.qemu is not None and board.qemu.timer is not None
        timer = TIMER if emulator == "unicorn" and not own_timer else None
        uart = platform(board).port if emulator == "renode" else None
        apart = emulator == "host" or timer is not None or uart is not None
        kind = emulator if apart else "firmware"
        if (kind, profile) not in self.made:
            place = self.folder / f"{kind}-{'profiled' if profile else 'plain'}"
            if kind == "host":
                made = build_host(self.network, place, profile=profile, sanitize=options.sanitize)
            else:
                made = build_firmware(
                    self.network, self.core, board, place, profile=profile,
                    allow_float=options.allow_float, toolchain=self.choice.toolchain, timer=timer,
                    uart=uart,
                )  # fmt: skip
            self.made[kind, profile] = made
        return self.made[kind, profile]


def _run(builds: _Builds, emulator: str, samples: Samples) -> NetworkRun:
    runner, options = _RUNNERS[emulator](), builds.options
    artifact = builds.get(emulator, profile=False)
    trace = runner.run(artifact, samples, timeout=options.timeout)
    costs: NetworkCosts | None = None
    if options.layers:
        profiled = builds.get(emulator, profile=True)
        by_layer = runner.run(profiled, samples, timeout=options.timeout)
        trace = dataclasses.replace(
            trace,
            layers=by_layer.layers,
            layer_instructions=by_layer.layer_instructions,
            elapsed=trace.elapsed + by_layer.elapsed,
        )
        if options.costs:
            costs = network_costs(profiled, [array[:1] for array in samples], emulator)
    return NetworkRun(trace, artifact, builds.choice.notes, costs)


_RUNNERS: Mapping[str, Callable[[], Emulator]] = {
    "qemu": QemuRunner,
    "unicorn": UnicornRunner,
    "renode": RenodeRunner,
    "host": HostRunner,
}
