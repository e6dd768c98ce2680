"""How far behind its input an output must begin: kernels replayed on an arena of tagged bytes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tinyq.ops.conv2d_dsp import geometry_of
from tinyq.ops.dsp_products import overlap_of
from tinyq.ops.params import Conv2dParams, RequantParams
from tinyq.ops.windows import overlap_distance
from tinyq.plan.placement import Handover, Segment, Span, place

CASES = [
    (h, w, c, o, k, s, p)
    for (h, w), (c, o), (k, s, p) in product(
        [(1, 7), (5, 1), (4, 5), (6, 6)],
        [(1, 1), (3, 8), (8, 3), (4, 4)],
        [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 1, 0), (3, 2, 1), (2, 2, 0), (5, 1, 2)],
    )
    if h + 2 * p >= k and w + 2 * p >= k
]


def windows(case: tuple[int, ...]) -> tuple[tuple[int, int], list[np.ndarray]]:
    """Output size, and for each output pixel the bytes of x that its window holds."""
    h, w, c, _, k, s, p = case
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    index = np.arange(h * w * c).reshape(h, w, c)
    found = []
    for oy, ox in product(range(oh), range(ow)):
        rows = [y for y in range(oy * s - p, oy * s - p + k) if 0 <= y < h]
        columns = [x for x in range(ox * s - p, ox * s - p + k) if 0 <= x < w]
        found.append(index[np.ix_(rows, columns)].reshape(-1))
    return (oh, ow), found


def survives(case: tuple[int, ...], distance: int, block: int) -> bool:
    """Replay with y ``distance`` bytes before x: whether every read finds what was there.

    block 0: a pixel's window is read again after each of its bytes is written. Otherwise the
    windows of that many pixels are read, then their outputs are written.
    """
    _, reads = windows(case)
    outputs, size = case[3], case[0] * case[1] * case[2]
    start = max(0, distance)
    arena = np.full(start + max(size, len(reads) * outputs - distance) + size, -1)
    x, y = start, start - distance
    arena[x : x + size] = np.arange(size)
    step = max(block, 1)
    for first in range(0, len(reads), step):
        here = range(first, min(first + step, len(reads)))
        if block:
            if any((arena[x + reads[n]] != reads[n]).any() for n in here):
                return False
            arena[y + first * outputs : y + (here[-1] + 1) * outputs] = -2
            continue
        for byte in range(outputs):
            if (arena[x + reads[first]] != reads[first]).any():
                return False
            arena[y + first * outputs + byte] = -2
    return True


@pytest.mark.parametrize("case", CASES, ids=str)
def test_portable_distance_is_safe(case: tuple[int, ...]) -> None:
    (oh, ow), _ = windows(case)
    h, w, c, o, _, s, p = case
    distance = overlap_distance((h, w, c), (oh, ow, o), (s, s), (p, p))
    assert survives(case, distance, 0)
    assert survives(case, distance + 5, 0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_distance_of_three_columns_is_safe(case: tuple[int, ...]) -> None:
    (oh, ow), _ = windows(case)
    h, w, c, o, k, s, p = case
    params = Conv2dParams(
        h, w, c, oh, ow, o, k, k, s, s, 1, 1, p, p, 1, 0, "int8_t", RequantParams(0, 0, -128, 127)
    )
    distance = overlap_of(geometry_of(params))
    assert distance is not None
    assert survives(case, distance, 3)
    assert survives(case, distance + 5, 3)


def test_distances_are_tight_where_windows_do_not_meet_padding() -> None:
    """One byte closer and something is lost."""
    assert overlap_distance((6, 6, 4), (6, 6, 4), (1, 1), (0, 0)) == 4
    assert not survives((6, 6, 4, 4, 1, 1, 0), 2, 0)
    assert overlap_distance((6, 6, 4), (4, 4, 4), (1, 1), (0, 0)) == 4


def test_rows_in_place_one_after_another() -> None:
    """A result that grows row by row over an operand whose rows end one by one."""
    rows, size = 4, 32
    last = rows * size
    operand = Span(last, (
        Segment(0, 1, 0, last), *(Segment(k + 1, k + 1, k * size, last) for k in range(1, rows)),
    ))  # fmt: skip
    result = Span(last, tuple(
        Segment(k + 1, k + 1 if k < rows - 1 else 9, 0, (k + 1) * size) for k in range(rows)
    ))  # fmt: skip
    handovers = {
        (1, 0): [Handover(k + 1, k * size, size, k * size, exact=True) for k in range(rows)]
    }
    assert place([operand, result], handovers) == [0, 0]
    # One row that is written before it is read for the last time keeps them apart.
    assert len(set(place([operand, result], {(1, 0): handovers[1, 0][1:]}))) == 2
