"""What generated build files say of a user's library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyq.codegen.program import Library
from tinyq.select import Layer, Schedule


def library_layers(schedule: Schedule) -> tuple[Layer, ...]:
    """The layers that call a library."""
    return tuple(layer for layer in schedule.layers if layer.call.library is not None)


def library_functions(schedule: Schedule) -> tuple[str, ...]:
    """The library's functions that the layers call, sorted."""
    uses = [layer.call.library for layer in library_layers(schedule)]
    return tuple(sorted({name for use in uses if use is not None for name in use.functions}))


def external_headers(schedule: Schedule) -> tuple[str, ...]:
    """Headers of the libraries that the layers call, sorted."""
    uses = [layer.call.library for layer in library_layers(schedule)]
    return tuple(sorted({use.header for use in uses if use is not None}))


def differing_layers(schedule: Schedule) -> list[dict[str, Any]]:
    """Layers whose library function can differ from the oracle: at how many values, of how many."""
    uses = [(layer.node.name, layer.call.library) for layer in library_layers(schedule)]
    return [
        {"layer": name, "differing": use.differing, "examined": use.examined}
        for name, use in uses
        if use is not None and use.differing
    ]


def makefile_fragments(libraries: Sequence[Library]) -> Mapping[str, str]:
    """One fragment for Make a library: sources, folders of headers and macros."""
    return {f"{library.name}.mk": _fragment(library) for library in libraries}


def _fragment(library: Library) -> str:
    prefix, root = library.name.upper().replace("-", "_"), f"$({library.variable})"
    folders = [f"-I{root}/{folder}" for folder in library.includes]
    lines = [
        f"# {library.name} {library.version}: what the network calls.",
        f"# Set {library.variable} to its folder, {library.core_variable} to the core's headers.",
        f"{prefix}_SOURCES := \\",
        *(f"  {root}/{source} \\" for source in library.sources),
        "",
        f"{prefix}_CPPFLAGS := {' '.join(folders)} -I$({library.core_variable})"
        + "".join(f" -D{define}" for define in library.defines),
    ]
    if library.binary:
        lines.append(f"{prefix}_LIBS := {root}/{library.binary}")
    return "\n".join(lines) + "\n"
