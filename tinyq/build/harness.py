"""The program around the network: files of ``templates/boot`` and what is generated for it."""

from __future__ import annotations

from pathlib import Path

from tinyq.build.network import Network
from tinyq.codegen.environment import render
from tinyq.resources import data_dir


def boot_dir() -> Path:
    """Folder of the start-up and harness sources."""
    return data_dir("templates") / "boot"


def write_config(network: Network, folder: Path) -> None:
    """Write ``harness_config.h`` for ``network`` into ``folder``."""
    text = render(
        "boot/harness_config.h.j2",
        name=network.name,
        prefix=network.prefix,
        input_bytes=[port.bytes for port in network.inputs],
        output_bytes=[port.bytes for port in network.outputs],
    )
    (folder / "harness_config.h").write_text(text, encoding="utf-8")
