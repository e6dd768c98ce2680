"""Tables of the model's own: Gather of a constant by 8-bit integers that were computed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from agreement import assert_c, assert_reference, assert_refused, models_of
from qdq import Array, Qdq


def levels(dtype: str) -> Array:
    """A table in which no entry equals its neighbour."""
    low = -128 if dtype == "int8" else 0
    return (np.arange(256) * 7 % 251 + low).astype(dtype)


def looked_up(
    stored: str = "uint8", of: str = "uint8", index: str = "int32", *, conv: bool = False,
    table: Array | None = None,
) -> Qdq:  # fmt: skip
    """QuantizeLinear, Cast, Gather, DequantizeLinear, as non-uniform activations are exported."""
    b = Qdq(stored)
    zero = 100 if stored == "uint8" else -28
    real = b.op("Relu", b.x((1, 3, 6, 5), 0.05, zero))
    codes = b.q(real, 0.03, zero)
    kind = 6 if index == "int32" else 7
    entries = b.const(levels(of) if table is None else table)
    level = b.op("Gather", entries, b.op("Cast", codes, to=kind))
    y = b.dq(level, 0.1, 0, of)
    if conv:
        weights = np.random.default_rng(1).integers(-99, 99, (4, 3, 3, 3))
        return b.end(b.op("Conv", y, b.weights(weights, 0.01)), 0.9, zero)
    return b.end(y, 0.1, zero)


CASES = {
    "uint8": looked_up,
    "int64": partial(looked_up, index="int64"),
    "int8_table": partial(looked_up, of="int8"),
    "int8_codes": partial(looked_up, "int8", "int8"),
    "conv": partial(looked_up, conv=True),
}
MODELS = models_of(CASES)


@pytest.mark.parametrize("name", MODELS)
def test_reference_equals_onnxruntime(name: str) -> None:
    assert_reference(MODELS[name], plain=name != "conv")


def test_c_equals_the_reference(tmp_path: Path) -> None:
    assert_c(MODELS, tmp_path, "cortex-m4")


@pytest.mark.parametrize(
    "table", [np.arange(16, dtype=np.uint8), np.zeros((256, 2), np.uint8), np.arange(256)]
)
def test_other_tables_are_refused(table: Array) -> None:
    assert_refused(looked_up(table=table, of=str(table.dtype)).model(), "TQ203")
