"""CMake: a static library target, and a test for ctest."""

from __future__ import annotations

from tinyq.export.source import Source


def files(source: Source) -> dict[str, bytes]:
    """The network's own ``CMakeLists.txt`` below one that adds the test."""
    return {
        "CMakeLists.txt": source.text("cmake/CMakeLists.txt.j2"),
        "README.md": source.text("cmake/README.md.j2"),
        **source.network(source.name),
        f"{source.name}/CMakeLists.txt": source.files["CMakeLists.txt"],
        **source.model_test("test"),
        "test/main.c": source.text("common/main_stdio.c.j2"),
    }
