"""The formats by name, and the one way to make any of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from tinyq.build.uart import BAUD
from tinyq.codegen.program import GENERATOR, MANIFEST
from tinyq.errors import error
from tinyq.export import arduino, bare, cmake, cmsis_pack, esp_idf, make, platformio, zephyr
from tinyq.export.source import Source
from tinyq.target import Board

_WITHOUT_BOARD: Mapping[str, Callable[[Source], dict[str, bytes]]] = {
    "make": make.files,
    "cmake": cmake.files,
    "arduino": arduino.files,
    "platformio": platformio.files,
    "zephyr": zephyr.files,
    "cmsis-pack": cmsis_pack.files,
    "esp-idf": esp_idf.files,
}
FORMATS = (*_WITHOUT_BOARD, "bare")


def export_files(
    source: Source, form: str, board: Board | None = None, baud: int = BAUD
) -> dict[str, bytes]:
    """Contents by relative path of ``source`` as a package of the format ``form``.

    ``manifest.json`` marks the folder as tinyq's. Raises TQ303 for an unknown format,
    ``bare`` without a board, and a ``baud`` rate that its UART cannot have, and TQ704 when the
    format cannot bring a library that the network calls.
    """
    if form not in FORMATS:
        raise error("TQ303", f"--format {form}", f"Accepted: {', '.join(FORMATS)}.")
    if not re.fullmatch(r"\d+\.\d+\.\d+", source.package.version):
        raise error("TQ303", f"version '{source.package.version}'", "Write it as 1.2.3.")
    if source.libraries and form != "cmake":
        raise error("TQ704", f"'{source.name}' calls {', '.join(source.libraries)}")
    if form == "bare":
        if board is None:
            raise error("TQ303", "--format bare without a board", "Give --board (`tinyq boards`).")
        made = bare.files(source, board, baud)
    else:
        made = _WITHOUT_BOARD[form](source)
    manifest = {
        "generator": GENERATOR,
        "export": form,
        "name": source.name,
        "target": source.manifest["target"],
        "board": board.name if board is not None else "",
        "samples": source.golden.count,
        "crc": f"{source.golden.crc:08x}",
    }
    made[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode("utf-8")
    return dict(sorted(made.items()))
