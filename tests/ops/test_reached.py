"""No kernel of tinyq's own without a table that runs it on an emulated core."""

from __future__ import annotations

import test_counts
import test_dynamic
import test_kernel_table
import test_mve_kernels
import test_on_cores
import test_packed_kernels

from tinyq.ops import REGISTRY
from tinyq.select import Goal, select
from tinyq.target import load_core

# Their tables are of networks, since alone they have neither operand nor purpose.
BY_NETWORKS = {
    "pack_s8": "tests/plan/test_packed.py, test_packed_on_the_emulated_core",
    "unpack_s8": "tests/plan/test_packed.py, test_packed_on_the_emulated_core",
}
FOREIGN = "cmsis_"  # tests/cmsis_nn: they need the library


def reached() -> set[str]:
    """Names of the kernels in what those tables' tests run in QEMU."""
    found: set[str] = set()
    for _, kernels, count in test_kernel_table.CORES:
        found |= set(kernels(min(count, 8)).kernels.values())
    found |= set(test_mve_kernels.all_kernels().kernels.values())
    found |= {kernel for _, kernel in test_packed_kernels.ON_CORES}
    found |= {test_packed_kernels.CODES, test_packed_kernels.DENSE_CODES}
    found |= {test_counts.CONV, test_counts.DENSE}
    for target, arithmetic in test_on_cores.EMULATED:
        graph = test_on_cores.everything(arithmetic).graph
        chosen = select(graph, load_core(target), Goal.SPEED)
        found |= {layer.call.kernel for layer in chosen.layers}
    for target in test_dynamic.EMULATED:
        for model in test_dynamic.ON_CORES:
            chosen = select(test_dynamic.MODELS[model].graph, load_core(target), Goal.SPEED)
            found |= {layer.call.kernel for layer in chosen.layers}
    return found


def test_every_kernel_runs_on_an_emulated_core() -> None:
    kernels = {k.name for operator in REGISTRY.operators.values() for k in operator.kernels}
    own = {name for name in kernels if not name.startswith(FOREIGN)}
    assert own - reached() - BY_NETWORKS.keys() == set()
    assert BY_NETWORKS.keys() <= own
