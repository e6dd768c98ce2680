"""An Arduino library (Arduino Library Specification, format 1.5) with an example sketch."""

from __future__ import annotations

from tinyq.export.source import Source


def files(source: Source) -> dict[str, bytes]:
    """``library.properties``, ``src``, and a sketch whose folder holds the golden samples."""
    return {
        "library.properties": source.text("arduino/library.properties.j2"),
        "README.md": source.text("arduino/README.md.j2"),
        **source.network("src"),
        **source.model_test("examples/ModelTest"),
        "examples/ModelTest/ModelTest.ino": source.text("arduino/ModelTest.ino.j2"),
    }
