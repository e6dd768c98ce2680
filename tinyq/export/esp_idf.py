"""An ESP-IDF component with an example project."""

from __future__ import annotations

from tinyq.export.source import Source


def files(source: Source) -> dict[str, bytes]:
    """``idf_component.yml``, ``CMakeLists.txt``, the network, and a project for the samples."""
    example = "examples/model_test"
    manifest = source.text("esp_idf/idf_component.yml.j2")
    return {
        "CMakeLists.txt": source.text("esp_idf/CMakeLists.txt.j2"),
        "idf_component.yml": manifest,
        "README.md": source.text("esp_idf/README.md.j2"),
        **source.network(source.name),
        f"{example}/CMakeLists.txt": source.text("esp_idf/example_CMakeLists.txt.j2"),
        f"{example}/main/CMakeLists.txt": source.text("esp_idf/main_CMakeLists.txt.j2"),
        f"{example}/main/main.c": source.text("esp_idf/main.c.j2"),
        **source.model_test(f"{example}/main"),
    }
