"""Runs a network's samples on a board."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tinyq.build import Network, Port
from tinyq.build.network import network_digest
from tinyq.device import frames
from tinyq.device.link import (
    INPUTS_DIFFER,
    NO_SUCH_RUN,
    Link,
    LostError,
    RefusedError,
    chunks,
)
from tinyq.emulate.trace import RunTrace, sample_rows
from tinyq.errors import TinyqError, error

COUNTERS = {0: "", 1: "DWT CYCCNT", 2: "SysTick", 3: "a timer at the core's clock"}
_HELLO = struct.Struct("<16s6I")
_ATTEMPTS = 3

Progress = Callable[[int, int], None]
_T = TypeVar("_T")


@dataclass(frozen=True)
class DeviceOptions:
    """Which port, and how long to wait, in seconds.

    ``port`` is a device (``/dev/ttyACM0``, ``COM3``) or a URL of pyserial's (``socket://host:port``).
    ``answer`` is for requests that take no time, ``timeout`` for one inference, ``reconnect`` for a
    port that went away to come back.
    """

    port: str
    baud: int = 115_200
    timeout: float = 60.0
    answer: float = 4.0
    reconnect: float = 10.0


@dataclass(frozen=True)
class DeviceInfo:
    """What a board says of itself; ``core_hz`` is 0 when it does not know its clock."""

    digest: bytes
    sample_bytes: int
    output_bytes: int
    core_hz: int
    counter: str
    golden_samples: int
    golden_crc: int
    name: str


@dataclass(frozen=True)
class DeviceRun:
    """A run over n samples: ``cycles`` has one count a sample, empty without a counter.

    ``golden_crc`` is the CRC of the outputs of the firmware's own golden samples, ``golden_passed``
    whether all were right. ``retries`` counts repeated requests, ``reconnects`` lost ports.
    """

    trace: RunTrace
    info: DeviceInfo
    cycles: tuple[int, ...]
    golden_crc: int
    golden_passed: bool
    retries: int
    reconnects: int


def run_on_device(
    network: Network,
    samples: Sequence[NDArray[np.generic]],
    options: DeviceOptions,
    tell: Progress | None = None,
) -> DeviceRun:
    """Run every sample on the board, which has to carry this very network.

    A port that goes away for less than ``options.reconnect`` seconds is opened again, and the run
    goes on with the sample that was not finished. Raises TQ502 for samples that do not fit, and
    TQ901 to TQ907.
    """
    rows = sample_rows(network, samples)
    session = _Session(network, options)
    start = time.monotonic()
    try:
        session.connect()
        crc, passed = session.repeated(session.self_test, "the self test")
        results: list[tuple[bytes, int]] = []
        for k, row in enumerate(rows):
            if tell is not None:
                tell(k, len(rows))
            done = f"{k} of {len(rows)} samples"
            results.append(session.repeated(partial(session.sample, k, row), done))
    finally:
        session.close()
    cycles = tuple(count for _, count in results) if session.info.counter else ()
    outputs = _outputs(network.outputs, [data for data, _ in results])
    trace = RunTrace("device", len(rows), outputs, time.monotonic() - start)
    return DeviceRun(
        trace, session.info, cycles, crc, passed, session.retries, session.reconnects
    )  # fmt: skip


class _Session:
    """One run: the link, which may be replaced, and what was asked of the board."""

    info: DeviceInfo

    def __init__(self, network: Network, options: DeviceOptions) -> None:
        self.network, self.options = network, options
        self.link: Link | None = None
        self.reconnects = 0
        self._earlier_retries = 0
        self._inference = 0.3  # seconds, before any was measured

    @property
    def retries(self) -> int:
        return self._earlier_retries + (self.link.retries if self.link else 0)

    def close(self) -> None:
        if self.link is not None:
            self._earlier_retries += self.link.retries
            self.link.close()
        self.link = None

    def connect(self) -> None:
        """Open the port and shake hands. Raises TQ902 to TQ906."""
        self.close()
        self.link = Link(self.options.port, self.options.baud)
        try:
            self.info = _parse(self.ask(frames.HELLO))
        except LostError as lost:
            raise error("TQ906", f"{self.options.port} closed while opening: {lost}") from lost
        except RefusedError as refused:
            raise error("TQ904", f"{self.options.port}: {refused}") from refused
        if self.info.digest != network_digest(self.network):
            raise error(
                "TQ905",
                f"the board runs '{self.info.name}' ({self.info.digest.hex()[:12]}), this is "
                f"'{self.network.name}' ({network_digest(self.network).hex()[:12]})",
            )

    def ask(self, kind: int, payload: bytes = b"") -> bytes:
        """An answer that takes the board no time."""
        assert self.link is not None
        return self.link.request(kind, payload, self.options.answer)

    def compute(self, kind: int, payload: bytes, inferences: int) -> bytes:
        """An answer that takes so many inferences."""
        assert self.link is not None
        start = time.monotonic()
        reply = self.link.request(
            kind, payload, self.options.timeout * inferences, inferences * self._inference
        )
        # Taken as it is: a repeated request only makes the next wait longer.
        self._inference = (time.monotonic() - start) / inferences
        return reply

    def repeated(self, action: Callable[[], _T], done: str) -> _T:
        """``action``, again after a lost port or a reset of the board; ``done`` is for errors."""
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                return action()
            except LostError as lost:
                reason = str(lost)
                self._reconnect(done, reason)
            except RefusedError as refused:
                reason = str(refused)
                if refused.code not in (INPUTS_DIFFER, NO_SUCH_RUN):
                    raise error("TQ907", f"after {done}: {refused}") from refused
        raise error("TQ907", f"after {done}, tried {_ATTEMPTS} times: {reason}")

    def _reconnect(self, done: str, reason: str) -> None:
        end = time.monotonic() + self.options.reconnect
        while True:
            try:
                self.connect()
            except TinyqError as problem:
                if problem.diagnostics[0].code not in ("TQ902", "TQ903", "TQ906"):
                    raise
                if time.monotonic() >= end:
                    raise error(
                        "TQ906",
                        f"{self.options.port} went away after {done} ({reason}), and did not come "
                        f"back in {self.options.reconnect:g} s",
                    ) from problem
                time.sleep(0.2)
            else:
                self.reconnects += 1
                return

    def self_test(self) -> tuple[int, bool]:
        """CRC of the golden samples' outputs, and whether they were right."""
        inferences = max(1, self.info.golden_samples)
        wrong, crc = struct.unpack("<II", self.compute(frames.TEST, b"", inferences))
        return crc, wrong == 0 and crc == self.info.golden_crc

    def sample(self, number: int, row: bytes) -> tuple[bytes, int]:
        """Outputs and cycles of one sample."""
        for offset, piece in chunks(row):
            self.ask(frames.WRITE, struct.pack("<I", offset) + piece)
        request = struct.pack("<II", number, zlib.crc32(row))
        cycles, crc = struct.unpack("<II", self.compute(frames.INVOKE, request, 1))
        total, step = self.info.output_bytes, frames.MOST_PAYLOAD
        outputs = b"".join(
            self.ask(frames.READ, struct.pack("<III", number, at, min(step, total - at)))
            for at in range(0, total, step)
        )
        if zlib.crc32(outputs) != crc:
            raise RefusedError(NO_SUCH_RUN)
        return outputs, cycles


def _parse(payload: bytes) -> DeviceInfo:
    if len(payload) < _HELLO.size:
        raise error("TQ904", f"the board's first answer has {len(payload)} bytes")
    digest, sample, output, core_hz, counter, golden, crc = _HELLO.unpack_from(payload)
    name = payload[_HELLO.size :].decode("ascii", "replace")
    return DeviceInfo(
        digest, sample, output, core_hz, COUNTERS.get(counter, ""), golden, crc, name
    )  # fmt: skip


def _outputs(ports: Sequence[Port], rows: Sequence[bytes]) -> tuple[NDArray[np.generic], ...]:
    """One array [n, elements] an output, from all outputs of each sample one after the other."""
    table = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
    ends = np.cumsum([port.bytes for port in ports])
    return tuple(
        np.ascontiguousarray(table[:, end - port.bytes : end]).view(np.dtype(port.dtype))
        for port, end in zip(ports, ends, strict=True)
    )
