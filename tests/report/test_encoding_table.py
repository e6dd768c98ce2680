"""What `tinyq inspect` says of the weights of each layer."""

from __future__ import annotations

import numpy as np
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
