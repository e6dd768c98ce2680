"""A CMSIS-Pack (Open-CMSIS-Pack specification 1.7): a package description and its files."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

from tinyq.export.source import Source

# Values of Dcore in the specification's table DcoreEnum: what a core lacks is written in plain C.
_CORES = (
    "Cortex-M0", "Cortex-M0+", "Cortex-M3", "Cortex-M4", "Cortex-M7", "Cortex-M23", "Cortex-M33",
    "Cortex-M35P", "Cortex-M55", "Cortex-M85",
)  # fmt: skip


def files(source: Source) -> dict[str, bytes]:
    """``VENDOR.NAME.pdsc``, the network, and the golden samples as a second component."""
    vendor = re.sub(r"[^A-Za-z0-9_-]", "_", source.package.author)
    description = source.text(
        "cmsis_pack/pack.pdsc.j2",
        vendor=vendor,
        url=escape(source.package.url),
        pack_cores=_CORES,
    )
    return {
        f"{vendor}.{source.name}.pdsc": description,
        "README.md": source.text("cmsis_pack/README.md.j2", vendor=vendor),
        **source.network(source.name),
        **source.model_test("test"),
        "test/main.c": source.text("common/main_stdio.c.j2"),
    }
