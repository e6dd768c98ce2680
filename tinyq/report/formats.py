"""How figures are spelled in tables."""

from __future__ import annotations

from typing import Any

_KIB = 1024


def count(value: int | float | None) -> str:
    """A number with thousands separated; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def size(value: int | None) -> str:
    """Bytes, from 10 KiB on in KiB as well."""
    if value is None:
        return "-"
    if value < 10 * _KIB:
        return f"{value:,} B"
    return f"{value:,} B ({value / _KIB:.1f} KiB)"


def plural(number: int, word: str) -> str:
    """``1 fix``, ``2 fixes``, ``3 layers``."""
    if number == 1:
        return f"1 {word}"
    return f"{count(number)} {word}{'es' if word.endswith(('s', 'x')) else 's'}"


def share(part: int, whole: int) -> str:
    """A part in per cent of the whole."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def shape(values: Any) -> str:
    """``1x49x10x1``; ``scalar`` for no dimensions."""
    return "x".join(map(str, values)) or "scalar"


def shortened(text: str, width: int = 34) -> str:
    """``text`` without its middle when it is longer than ``width``; ends tell layers apart."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}…{text[-(width - 1 - head) :]}"
