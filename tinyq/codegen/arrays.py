"""Constant arrays as C initialisers, fast enough for ten million weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray

_PER_LINE = 20


def initialiser(array: AnyArray, struct: bool) -> str:
    """The lines between the braces of ``T x[] = { ... };``.

    ``struct``: the last axis holds the members of one element.
    """
    if struct:
        return _structs(array)
    flat = array.reshape(-1)
    if flat.dtype.itemsize == 1:
        return _bytes(flat)
    texts = list(map(str, flat.tolist()))
    lines = [", ".join(texts[k : k + 12]) for k in range(0, len(texts), 12)]
    return ",\n".join(f"    {line}" for line in lines)


def _structs(array: AnyArray) -> str:
    rows = array.reshape(-1, array.shape[-1]).tolist()
    return "\n".join("    {" + ", ".join(map(str, row)) + "}," for row in rows)


@cache
def _cells(signed: bool) -> npt.NDArray[np.bytes_]:
    """``"-128,"`` and so on, five characters each, indexed by the byte."""
    values = [b - 256 if signed and b >= 128 else b for b in range(256)]
    return np.array([f"{value:4d},".encode() for value in values], "S5")


def _bytes(flat: AnyArray) -> str:
    cells = _cells(flat.dtype.kind == "i")[flat.view(np.uint8)]
    whole = len(cells) // _PER_LINE * _PER_LINE
    lines = cells[:whole].view("S1").reshape(-1, _PER_LINE * 5)
    framed = np.full((len(lines), _PER_LINE * 5 + 4), b" ", "S1")
    framed[:, 3:-1] = lines
    framed[:, -1] = b"\n"
    text = framed.tobytes().decode("ascii")
    if whole < len(cells):
        text += "   " + cells[whole:].tobytes().decode("ascii") + "\n"
    return text.rstrip("\n")
