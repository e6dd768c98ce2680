"""Requests over a serial port: repeated until they are answered, or for too long."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from tinyq.device.frames import MOST_FRAME, MOST_PAYLOAD, REFUSED, REPLY, VERSION, Decoder, Frame
from tinyq.errors import TinyqError, error

REASONS = {
    1: "it speaks another version of the protocol",
    2: "it does not know the request",
    3: "the request is out of range",
    4: "the inputs that it has differ from those sent",
    5: "it has no outputs of that run",
    6: "invoke returned an error",
}
INPUTS_DIFFER, NO_SUCH_RUN = 4, 5
# Seconds.
_POLL = 0.02
_LATENCY = 0.1


class LostError(Exception):
    """The port went away: the cable, the board's supply, or the other end of a socket."""


class RefusedError(Exception):
    """The board understood a request and did not do it; ``code`` is one of ``REASONS``."""

    def __init__(self, code: int) -> None:
        super().__init__(REASONS.get(code, f"reason {code}"))
        self.code = code


class Link:
    """An open port. One request at a time; replies to earlier ones are ignored."""

    def __init__(self, port: str, baud: int) -> None:
        """Open ``port``, a device or a URL of pyserial's. Raises TQ901 and TQ902."""
        self.port, self.baud = port, baud
        self.retries = 0
        self._sequence = 0
        self._decoder = Decoder()
        self._arrived = 0
        self._serial = _open(port, baud)

    def close(self) -> None:
        """Close the port, which may be gone already."""
        with contextlib.suppress(OSError):
            self._serial.close()

    def request(self, kind: int, payload: bytes, patience: float, work: float = 0.0) -> bytes:
        """The reply's payload; the request is repeated for ``patience`` seconds.

        ``work`` is how long the board is expected to compute, in seconds.

        Raises :class:`LostError`, :class:`RefusedError`, TQ903 without an answer, and TQ904 for an
        answer of another protocol version.
        """
        self._sequence = (self._sequence + 1) & 0xFFFF
        request = Frame(kind, self._sequence, payload).encode()
        end = time.monotonic() + patience
        wait = work + _LATENCY + 3 * 10 * (len(request) + MOST_FRAME) / self.baud
        attempt = 0
        while time.monotonic() < end:
            # A frame cut short keeps the board waiting for the rest of it: zeros end that.
            self._write(request if attempt == 0 else bytes(MOST_FRAME) + request)
            self.retries += attempt > 0
            reply = self._await(kind, min(end, time.monotonic() + wait))
            if reply is not None:
                return reply
            attempt += 1
            wait = max(wait, min(1.5 * wait, 2.0 if work else 0.4))
        raise self._silent()

    def _await(self, kind: int, until: float) -> bytes | None:
        while True:
            for frame in self._decoder.feed(self._read()):
                if frame.sequence != self._sequence:
                    continue
                if frame.version != VERSION:
                    raise error(
                        "TQ904", f"{self.port} speaks version {frame.version}, this is {VERSION}"
                    )
                if frame.kind == REFUSED and frame.payload:
                    raise RefusedError(frame.payload[0])
                if frame.kind == kind | REPLY:
                    return frame.payload
            if time.monotonic() >= until:
                return None

    def _read(self) -> bytes:
        try:
            data: bytes = self._serial.read(max(1, min(self._serial.in_waiting, 4096)))
        except OSError as problem:
            raise LostError(str(problem)) from problem
        self._arrived += len(data)
        return data

    def _write(self, data: bytes) -> None:
        try:
            self._serial.write(data)
        except OSError as problem:
            raise LostError(str(problem)) from problem

    def _silent(self) -> TinyqError:
        if not self._arrived:
            found = "nothing arrived"
        elif self._decoder.pending:
            found = f"{self._arrived} bytes arrived, the last {self._decoder.pending} of them part "
            found += "of a frame that did not end"
        else:
            found = f"{self._arrived} bytes arrived, but no answer among them"
        text = self._decoder.skipped[-200:].decode("ascii", "replace")
        said = [line for line in text.splitlines() if line.isprintable() and line.strip()]
        if said and said[-1].isascii():
            found += f"; the board's last line: {said[-1]!r}"
        return error("TQ903", f"{self.port} at {self.baud} baud: {found}")


def chunks(data: bytes) -> list[tuple[int, bytes]]:
    """``data`` in pieces that leave a frame room for an offset, each with its offset."""
    size = MOST_PAYLOAD - 4
    return [(at, data[at : at + size]) for at in range(0, len(data), size)]


def _open(port: str, baud: int) -> Any:
    try:
        import serial
    except ImportError as missing:
        raise error("TQ901", "the package pyserial is not installed") from missing
    if baud <= 0:
        raise error("TQ303", f"--baud {baud}", "115200 is what firmware uses by default.")
    try:
        # SerialException is an OSError.
        return serial.serial_for_url(port, baudrate=baud, timeout=_POLL, write_timeout=5.0)
    except (OSError, ValueError) as problem:
        raise error("TQ902", str(problem), file=port) from problem
