"""Gradients of the estimators against their published equations and finite differences."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from tinyq.learn import levels  # noqa: E402
from tinyq.learn.estimators import BY_NAME, DAQ, DSQ, EWGS, STE, nearest_level  # noqa: E402
from tinyq.learn.estimators.base import interval  # noqa: E402
from tinyq.learn.estimators.daq import daq_scores  # noqa: E402
from tinyq.learn.estimators.lsq import initial_step, scale_gradient  # noqa: E402

pytestmark = pytest.mark.torch
TABLE = levels.table_of(levels.apot(4))


def gradient(
    estimator: object, v: torch.Tensor, table: torch.Tensor | None, **kw: float
) -> torch.Tensor:
    """Gradient of the rounding at ``v`` for an upstream gradient ``upstream`` (one by default)."""
    v = v.clone().requires_grad_()
    upstream = torch.full_like(v, kw.get("upstream", 1.0))
    strength = torch.tensor(kw.get("strength", 0.0))
    q = estimator(v, table, span=kw.get("span", 1.0), strength=strength)  # type: ignore[operator]
    q.backward(upstream)
    assert v.grad is not None
    return v.grad


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("table", [None, TABLE], ids=["uniform", "apot"])
def test_forward_is_always_the_nearest_level(name: str, table: torch.Tensor | None) -> None:
    v = torch.linspace(-9.97, 9.97, 4001)
    strength = torch.tensor(0.3)
    q = BY_NAME[name]()(v, table, span=20.0, strength=strength)
    if table is None:
        assert torch.equal(q, torch.round(v))
    else:
        distance = (v[:, None] - table).abs()
        assert torch.equal((q - v).abs(), distance.min(1).values)


def test_daq_forward_is_round_although_it_is_a_soft_argmax() -> None:
    """The published forward, softmax over two scores at temperature γ/|s0 - s1|, is round."""
    v = torch.linspace(0.01, 3.99, 399).double()
    v = v[(v - v.floor() - 0.5).abs() > 1e-6]
    low, high = interval(v, None)
    s_low, s_high = torch.exp(-(v - low)), torch.exp(-(high - v))
    kernel = math.exp(-1.0 / 2.0**2)
    s_low = torch.where(v - low < 0.5, s_low, s_low * kernel)
    s_high = torch.where(v - low < 0.5, s_high * kernel, s_high)
    share = torch.sigmoid(2.0 / (s_high - s_low).abs() * (s_high - s_low))
    top, bottom = torch.sigmoid(torch.tensor(2.0)), torch.sigmoid(torch.tensor(-2.0))
    soft = low + (share - bottom) / (top - bottom)
    assert torch.allclose(soft, torch.round(v), atol=1e-6)
    assert torch.equal(
        DAQ()(v.float(), None, span=1.0, strength=torch.tensor(0.0)), torch.round(v).float()
    )


def test_daq_gradient_is_the_derivative_at_a_fixed_temperature() -> None:
    near = torch.tensor([0.05, 0.2, 0.35, 0.45], dtype=torch.float64)
    nearest, other = daq_scores(near, 2.0)
    beta = 2.0 / (nearest - other)
    scale = math.tanh(1.0)  # sigmoid(2) - sigmoid(-2)

    def share(x: torch.Tensor) -> torch.Tensor:
        a, b = daq_scores(x, 2.0)
        return torch.sigmoid(beta * (b - a)) / scale

    h = 1e-6
    expected = (share(near + h) - share(near - h)) / (2 * h)
    assert torch.allclose(gradient(DAQ(), near, None), expected, atol=1e-6)


@pytest.mark.parametrize(("gap", "temperature"), [(0.396, 5.05), (0.594, 3.37)])
def test_daq_temperatures_of_the_worked_example(gap: float, temperature: float) -> None:
    assert DAQ().gamma / gap == pytest.approx(temperature, abs=0.005)


@pytest.mark.parametrize("upstream", [0.7, -0.7])
def test_ewgs_equation(upstream: float) -> None:
    v = torch.tensor([0.1, 0.4, 1.3, 1.8, 2.6])
    span, strength = 3.0, 0.2
    x, q = v / span, torch.round(v) / span
    sign = math.copysign(1.0, upstream)
    expected = upstream * (1 + strength * sign * (x - q))
    got = gradient(EWGS(), v, None, span=span, strength=strength, upstream=upstream)
    assert torch.allclose(got, expected)
    # As misprinted, with the parenthesis closed too early, it is another gradient.
    misprinted = upstream * 1 + strength * sign * (x - q)
    assert not torch.allclose(got, misprinted, atol=1e-3)


def test_ewgs_without_strength_is_straight_through() -> None:
    v = torch.linspace(-2, 2, 41)
    assert torch.equal(gradient(EWGS(), v, None), gradient(STE(), v, None))
    fixed = gradient(EWGS(fixed=0.5), v, None, span=4.0)
    assert torch.equal(fixed, gradient(EWGS(), v, None, span=4.0, strength=0.5))


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.7])
def test_dsq_gradient_is_the_slope_of_its_soft_curve(alpha: float) -> None:
    """φ = s·tanh(k(x - m)), Q = l + Δ(i + (φ + 1)/2), k = ln(2/α - 1)/Δ, s = 1/(1 - α)."""
    v = torch.linspace(0.02, 2.98, 75, dtype=torch.float64)
    v = v[(v - v.round()).abs() > 1e-3]
    k, s = math.log(2 / alpha - 1), 1 / (1 - alpha)
    i = torch.floor(v)

    def soft(x: torch.Tensor) -> torch.Tensor:
        return i + (s * torch.tanh(k * (x - i - 0.5)) + 1) / 2

    h = 1e-6
    expected = (soft(v + h) - soft(v - h)) / (2 * h)
    assert torch.allclose(gradient(DSQ(alpha), v, None), expected, atol=1e-6)
    # The curve joins the levels: it is continuous from one step to the next.
    ends = i + torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None]
    assert torch.allclose(i + (s * torch.tanh(k * (ends - i - 0.5)) + 1) / 2, ends)


def test_gradients_scale_with_the_gap_between_levels() -> None:
    """In a table a step is the gap between neighbours: 6 to 8 is like 0 to 1."""
    small = gradient(DSQ(), torch.tensor([0.3]), TABLE)
    wide = gradient(DSQ(), torch.tensor([6.6]), TABLE)
    assert torch.allclose(small, wide, atol=1e-5)


@pytest.mark.parametrize("count", [8, 1 << 15])
@pytest.mark.parametrize("table", [None, TABLE], ids=["uniform", "apot"])
def test_what_is_no_number_stays_none(count: int, table: torch.Tensor | None) -> None:
    """Training that diverges must be seen to: NaN is no level, by either way of finding one."""
    v = torch.zeros(count)
    v[3] = math.nan
    q = nearest_level(v, table)
    assert bool(q[3].isnan())
    assert int(q.isnan().sum()) == 1


def test_nearest_level_rounds_half_to_even_when_uniform() -> None:
    v = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert nearest_level(v, None).tolist() == [0.0, 2.0, 2.0, 0.0, -2.0]


def test_lsq_start_and_balance() -> None:
    x = torch.tensor([1.0, -3.0])
    assert float(initial_step(x, 7.0)) == pytest.approx(2 * 2 / math.sqrt(7))
    step = torch.tensor(0.3, requires_grad=True)
    scaled = scale_gradient(step, 100, 7.0)
    assert torch.equal(scaled, step)
    scaled.backward()
    assert float(step.grad) == pytest.approx(1 / math.sqrt(700))
