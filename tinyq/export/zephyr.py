"""A Zephyr module with a sample application."""

from __future__ import annotations

from tinyq.export.source import Source


def files(source: Source) -> dict[str, bytes]:
    """``zephyr/`` describes the module, ``samples/model_test`` runs the golden samples."""
    sample = "samples/model_test"
    return {
        "zephyr/module.yml": source.text("zephyr/module.yml.j2"),
        "zephyr/CMakeLists.txt": source.text("zephyr/CMakeLists.txt.j2"),
        "zephyr/Kconfig": source.text("zephyr/Kconfig.j2"),
        "README.md": source.text("zephyr/README.md.j2"),
        **source.network(source.name),
        f"{sample}/CMakeLists.txt": source.text("zephyr/sample_CMakeLists.txt.j2"),
        f"{sample}/prj.conf": source.text("zephyr/prj.conf.j2"),
        f"{sample}/sample.yaml": source.text("zephyr/sample.yaml.j2"),
        f"{sample}/src/main.c": source.text("zephyr/main.c.j2"),
        **source.model_test(f"{sample}/src"),
    }
