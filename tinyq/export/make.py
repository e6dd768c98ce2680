"""Plain make: a static library and a program that runs the golden samples."""

from __future__ import annotations

from tinyq.export.source import Source


def files(source: Source) -> dict[str, bytes]:
    """``Makefile``, the network in a folder of its name, the test in ``test``."""
    return {
        "Makefile": source.text("make/Makefile.j2"),
        "README.md": source.text("make/README.md.j2"),
        **source.network(source.name),
        **source.model_test("test"),
        "test/main.c": source.text("common/main_stdio.c.j2"),
    }
