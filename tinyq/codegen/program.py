"""A generated library, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MANIFEST = "manifest.json"
GENERATOR = "tinyq"
MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class GenerateOptions:
    """What the user chose about the C code.

    io: ``int8`` (integers at the edges) or ``float`` (the header also has functions that quantize
    inputs and dequantize outputs). cflags: optimisation flags that the code is meant for. oracle:
    whose arithmetic the integers follow, for the manifest. model: the ONNX file, kept in the folder
    so that it can be verified by itself; shapes: how its inputs were fixed. notes: what the passes
    have to say, for the report.
    """

    io: str = "int8"
    cflags: tuple[str, ...] = ("-O2",)
    oracle: str = "ort"
    model: bytes = b""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """A folder's files by relative path, sorted, and the manifest that is one of them."""

    name: str
    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]

    @property
    def constant_bytes(self) -> int:
        """Flash taken by the network's constants."""
        return int(self.manifest["constant_bytes"])
