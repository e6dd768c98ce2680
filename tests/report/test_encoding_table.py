"""What `tinyq inspect` says of the weights of each layer."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import Model
from qdq import Qdq
from rich.console import Console

from tinyq.report.encodings import encoding_table, layer_encodings


def network() -> Model:
    """A convolution of ternary weights, then a dense layer of 8 bits."""
    b = Qdq()
    rng = np.random.default_rng(0)
    x = b.x((1, 3, 5, 5))
    y = b.op("Conv", x, b.weights(rng.choice([-64, 0, 64], (8, 3, 3, 3)), 0.01))
    y = b.op("Flatten", b.qdq(y, 0.07))
    weights = rng.permutation(np.arange(10 * 72) % 251 - 125).reshape(10, 72)
    return Model("two", b.end(b.op("Gemm", y, b.weights(weights, 0.01), transB=1)).model())


def test_bytes_of_each_layer() -> None:
    ternary, whole = layer_encodings(network().graph)
    assert (ternary.encoding, ternary.shape) == ("ternary", (8, 3, 3, 3))
    assert (ternary.stored_bytes, ternary.packed_bytes) == (216, 216 // 4 + 4)
    assert (whole.encoding, whole.stored_bytes, whole.packed_bytes) == ("int8", 720, 720)


def test_table_has_totals() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(encoding_table(layer_encodings(network().graph)))
    total = capture.get().strip().splitlines()[-1].split()
    assert total == ["total", "936", "778", "17%"]


SETS = {
    "binary": ([-3, 3], 1), "ternary": ([-3, 0, 3], 2), "int2": ([-6, -3, 0, 3], 2),
    "int3": (list(range(-4, 4)), 3), "pot3": ([s * m for m in (0, 1, 2, 4) for s in (1, -1)], 3),
    "int4": (list(range(-8, 8)), 4),
    "pot4": ([s * m for m in (0, 1, 2, 4, 8, 16, 32, 64) for s in (1, -1)], 4),
    "apot4": ([s * m for m in (0, 1, 2, 3, 4, 6, 8, 10) for s in (1, -1)], 4),
    "int5": (list(range(-16, 16)), 5),
    "apot5": ([s * (i + 2 * j) for i in (0, 1, 4, 16) for j in (0, 1, 4, 16) for s in (1, -1)], 5),
    "codebook2": ([-100, -7, 3, 90], 2), "codebook3": ([-99, -50, -7, 3, 20, 44, 90], 3),
    "codebook4": ([k * k - 60 for k in range(13)], 4),
    "codebook5": ([k * k * k // 40 - 3 for k in range(-15, 16)], 5), "int8": (list(range(40)), 8),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dense", [False, True])
def test_every_encoding(name: str, dense: bool) -> None:
    """Its name, bytes of codes and levels, and the saving; for both operators with weights."""
    levels, bits = SETS[name]
    rng = np.random.default_rng(1)
    shape = (16, 50) if dense else (16, 2, 5, 5)
    flat = rng.permutation(np.resize(np.array(levels), 800))
    b = Qdq()
    w = b.weights(flat.reshape(shape), 0.01)
    y = b.op("Gemm", b.x((1, 50)), w, transB=1) if dense else b.op("Conv", b.x((1, 2, 7, 7)), w)
    (layer,) = layer_encodings(Model(name, b.end(y).model()).graph)
    packed = 800 if bits == 8 else 100 * bits + 2**bits
    assert (layer.encoding, layer.stored_bytes, layer.packed_bytes) == (name, 800, packed)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(encoding_table((layer,)))
    assert (
        capture.get().strip().splitlines()[-1].split()[-1] == f"{100 * (800 - packed) / 800:.0f}%"
    )
