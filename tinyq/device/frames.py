"""Frames of the serial protocol (docs/device.md), and finding them in whatever arrives.

Little-endian: sync ``C3 5A``, version, kind, sequence (2), length (2), payload, and the CRC-32 of
all from version on (4). ``templates/export/bare/device/frame.c.j2`` is the other end.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

VERSION = 1
MOST_PAYLOAD = 256
SYNC = b"\xc3\x5a"
_HEAD = struct.Struct("<BBHH")
_TAIL = struct.Struct("<I")
MOST_FRAME = len(SYNC) + _HEAD.size + MOST_PAYLOAD + _TAIL.size

HELLO, WRITE, INVOKE, READ, TEST = 1, 2, 3, 4, 5
REPLY = 0x80
REFUSED = 0xFF


@dataclass(frozen=True)
class Frame:
    """One frame; a reply has the sequence number of its request."""

    kind: int
    sequence: int
    payload: bytes = b""
    version: int = VERSION

    def encode(self) -> bytes:
        """The frame's bytes; raises ValueError for a payload above ``MOST_PAYLOAD``."""
        if len(self.payload) > MOST_PAYLOAD:
            raise ValueError(f"a payload of {len(self.payload)} bytes")
        body = _HEAD.pack(self.version, self.kind, self.sequence, len(self.payload)) + self.payload
        return SYNC + body + _TAIL.pack(zlib.crc32(body))


class Decoder:
    """Takes bytes as they come and gives the whole frames in them; ``skipped`` is all else."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.skipped = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Frames that ``data`` completes.

        What looks like the head of a frame and is none does not hold back a frame behind it.
        """
        self._buffer += data
        frames: list[Frame] = []
        start = self._buffer.find(SYNC)
        while start >= 0:
            frame, size = self._at(start)
            if frame is not None:
                frames.append(frame)
                self._skip(start)
                del self._buffer[:size]
                start = -1
            start = self._buffer.find(SYNC, start + 1)
        self._skip(self._hopeless())
        return frames

    def _at(self, start: int) -> tuple[Frame | None, int]:
        """The frame at a sync and its size; None and its least size when there is none (yet)."""
        least = len(SYNC) + _HEAD.size + _TAIL.size
        if len(self._buffer) - start < least:
            return None, least
        version, kind, sequence, length = _HEAD.unpack_from(self._buffer, start + len(SYNC))
        size = least + length
        if length > MOST_PAYLOAD:
            return None, 0
        if len(self._buffer) - start < size:
            return None, size
        end = start + size - _TAIL.size
        body = bytes(self._buffer[start + len(SYNC) : end])
        if zlib.crc32(body) != _TAIL.unpack_from(self._buffer, end)[0]:
            return None, 0
        return Frame(kind, sequence, body[_HEAD.size :], version), size

    def _hopeless(self) -> int:
        """Bytes before the first sync that may still become a frame."""
        start = self._buffer.find(SYNC)
        while start >= 0:
            if self._at(start)[1] > len(self._buffer) - start:
                return start
            start = self._buffer.find(SYNC, start + 1)
        # The last byte may be the first half of a sync.
        return len(self._buffer) - self._buffer.endswith(SYNC[:1])

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)

    def _skip(self, count: int) -> None:
        self.skipped += self._buffer[:count]
        del self.skipped[:-4096]
        del self._buffer[:count]
