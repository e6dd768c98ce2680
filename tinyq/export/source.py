"""What every format is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyq.codegen.arrays import initialiser
from tinyq.codegen.environment import render
from tinyq.export.golden import Golden
from tinyq.ir import AnyArray
from tinyq.target import Core


@dataclass(frozen=True)
class Package:
    """What a package says of itself, beside the network's name."""

    version: str = "1.0.0"
    author: str = "tinyq"
    url: str = "https://example.org"


@dataclass(frozen=True)
class GoldenPort:
    """An input or output as the test's template sees it; ``rows`` are C initialisers."""

    c_type: str
    elements: int
    bytes: int
    rows: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Source:
    """A generated network: its files by name, its manifest, its core and its golden samples."""

    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    core: Core
    golden: Golden
    package: Package = Package()

    @property
    def name(self) -> str:
        """Name of the network: the prefix of its symbols."""
        return str(self.manifest["name"])

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the libraries of the user's that the network calls."""
        return tuple(str(entry["name"]) for entry in self.manifest.get("libraries", ()))

    @property
    def sources(self) -> tuple[str, ...]:
        """C files, sorted."""
        return tuple(sorted(name for name in self.files if name.endswith(".c")))

    @property
    def headers(self) -> tuple[str, ...]:
        """Header files, sorted."""
        return tuple(sorted(name for name in self.files if name.endswith(".h")))

    def network(self, folder: str) -> dict[str, bytes]:
        """The network's C files and headers, under ``folder``."""
        return {f"{folder}/{name}": self.files[name] for name in (*self.sources, *self.headers)}

    def text(self, template: str, **more: object) -> bytes:
        """``templates/export/<template>`` with what is known of the network."""
        manifest, package = self.manifest, self.package
        return render(
            f"export/{template}",
            **{
                "name": self.name,
                "prefix": self.name.upper(),
                "target": manifest["target"],
                "arena_bytes": manifest["arena_bytes"],
                "constant_bytes": manifest["constant_bytes"],
                "sources": self.sources,
                "headers": self.headers,
                "libraries": self.libraries,
                "samples": self.golden.count,
                "crc": self.golden.crc,
                "version": package.version,
                "author": package.author,
                "url": package.url,
                "flags": " ".join(self.core.flags),
                "cflags": " ".join(manifest["cflags"]),
                **more,
            },
        ).encode("utf-8")

    def model_test(self, folder: str) -> dict[str, bytes]:
        """``model_test.c`` and ``model_test.h``, under ``folder``."""
        ports = {
            "inputs": tuple(map(_golden_port, self.golden.inputs)),
            "outputs": tuple(map(_golden_port, self.golden.outputs)),
        }
        return {
            f"{folder}/model_test.c": self.text("common/model_test.c.j2", **ports),
            f"{folder}/model_test.h": self.text("common/model_test.h.j2"),
        }


def _golden_port(array: AnyArray) -> GoldenPort:
    rows = tuple(initialiser(row, struct=False) for row in array)
    return GoldenPort(f"{array.dtype}_t", array.shape[1], array[0].nbytes, rows)
