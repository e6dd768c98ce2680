"""The program around the network: files of ``templates/boot`` and what is generated for it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyq.build.network import Network
from tinyq.resources import data_dir

if TYPE_CHECKING:
    import jinja2


def boot_dir() -> Path:
    """Folder of the start-up and harness sources."""
    return data_dir("templates") / "boot"


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(boot_dir()),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Text of a template under ``templates/boot``; an unknown name in it is an error."""
    return _environment().get_template(template).render(**values)


def write_config(network: Network, folder: Path) -> None:
    """Write ``harness_config.h`` for ``network`` into ``folder``."""
    text = render(
        "harness_config.h.j2",
        name=network.name,
        prefix=network.prefix,
        input_bytes=[port.bytes for port in network.inputs],
        output_bytes=[port.bytes for port in network.outputs],
    )
    (folder / "harness_config.h").write_text(text, encoding="utf-8")
