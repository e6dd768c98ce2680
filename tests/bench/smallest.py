"""Flash of the goal `size` beside that of the portable kernels, network by network.

python -m bench.smallest [--cores cortex-m4 ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.measure import CORES, MODELS, NETWORKS
from bench.tables import table

from tinyq.api import CompileOptions, lower_model
from tinyq.build import build_firmware, load_network
from tinyq.codegen import generate, write_program
from tinyq.ir import Graph
from tinyq.ops import REGISTRY
from tinyq.plan.limits import Limits, fit
from tinyq.plan.memory import MemoryPlan, plan_shared
from tinyq.select import Goal, Schedule, select
from tinyq.target import Core, load_board, load_core

ALLOWED = 1.05
"""How much flash `size` may take, as a factor of the portable kernels'."""


@dataclass(frozen=True)
class Flash:
    """Bytes of code and constants of one network's firmware on a core."""

    network: str
    core: str
    size: int
    portable: int

    @property
    def ratio(self) -> float:
        """At most `ALLOWED`."""
        return self.size / self.portable


@cache
def _lowered(network: str) -> Graph:
    return lower_model(MODELS / f"{network}_int8.onnx", CompileOptions())[0]


def flash(network: str, core: str) -> Flash:
    """Build both ways; raises what compiling and building raise."""
    graph, found = _lowered(network), load_core(core)
    # Every operator's first kernel is the portable one, plain C for every shape and core.
    portable = {node.name: REGISTRY.operators[node.op].kernels[0].name for node in graph.nodes}
    return Flash(
        network,
        core,
        _built(*_as_compiled(graph, found), network),
        _built(*plan_shared(select(graph, found, Goal.SIZE, forced=portable)), network),
    )


def _as_compiled(graph: Graph, core: Core) -> tuple[Schedule, MemoryPlan]:
    """What `compile --optimize size` takes, stripes of rows included."""
    found = fit(graph, core, Goal.SIZE, Limits())
    return found.schedule, found.plan


def _built(shared: Schedule, memory: MemoryPlan, network: str) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_program(generate(shared, memory, network), folder / network)
        board = load_board(shared.core.board)
        built = build_firmware(load_network(folder / network), shared.core, board, folder / "build")
        assert built.footprint is not None
        return built.footprint.code_bytes + built.footprint.constant_bytes


def _all(cores: list[str]) -> Iterator[Flash]:
    for network in NETWORKS:
        for core in cores:
            yield flash(network, core)


def main() -> int:
    """Print the table; the exit status is 1 when a network takes more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cores", nargs="+", choices=CORES, default=list(CORES))
    found = list(_all(parser.parse_args().cores))
    rows = [(f.network, f.core, f.size, f.portable, f"{f.ratio:.3f}") for f in found]
    print("\n".join(table(("network", "core", "size", "portable", "ratio"), rows)))
    return int(any(f.ratio > ALLOWED for f in found))


if __name__ == "__main__":
    sys.exit(main())
