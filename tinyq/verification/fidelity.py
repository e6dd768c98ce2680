"""How far the outputs of a changed network are from those of the one it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from tinyq.build import Port
from tinyq.ir import AnyArray, Graph
from tinyq.quant.levels import sqnr_db
from tinyq.verification.samples import SampleSet, load_samples, random_samples

_RANDOM = 16
_MOST = 200


class Runs(Protocol):
    """A network that computes outputs of integers."""

    def run(self, inputs: dict[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Outputs for inputs by name."""


def samples_for(graph: Graph, file: str) -> SampleSet:
    """Samples of a file, the first 200; without one 16 random ones. Raises TQ501 and TQ502."""
    ports = tuple(
        Port(v.name, v.type.shape, v.type.dtype.value, v.type.bytes) for v in graph.inputs
    )
    if not file:
        return random_samples(ports, _RANDOM, 0)
    quants = [value.type.quant for value in graph.inputs]
    steps = tuple(None if q is None else (q.scale, q.zero_point) for q in quants)
    found = load_samples(Path(file), ports, steps)
    kept = tuple(array[:_MOST] for array in found.inputs)
    labels = None if found.labels is None else found.labels[:_MOST]
    return SampleSet(kept, labels, f"the first {len(kept[0])} of {found.source}")


def fidelity_note(graph: Graph, before: Runs, after: Runs, samples: SampleSet) -> str:
    """One line: signal to noise of the outputs, and how often the largest one is the same."""
    pairs = []
    for k in range(samples.count):
        inputs = {
            value.name: array[k].reshape(value.type.shape)
            for value, array in zip(graph.inputs, samples.inputs, strict=True)
        }
        pairs.append((before.run(inputs), after.run(inputs)))
    zeros = [0 if v.type.quant is None else v.type.quant.zero_point for v in graph.outputs]
    first, second = (
        np.concatenate(
            [
                (np.asarray(array, np.float64) - zero).reshape(-1)
                for pair in pairs
                for array, zero in zip(pair[which], zeros, strict=True)
            ]
        )
        for which in (0, 1)
    )
    agreeing = sum(int(np.argmax(a[0]) == np.argmax(b[0])) for a, b in pairs)
    return (
        f"over {samples.source} samples the outputs have {sqnr_db(first, second):.1f} dB signal to "
        f"noise against the network's as given, and the same largest element in {agreeing} of "
        f"{samples.count}: check the accuracy before use"
    )
