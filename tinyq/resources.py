"""Finds the data that ships with tinyq: ``templates/`` and ``targets/``.

In a wheel they lie inside the package (``tinyq/_data``), in a checkout beside it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


@cache
def data_dir(name: str) -> Path:
    """Folder of the data called ``name`` (``"templates"`` or ``"targets"``)."""
    for candidate in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"tinyq's {name} folder is missing: the installation is incomplete")
