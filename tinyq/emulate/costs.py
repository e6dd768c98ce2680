"""What every layer of a network costs on an emulated core, function by function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyq.build import Artifact
from tinyq.build.arm import arm_toolchain
from tinyq.build.elf import read_elf
from tinyq.emulate.counting import count_instructions
from tinyq.emulate.cycles import Cost, cost_by_function
from tinyq.emulate.runner import Samples
from tinyq.emulate.trace import Counts

_BEGIN, _END = "tinyq_layer_begin", "tinyq_layer_end"
_CALIBRATION = 3  # phases before the first layer: start-up, the empty layer, what follows it


@dataclass(frozen=True)
class NetworkCosts:
    """Costs of one inference: ``layers`` by layer's name and function, ``functions`` over all.

    ``between`` is what calls the layers.
    """

    layers: Mapping[str, Mapping[str, Cost]]
    between: Cost

    @property
    def functions(self) -> dict[str, Cost]:
        """What every function cost, most cycles first."""
        total: dict[str, Cost] = {}
        for costs in self.layers.values():
            for name, cost in costs.items():
                total[name] = total.get(name, Cost()) + cost
        return dict(sorted(total.items(), key=lambda item: -item[1].cycles))

    @property
    def total(self) -> Cost:
        """The whole inference."""
        return sum(self.functions.values(), self.between)

    def layer(self, name: str) -> Cost:
        """One layer."""
        return sum(self.layers[name].values(), Cost())


def network_costs(artifact: Artifact, sample: Samples, emulator: str = "qemu") -> NetworkCosts:
    """Run one sample through a profiled build and count; raises what counting raises.

    ``sample`` has one array a network input, [1, ...]; ``emulator`` is qemu or unicorn.
    """
    if not artifact.profiled or artifact.core is None:
        raise ValueError("only profiled firmware tells its layers apart")
    tools = arm_toolchain(artifact.toolchain)
    functions = tools.functions(artifact.executable, artifact.core)
    addresses = {s.name: s.address & ~1 for s in read_elf(artifact.executable).symbols}
    phases = count_instructions(
        artifact, sample, (addresses[_BEGIN], addresses[_END]), emulator=emulator
    )
    # From here on phases alternate: a layer, from its first hook to its second; what is around it.
    running, around = phases[_CALIBRATION::2], phases[_CALIBRATION - 1 :: 2]
    names = [layer.name for layer in artifact.network.layers]
    if len(running) != len(names):
        raise ValueError(f"{len(running)} layers ran, the network has {len(names)}")
    timing, pipeline = artifact.core.timing, artifact.core.pipeline
    without_hooks = {n: body for n, body in functions.items() if n not in (_BEGIN, _END)}
    layers = {
        name: cost_by_function(without_hooks, counts, timing, pipeline)
        for name, counts in zip(names, running, strict=True)
    }
    invoke = f"{artifact.network.name}_invoke"
    called = cost_by_function({invoke: functions[invoke]}, _sum(around), timing, pipeline)
    return NetworkCosts(layers, called.get(invoke, Cost()))


def _sum(phases: Sequence[Counts]) -> Counts:
    total: Counter[int] = Counter()
    for counts in phases:
        total.update(counts)
    return dict(total)
