"""A PlatformIO library with an example project."""

from __future__ import annotations

import json

from tinyq.export.source import Source


def files(source: Source) -> dict[str, bytes]:
    """``library.json``, ``src``, and a project that runs the golden samples on this machine."""
    package = source.package
    library = {
        "name": source.name,
        "version": package.version,
        "description": f"The quantized network {source.name} as integer-only C",
        "keywords": ["neural network", "quantized", "tinyml"],
        "authors": [{"name": package.author}],
        "homepage": package.url,
        "frameworks": "*",
        "platforms": "*",
        "headers": f"{source.name}.h",
        "examples": [
            {
                "name": "model_test",
                "base": "examples/model_test",
                "files": ["platformio.ini", "src/main.c", "src/model_test.c", "src/model_test.h"],
            }
        ],
    }
    example = "examples/model_test"
    return {
        "library.json": (json.dumps(library, indent=2) + "\n").encode("utf-8"),
        "README.md": source.text("platformio/README.md.j2"),
        **source.network("src"),
        **source.model_test(f"{example}/src"),
        f"{example}/src/main.c": source.text("common/main_stdio.c.j2"),
        f"{example}/platformio.ini": source.text("platformio/platformio.ini.j2"),
    }
