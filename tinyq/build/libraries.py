"""What a network's libraries add to its build, found where the user has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyq.build.cmsis_nn import core_headers, find_cmsis_nn
from tinyq.build.network import Network
from tinyq.errors import error


@dataclass(frozen=True)
class LibraryBuild:
    """Sources to compile beside the network, and flags for both.

    ``optimize`` is the optimisation of the library's own files, ``binaries`` what is linked as it
    is.
    """

    sources: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()
    optimize: tuple[str, ...] = ("-O3",)
    binaries: tuple[Path, ...] = ()


def library_build(network: Network) -> LibraryBuild:
    """Resolve the libraries of ``network``; raises TQ407 when one cannot be found."""
    if not network.libraries:
        return LibraryBuild()
    library = network.libraries[0]
    root = find_cmsis_nn().root
    folders = [root / folder for folder in library.includes]
    sources = tuple(root / source for source in library.sources)
    for path in (*folders, *sources):
        if not path.exists():
            raise error(
                "TQ407",
                f"{path.name} is missing: the network was generated for version {library.version}",
                file=str(root),
            )
    core = core_headers()
    includes = [*folders, *([core] if core else [])]
    flags = [f"-isystem{path}" for path in includes]
    flags += [f"-D{define}" for define in library.defines]
    binaries = (root / library.binary,) if library.binary else ()
    return LibraryBuild(sources, tuple(flags), binaries=binaries)
