"""Level sets against the tables published for them, and against independent implementations."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import levels  # noqa: E402
from tinyq.learn.estimators import nearest_level  # noqa: E402

pytestmark = pytest.mark.torch

APOT6_LARGE = (48, 52, 64, 65, 68, 69, 72, 76, 96, 100)
APOT_MAGNITUDES = {
    2: [0, 1],
    3: [0, 1, 2, 4],
    4: [0, 1, 2, 3, 4, 6, 8, 10],
    5: [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48],
    6: [*range(9), 10, 12, 14, 16, 17, 20, 21, 24, 28, 32, 34, 36, 38, *APOT6_LARGE],
}


@pytest.mark.parametrize(("bits", "expected"), APOT_MAGNITUDES.items())
def test_apot_levels_are_the_published_ones(bits: int, expected: list[int]) -> None:
    assert list(levels.apot_magnitudes(bits)) == expected
    if bits > 2:
        assert list(levels.apot_unsigned(bits - 1).integers) == expected


@pytest.mark.parametrize(("bits", "count", "largest"), [(7, 64, 448), (8, 128, 904)])
def test_wide_apot_levels_have_full_count(bits: int, count: int, largest: int) -> None:
    magnitudes = levels.apot_magnitudes(bits)
    assert len(magnitudes) == count
    assert magnitudes[-1] == largest


@pytest.mark.parametrize(
    ("bits", "expected", "container"),
    [
        (2, [0, 1], 2),
        (3, [0, 1, 2, 4], 4),
        (4, [0, 1, 2, 4, 8, 16, 32, 64], 8),
        (5, [0, *(2**k for k in range(15))], 16),
    ],
)
def test_power_of_two_levels(bits: int, expected: list[int], container: int) -> None:
    assert list(levels.pot_magnitudes(bits)) == expected
    assert levels.pot(bits).container_bits == container


@pytest.mark.parametrize(
    ("level_set", "container"),
    [
        (levels.apot(4), 5),
        (levels.apot(5), 7),
        (levels.apot(6), 8),
        (levels.apot(7), 10),
        (levels.ternary(), 2),
        (levels.binary(), 2),
        (levels.uniform(4), 4),
        (levels.uniform(4, narrow=False), 4),
        (levels.uniform(8), 8),
    ],
)
def test_container_bits(level_set: levels.LevelSet, container: int) -> None:
    assert level_set.container_bits == container


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [(1.0, 0), (0.75, 0), (0.7499, -1), (1.4999, 0), (1.5, 1), (3.0, 2), (0.1, -3)],
)
def test_inq_exponent_rounds_at_three_quarters(largest: float, exponent: int) -> None:
    assert levels.inq_exponent(largest) == exponent


def test_inq_has_the_papers_number_of_exponents() -> None:
    # n2 = n1 + 1 - 2^(b-1)/2, so 5 bits are 8 exponents and zero: 128 does not fit int8.
    assert [m for m in levels.inq(5).integers if m >= 0] == [0, 1, 2, 4, 8, 16, 32, 64, 128]


# Signal to quantization noise on a standard normal, in decibels, best clipping threshold.
SQNR = [
    ("uniform", 3, 13.26), ("uniform", 4, 18.79), ("uniform", 5, 24.10), ("uniform", 6, 29.38),
    ("pot", 3, 13.25), ("pot", 4, 14.32), ("pot", 5, 14.32),
    ("apot", 3, 13.25), ("apot", 4, 19.12), ("apot", 5, 22.24), ("apot", 6, 26.75),
]  # fmt: skip


def _best_sqnr(level_set: levels.LevelSet, x: torch.Tensor) -> float:
    table = levels.table_of(level_set)
    steps = torch.linspace(1.0, 6.0, 101) / level_set.largest
    return max(
        levels.sqnr_db(x, nearest_level((x / s).clamp(table[0], table[-1]), table) * s)
        for s in steps
    )


@pytest.mark.parametrize(("name", "bits", "expected"), SQNR)
def test_sqnr_on_a_normal_distribution(name: str, bits: int, expected: float) -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    # Another sample than the table's: the tails that set the threshold differ by this much.
    assert _best_sqnr(getattr(levels, name)(bits), x) == pytest.approx(expected, abs=0.4)


def test_power_of_two_reaches_a_plateau() -> None:
    """More bits only add levels near zero, where nothing is lost: 4 and 5 bits are equal."""
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(2))
    four, five = _best_sqnr(levels.pot(4), x), _best_sqnr(levels.pot(5), x)
    assert five - four < 0.01
    assert _best_sqnr(levels.uniform(5), x) > five + 9.0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kmeans_is_as_good_as_scikit_learns(bits: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.randn(5_000, generator=torch.Generator().manual_seed(3))
    start = np.array([part.mean() for part in np.array_split(np.sort(x.numpy()), 2**bits)])
    found = cluster.KMeans(2**bits, init=start[:, None], n_init=1, max_iter=1000, tol=0.0)
    inertia = found.fit(x.numpy()[:, None]).inertia_
    level_set, threshold = levels.kmeans(x, bits)
    step = threshold / level_set.largest
    quantized = nearest_level(x / step, levels.table_of(level_set)) * step
    loss = float((quantized - x).square().sum())
    assert loss == pytest.approx(inertia, rel=0.01)  # centroids are rounded to int8


@pytest.mark.parametrize(("bits", "decibels"), [(2, 9.30), (3, 14.62), (4, 20.22)])
def test_kmeans_reaches_lloyd_and_max(bits: int, decibels: float) -> None:
    """The optimal quantizer of a normal distribution (Max, 1960)."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(4))
    level_set, threshold = levels.kmeans(x, bits)
    step = threshold / level_set.largest
    quantized = nearest_level(x / step, levels.table_of(level_set)) * step
    assert levels.sqnr_db(x, quantized) == pytest.approx(decibels, abs=0.1)


def test_quantile_levels_are_means_of_equal_bins() -> None:
    x = torch.arange(16.0)
    level_set, threshold = levels.quantile(x, 2)
    assert threshold == 13.5  # bins 0-3, 4-7, 8-11, 12-15
    assert list(level_set.integers) == [round(m * 127 / 13.5) for m in (1.5, 5.5, 9.5, 13.5)]


@pytest.mark.parametrize(
    ("source", "bits", "expected"),
    [
        ([-8.0, -1.0, 0.0, 3.0], 2, (-8, -1, 0, 3)),
        ([0.5, -1.0, 0.25], 2, (-127, 32, 64)),
        (lambda code: (code - 4) ** 3, 3, (-64, -27, -8, -1, 0, 1, 8, 27)),
    ],
)
def test_codebook_of_the_user(source: object, bits: int, expected: tuple[int, ...]) -> None:
    assert levels.codebook(source, bits).integers == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [[1.0], [1.0, 1.0], [1.0, 2.0, 3.0], [1.5, float("nan")]])
def test_impossible_codebooks_are_refused(source: list[float]) -> None:
    with pytest.raises(TinyqError, match="TQ652"):
        levels.codebook(source, 1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_uniform_levels_are_consecutive(bits: int) -> None:
    assert levels.uniform(bits).uniform
    assert np.diff(levels.uniform(bits, signed=False).integers).tolist() == [1] * (2**bits - 1)
