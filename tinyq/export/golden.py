"""Golden samples: seeded inputs and the outputs that the integer reference computes for them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from tinyq.build import Port
from tinyq.errors import error
from tinyq.ir import AnyArray, Graph
from tinyq.verification.reference import outputs
from tinyq.verification.samples import random_samples

SAMPLES = 3
MOST_BYTES = 16 * 1024
"""Inputs beyond this many bytes are not stored, as they take flash; one sample always is."""


@dataclass(frozen=True, eq=False)
class Golden:
    """n samples: one array [n, elements] for every input and every output.

    ``crc`` is the CRC-32 (as in zlib) of all outputs' bytes, little-endian, sample by sample.
    """

    inputs: tuple[AnyArray, ...]
    outputs: tuple[AnyArray, ...]
    crc: int

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.outputs[0])


def golden_samples(graph: Graph, count: int = SAMPLES, seed: int = 0) -> Golden:
    """``count`` seeded random samples, fewer when their inputs would exceed ``MOST_BYTES``.

    Raises TQ303 for a count below one.
    """
    if count < 1:
        raise error("TQ303", f"{count} golden samples", "Ask for at least one.")
    ports = tuple(
        Port(value.name, value.type.shape, value.type.dtype.value, value.type.bytes)
        for value in graph.inputs
    )
    one = sum(port.bytes for port in ports)
    samples = random_samples(ports, max(1, min(count, MOST_BYTES // max(1, one))), seed)
    rows = [
        outputs(
            graph,
            {
                value.name: array[k].reshape(value.type.shape)
                for value, array in zip(graph.inputs, samples.inputs, strict=True)
            },
        )
        for k in range(samples.count)
    ]
    results = tuple(np.stack([a.reshape(-1) for a in column]) for column in zip(*rows, strict=True))
    return Golden(
        tuple(a.reshape(samples.count, -1) for a in samples.inputs), results, _crc(results)
    )


def _crc(results: tuple[AnyArray, ...]) -> int:
    crc = 0
    for k in range(len(results[0])):
        for array in results:
            little = np.ascontiguousarray(array[k]).astype(array.dtype.newbyteorder("<"))
            crc = zlib.crc32(little.tobytes(), crc)
    return crc
