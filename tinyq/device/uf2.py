"""UF2 images: 512-byte blocks that a board's USB drive takes (Microsoft's UF2 specification)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from elftools.elf.elffile import ELFFile

_MAGIC = (0x0A324655, 0x9E5D5157, 0x0AB16F30)
_FAMILY_PRESENT = 0x2000
_PAYLOAD = 256
_BLOCK = struct.Struct("<8I476sI")


def elf_segments(elf: Path) -> list[tuple[int, bytes]]:
    """Address and contents of everything that is loaded, by address."""
    with elf.open("rb") as stream:
        loaded = [
            (segment["p_paddr"], segment.data())
            for segment in ELFFile(stream).iter_segments()
            if segment["p_type"] == "PT_LOAD" and segment["p_filesz"]
        ]
    return sorted(loaded)


def uf2_image(segments: Iterable[tuple[int, bytes]], family: int) -> bytes:
    """The segments as UF2 for ``family``, in pages of 256 bytes; gaps in a page are 0xFF."""
    pages: dict[int, bytearray] = {}
    for address, data in segments:
        for offset, byte in enumerate(data):
            page = (address + offset) // _PAYLOAD * _PAYLOAD
            pages.setdefault(page, bytearray(b"\xff" * _PAYLOAD))[address + offset - page] = byte
    return b"".join(
        _BLOCK.pack(
            *_MAGIC[:2], _FAMILY_PRESENT, page, _PAYLOAD, number, len(pages), family,
            bytes(pages[page]), _MAGIC[2],
        )
        for number, page in enumerate(sorted(pages))
    )  # fmt: skip
