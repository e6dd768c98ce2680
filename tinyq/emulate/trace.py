"""What a run of an artifact gives back, and the files through which harness and host talk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyq.build import Artifact, Network, Port
from tinyq.errors import TinyqError, error

Counts = dict[int, int]
"""Executions by address of the instruction."""

_MAGIC = b"TQS1"
_UNKNOWN = 0xFFFFFFFF
_HEAD = 4  # words of a record's head: tag, index, value, bytes of payload


@dataclass(frozen=True)
class RunTrace:
    """Results of one network over n samples.

    ``outputs``: one array [n, elements] an output, of the output's dtype. ``layers``: the same for
    every layer by name, when the artifact is profiled, else ``None``.
    ``instructions_per_inference``: exact counts, one a sample, from the first instruction of invoke
    to its return, or ``None`` when the emulator does not count. ``layer_instructions``: one count
    a sample for each layer, between the two hook calls. ``stack_bytes``: the deepest stack that
    invoke used, over all samples. ``elapsed``: wall-clock seconds of the run.
    """

    emulator: str
    samples: int
    outputs: tuple[NDArray[np.generic], ...]
    elapsed: float
    instructions_per_inference: tuple[int, ...] | None = None
    stack_bytes: int | None = None
    layers: Mapping[str, NDArray[np.generic]] | None = None
    layer_instructions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def samples_file(network: Network, samples: Sequence[NDArray[np.generic]]) -> bytes:
    """Contents of ``samples.bin``; ``samples`` and errors as for :func:`sample_rows`."""
    rows = sample_rows(network, samples)
    head = np.array([len(rows), network.sample_bytes], "<u4").tobytes()
    return _MAGIC + head + b"".join(rows)


def sample_rows(network: Network, samples: Sequence[NDArray[np.generic]]) -> list[bytes]:
    """The bytes of every sample: all inputs, one after the other.

    ``samples`` has one array a network input, its first axis the samples, in the input's dtype.
    Raises TQ502 when number, dtype or size do not fit.
    """
    if len(samples) != len(network.inputs):
        raise _misfit(f"{len(samples)} arrays for {len(network.inputs)} inputs")
    columns = []
    count = len(samples[0])
    for array, port in zip(samples, network.inputs, strict=True):
        if len(array) != count:
            raise _misfit("the inputs have different numbers of samples")
        if array.dtype != np.dtype(port.dtype):
            raise _misfit(f"input '{port.name}' is {array.dtype}, not {port.dtype}")
        if math.prod(array.shape[1:]) * array.itemsize != port.bytes:
            shape = "x".join(map(str, array.shape[1:]))
            raise _misfit(f"a sample of input '{port.name}' is {shape}, not {port.bytes} bytes")
        raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        columns.append(raw.reshape(count, port.bytes))
    return [row.tobytes() for row in np.concatenate(columns, axis=1)]


def read_outputs(
    contents: bytes,
    artifact: Artifact,
    emulator: str,
    elapsed: float,
    to_instructions: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None,
) -> RunTrace:
    """Read what the harness wrote; ``to_instructions`` turns timer ticks into instructions.

    Raises :class:`ValueError` when the file is not what the harness writes.
    """
    raw = np.frombuffer(contents, np.uint8)
    empty_ticks, hook_ticks, empty_stack, start = _calibration(raw)
    records = _sample_type(raw, start)
    count = int(raw[-8:].view("<u4")[0])
    body = raw[start : len(raw) - 16]
    if bytes(raw[-16:-15]) != b"E" or records.itemsize * count != len(body):
        raise ValueError("outputs.bin does not hold whole samples")
    table = body.view(records) if count else np.empty(0, records)
    outputs, layers, layer_ticks = [], {}, {}
    for name in records.names or ():
        if name.startswith("O"):
            outputs.append(_typed(table[name]["payload"], _port(artifact.network.outputs, name)))
        elif name.startswith("L"):
            port = _port(artifact.network.layers, name)
            layers[port.name] = _typed(table[name]["payload"], port)
            layer_ticks[port.name] = table[name]["head"][:, 2].astype(np.int64)
    stack: int | None = None
    totals: tuple[int, ...] | None = None
    layer_counts: dict[str, tuple[int, ...]] = {}
    end = table["S"]["head"].astype(np.int64) if count else np.empty((0, _HEAD), np.int64)
    if count and empty_stack != _UNKNOWN and not artifact.profiled:
        stack = int(end[:, 1].max()) - empty_stack
    if count and to_instructions is not None:
        if not artifact.profiled:
            overhead = to_instructions(np.array([empty_ticks], np.int64))[0]
            # The empty call's own instruction, its return, is part of the overhead.
            totals = tuple(map(int, to_instructions(end[:, 2]) - overhead + 1))
        between = to_instructions(np.array([hook_ticks], np.int64))[0]
        for layer, ticks in layer_ticks.items():
            layer_counts[layer] = tuple(map(int, to_instructions(ticks) - between))
    return RunTrace(
        emulator=emulator,
        samples=count,
        outputs=tuple(outputs),
        elapsed=elapsed,
        instructions_per_inference=totals,
        stack_bytes=stack,
        layers=layers if artifact.profiled else None,
        layer_instructions=layer_counts,
    )


def _calibration(raw: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Ticks of an empty call and of empty hooks, stack of an empty call, offset of what follows."""
    if len(raw) < 36 or raw[0] != ord("C"):
        raise ValueError("outputs.bin has no calibration record")
    words = raw[:20].view("<u4")
    return int(words[2]), int(words[1]), int(words[4]), 20


def _sample_type(raw: NDArray[np.uint8], start: int) -> np.dtype[np.void]:
    """Layout of one sample's records; all samples have the same."""
    fields = []
    at = start
    while True:
        words = raw[at : at + 16].view("<u4")
        if len(words) != _HEAD:
            raise ValueError("outputs.bin ends inside a record")
        tag, size = chr(int(words[0])), int(words[3])
        if tag == "E":
            return np.dtype([])
        name = tag if tag == "S" else f"{tag}{int(words[1])}"
        entry = np.dtype([("head", "<u4", (_HEAD,)), ("payload", "u1", (size,))])
        fields.append((name, entry))
        at += 16 + size
        if tag == "S":
            return np.dtype(fields)


def _port(ports: tuple[Port, ...], name: str) -> Port:
    number = int(name[1:])
    if number < len(ports):
        return ports[number]
    return Port(f"layer{number}", (), "uint8", 0)


def _typed(payload: NDArray[np.uint8], port: Port) -> NDArray[np.generic]:
    return np.ascontiguousarray(payload).view(np.dtype(port.dtype))


def _misfit(found: str) -> TinyqError:
    return error("TQ502", found)
