"""The headers of ``templates/lib`` that a network needs."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tinyq.resources import data_dir

_INCLUDE = re.compile(r'^#include "(tinyq_\w+\.h)"', re.MULTILINE)


def library_headers(wanted: Iterable[str]) -> dict[str, str]:
    """Text of each header by name, with those that they include, sorted by name."""
    found: dict[str, str] = {}
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = (data_dir("templates") / "lib" / name).read_text(encoding="utf-8")
            pending.extend(_INCLUDE.findall(found[name]))
    return dict(sorted(found.items()))
