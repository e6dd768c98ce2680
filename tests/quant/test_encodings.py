"""Encodings of weights: recognised from integers, lossless, as small as stated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyq.quant.encodings import apot_magnitudes, pack, recognise, unpack

APOT4 = [0, 1, 2, 3, 4, 6, 8, 10]
APOT5 = [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48]


def signed(magnitudes: Sequence[int], step: int = 1) -> list[int]:
    return [s * step * m for m in magnitudes for s in (-1, 1)]


CASES = {
    "binary": ([-1, 1], "binary"),
    "binary_scaled": ([-64, 64], "binary"),
    "one value": ([0], "codebook1"),
    "two values": ([3, 7], "codebook1"),
    "ternary": ([-64, 0, 64], "ternary"),
    "positive ternary": ([0, 5], "codebook1"),
    "int2": ([-2, -1, 0, 1], "int2"),
    "four values": ([-50, 1, 3, 90], "codebook2"),
    "pot3": (signed([0, 1, 2, 4], 16), "pot3"),
    "pot4": (signed([0, 1, 2, 4, 8, 16, 32, 64]), "pot4"),
    "uniform of 3 bits": (list(range(-3, 4)), "int3"),
    "seven values": ([-100, -40, -7, 0, 9, 30, 99], "codebook3"),
    "int4": (list(range(-8, 8)), "int4"),
    "apot4": (signed(APOT4, 8), "apot4"),
    "sixteen values": ([k * k - 60 for k in range(13)], "codebook4"),
    "int5": (list(range(-15, 16)), "int5"),
    "apot5": (signed(APOT5, 2), "apot5"),
    "thirty values": ([k * k // 4 - 100 for k in range(1, 31)], "codebook5"),
    "int8": (list(range(-60, 60)), None),
}


@pytest.mark.parametrize("case", CASES)
def test_recognised(case: str) -> None:
    values, name = CASES[case]
    found = recognise(np.array(values, np.int8).reshape(1, -1))
    assert (None if found is None else found.name) == name
    if found is not None:
        assert len(found.levels) == 2**found.bits
        assert found.decode(found.encode(np.array(values, np.int8))).tolist() == values


@pytest.mark.parametrize(
    "levels",
    [*(range(-n, n + 1) for n in (1, 3, 7, 15)), *map(signed, ([0, 1, 2, 4], APOT4, APOT5))],
)
def test_levels_with_any_common_factor_stay_within_int8(levels: Sequence[int]) -> None:
    """Codes that no weight has may stand for nothing: with {-127, 0, 127} one would be -254."""
    kinds = set()
    for factor in range(1, 127 // max(levels) + 1):
        values = np.array([factor * level for level in levels], np.int8)
        found = recognise(values)
        assert found is not None
        kinds.add(found.name)
        assert min(found.levels) >= -128
        assert max(found.levels) <= 127
        assert np.array_equal(found.decode(found.encode(values)), values)
    assert len(kinds) == 1


def test_sums_of_powers_of_two_are_those_of_the_publication() -> None:
    assert sorted(apot_magnitudes(4)) == APOT4
    assert sorted(apot_magnitudes(5)) == APOT5
    with pytest.raises(ValueError, match="4 or 5 bits"):
        apot_magnitudes(6)


def test_powers_of_two_have_sign_and_exponent() -> None:
    found = recognise(np.array(signed([0, 1, 2, 4, 8, 16, 32, 64])))
    assert found is not None
    for code, level in enumerate(found.levels):
        magnitude = 2 ** (code % 8) // 2
        assert level == (-magnitude if code >= 8 else magnitude)


def test_values_that_are_no_levels_are_refused() -> None:
    found = recognise(np.array([-1, 0, 1]))
    assert found is not None
    with pytest.raises(ValueError, match="no level of ternary"):
        found.encode(np.array([3]))


@given(st.sets(st.integers(-128, 127), min_size=1, max_size=32), st.integers(0, 2**32 - 1))
def test_every_small_set_of_integers_survives(levels: set[int], seed: int) -> None:
    values = np.random.default_rng(seed).choice(sorted(levels), 77).astype(np.int8)
    found = recognise(values)
    assert found is not None
    assert 2**found.bits >= np.unique(values).size
    data = pack(found.encode(values), found.bits)
    assert data.size == found.packed_bytes(77) == -(-77 * found.bits // 8)
    assert np.array_equal(found.decode(unpack(data, found.bits, 77)), values)


@pytest.mark.parametrize("bits", range(1, 6))
def test_the_stream_begins_at_the_lowest_bit(bits: int) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, 45).astype(np.uint8)
    stream = int.from_bytes(pack(codes, bits).tobytes(), "little")
    assert [(stream >> (k * bits)) % 2**bits for k in range(45)] == codes.tolist()
