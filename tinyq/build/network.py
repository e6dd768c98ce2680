"""A generated network on disk, as the manifest in its folder describes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyq.codegen.program import MANIFEST_FORMAT, Library
from tinyq.errors import TinyqError, error

MANIFEST = "manifest.json"
DEFAULT_CFLAGS = ("-O2",)


@dataclass(frozen=True)
class Port:
    """One input, output or layer result: name, shape ([N, H, W, C] or less), dtype, bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Network:
    """A folder of generated C: ``<name>.h`` and every ``*.c`` in it.

    ``cflags`` are those the code was generated for (optimisation level included); ``target`` is a
    target string; ``layers`` are in the order of the profiling hook's index.
    """

    name: str
    folder: Path
    target: str
    cflags: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Port, ...]
    arena_bytes: int
    libraries: tuple[Library, ...] = ()

    @property
    def prefix(self) -> str:
        """Prefix of the network's macros."""
        return self.name.upper()

    @property
    def sources(self) -> tuple[Path, ...]:
        """The C files, sorted by name."""
        return tuple(sorted(self.folder.glob("*.c")))

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample: all inputs, one after the other."""
        return sum(port.bytes for port in self.inputs)


def source_digest(files: Mapping[str, bytes]) -> bytes:
    """16 bytes that tell a network's C from any other: SHA-256 over its sources and headers.

    ``files`` are contents by name; other files than ``*.c`` and ``*.h`` do not count.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in files if name.endswith((".c", ".h"))):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.digest()[:16]


def network_digest(network: Network) -> bytes:
    """:func:`source_digest` of a compiled folder."""
    return source_digest({path.name: path.read_bytes() for path in network.folder.glob("*.[ch]")})


def load_network(folder: Path) -> Network:
    """Read the manifest of a compiled folder; raises TQ503 when it is none."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise _bad(folder, f"{MANIFEST} cannot be read: {problem}") from problem
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if written not in (None, MANIFEST_FORMAT):
        raise _bad(folder, f"{MANIFEST} has format {written}, this is tinyq for {MANIFEST_FORMAT}")
    try:
        network = _from_manifest(folder, manifest)
    except (KeyError, TypeError, ValueError) as problem:
        raise _bad(folder, f"{MANIFEST} lacks a field or has a bad one: {problem!r}") from problem
    names = [layer.name for layer in network.layers]
    if len(set(names)) != len(names):
        raise _bad(folder, f"{MANIFEST} names two layers alike")
    if not (folder / f"{network.name}.h").is_file() or not network.sources:
        raise _bad(folder, f"the C code of '{network.name}' is missing")
    return network


def _from_manifest(folder: Path, manifest: dict[str, Any]) -> Network:
    return Network(
        name=str(manifest["name"]),
        folder=folder.resolve(),
        target=str(manifest["target"]),
        cflags=tuple(map(str, manifest.get("cflags", DEFAULT_CFLAGS))),
        inputs=_ports(manifest["inputs"], "input"),
        outputs=_ports(manifest["outputs"], "output"),
        layers=_ports(manifest.get("layers", []), "layer"),
        arena_bytes=int(manifest["arena_bytes"]),
        libraries=tuple(map(_library, manifest.get("libraries", []))),
    )


def _library(entry: dict[str, Any]) -> Library:
    return Library(
        name=str(entry["name"]),
        version=str(entry["version"]),
        sources=tuple(map(str, entry["sources"])),
        includes=tuple(map(str, entry["includes"])),
        defines=tuple(map(str, entry["defines"])),
        binary=str(entry.get("binary", "")),
    )


def _ports(entries: list[dict[str, Any]], what: str) -> tuple[Port, ...]:
    ports = []
    for number, entry in enumerate(entries):
        ports.append(
            Port(
                name=str(entry.get("name", f"{what}{number}")),
                shape=tuple(map(int, entry.get("shape", ()))),
                dtype=str(entry.get("dtype", "int8")),
                bytes=int(entry["bytes"]) if "bytes" in entry else 0,
            )
        )
    return tuple(ports)


def _bad(folder: Path, found: str) -> TinyqError:
    return error("TQ503", found, file=str(folder))
