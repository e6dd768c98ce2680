"""Fake quantization: forward equals integers times step; gradients against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import QuantConfig, apot_config, levels  # noqa: E402
from tinyq.learn.estimators import STE  # noqa: E402
from tinyq.learn.observers import Observer  # noqa: E402
from tinyq.learn.quantizers import (  # noqa: E402
    AffineActQuantizer,
    INQQuantizer,
    TableActQuantizer,
    WeightQuantizer,
    weight_quantizer,
)

pytestmark = pytest.mark.torch


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


WEIGHTS = [
    (name, bits, per_channel)
    for name, widths in {
        "uniform": (2, 3, 4, 5, 6, 7, 8),
        "binary": (1,),
        "ternary": (2,),
        "pot": (2, 3, 4, 5),
        "inq": (3, 4, 5),
        "apot": (2, 3, 4, 5, 6, 7),
        "kmeans": (2, 4, 5),
        "quantile": (2, 4),
        "lcq": (2, 4),
    }.items()
    for bits in widths
    for per_channel in (False, True)
]


@pytest.mark.parametrize(("name", "bits", "per_channel"), WEIGHTS)
def test_forward_is_integers_times_step(name: str, bits: int, per_channel: bool) -> None:
    config = QuantConfig(
        weight_bits=bits, weight_quantizer=name, per_channel=per_channel, first_last_bits=None
    )
    w = weight()
    quantizer = weight_quantizer(config, w, bits)
    if isinstance(quantizer, INQQuantizer):
        quantizer.freeze(w, 1.0)
    q, step = quantizer.integers(w)
    assert torch.equal(quantizer(w), q * step.reshape(-1, 1, 1, 1))
    assert len(q.unique()) <= 2**bits
    assert torch.equal(q, q.round())
    assert bool((step > 0).all())
    if name not in ("kmeans", "quantile"):
        assert set(q.unique().int().tolist()) <= set(quantizer.level_set.integers) or name == "lcq"


@pytest.mark.parametrize("estimator", ["ste", "ewgs", "dsq", "daq", "lsq"])
@pytest.mark.parametrize("name", ["uniform", "pot", "apot", "kmeans", "quantile", "lcq", "ternary"])
def test_every_quantizer_takes_every_estimator(name: str, estimator: str) -> None:
    bits = 2 if name == "ternary" else 3
    config = QuantConfig(weight_bits=bits, weight_quantizer=name, weight_estimator=estimator)
    w = weight().requires_grad_()
    quantizer = weight_quantizer(config, w.detach(), bits)
    quantizer.strength.fill_(0.1)
    quantizer(w).square().sum().backward()
    assert w.grad is not None
    assert bool(torch.isfinite(w.grad).all())
    assert float(w.grad.abs().sum()) > 0


def test_apot_threshold_gradient() -> None:
    """∂L/∂α = Σ g·(sign(x) where |x| > 1, else q - x), x = w/α; ∂L/∂w = g everywhere."""
    quantizer = WeightQuantizer(
        levels.apot(4),
        STE(),
        mode="learned",
        per_channel=False,
        normalize=False,
        clip_gradient=False,
    )
    w = (2.0 * weight()).requires_grad_()
    alpha = 3.0
    quantizer.initialize(w.detach(), alpha)
    upstream = weight(1)
    quantizer(w).backward(upstream)
    x = w.detach() / alpha
    assert int((x.abs() > 1).sum()) > 5
    magnitudes = torch.tensor([0, 1, 2, 3, 4, 6, 8, 10]) / 10
    nearest = (x.abs().clamp(max=1)[..., None] - magnitudes).abs().argmin(-1)
    q = x.sign() * magnitudes[nearest]
    expected = (upstream * torch.where(x.abs() > 1, x.sign(), q - x)).sum()
    # The step is α/10, with LSQ's factor 1/sqrt(N·10) on its gradient.
    scale = (w.numel() * 10.0) ** 0.5 / 10.0
    assert float(quantizer.step.grad.sum() * scale) == pytest.approx(float(expected), rel=1e-4)
    assert torch.allclose(w.grad, upstream)


def test_normalised_weights_do_not_depend_on_scale_or_offset() -> None:
    w = weight()
    config = apot_config(4)
    first = weight_quantizer(config, w, 4)(w)
    second = weight_quantizer(config, 5 * w + 2, 4)(5 * w + 2)
    assert torch.allclose(first, second, atol=1e-5)


def test_lsq_step_gradient_against_the_papers_rule() -> None:
    """-x/s + round(x/s) inside the clip, the bound outside, times 1/sqrt(N·Qp)."""
    observer = Observer("learned", 16)
    quantizer = AffineActQuantizer(4, STE(), observer, signed=True, learned=True)
    quantizer.step.data.fill_(0.25)
    quantizer.ready.fill_(True)
    x = 2.0 * torch.randn(1, 200, generator=torch.Generator().manual_seed(5))
    quantizer(x).sum().backward()
    v = x / 0.25
    inside = (v > -8) & (v < 7)
    rule = torch.where(inside, v.round() - v, v.clamp(-8, 7))
    assert float(quantizer.step.grad) == pytest.approx(
        float(rule.sum()) / (200 * 7) ** 0.5, rel=1e-4
    )


def test_clipped_activations_get_no_gradient() -> None:
    quantizer = AffineActQuantizer(2, STE(), Observer("max", 4), signed=False)
    quantizer.eval().set_threshold(3.0)
    x = torch.tensor([-1.0, 0.4, 2.6, 3.4]).requires_grad_()
    out = quantizer(x)
    assert out.tolist() == [0.0, 0.0, 3.0, 3.0]
    out.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(("signed", "bits"), [(False, 2), (False, 3), (False, 4), (True, 4)])
def test_tables_choose_the_nearest_level(signed: bool, bits: int) -> None:
    level_set = levels.apot(bits) if signed else levels.apot_unsigned(bits)
    quantizer = TableActQuantizer(level_set, STE(), Observer("max", 4), learned=False)
    quantizer.eval().set_threshold(2.0)
    x = torch.linspace(-2.5 if signed else 0.0, 2.5, 5003)
    step = 2.0 / level_set.largest
    distance = (x[:, None] - levels.table_of(level_set) * step).abs()
    found = (quantizer(x) - x).abs()
    # At most half an 8-bit step further than the nearest level, and only beside a midpoint.
    assert float((found - distance.min(1).values).max()) <= step / quantizer.fine + 1e-6
    exact = (quantizer(x) / step).round() == levels.table_of(level_set)[distance.argmin(1)]
    assert float(exact.float().mean()) > 0.96
    integers = torch.round(x / (step / quantizer.fine)).clamp(
        *((-128, 127) if signed else (0, 255))
    )
    index = integers.long() + (128 if signed else 0)
    room = 127 if signed else 255
    assert quantizer.factor * level_set.largest <= room < (quantizer.factor + 1) * level_set.largest
    assert float(quantizer.exported_step()) * quantizer.factor == pytest.approx(step)
    chosen = (quantizer(x) / step).round().long() * quantizer.factor
    assert torch.equal(chosen, quantizer.lookup()[index])


def test_inq_freezes_the_largest_and_keeps_them() -> None:
    w = weight().requires_grad_()
    quantizer = weight_quantizer(QuantConfig(weight_bits=5, weight_quantizer="inq"), w.detach(), 5)
    assert isinstance(quantizer, INQQuantizer)
    for fraction in (0.5, 0.75, 0.82):
        quantizer.freeze(w, fraction)
        assert int(quantizer.frozen.sum()) == round(fraction * w.numel())
    frozen = quantizer.frozen.clone()
    assert float(w.detach().abs()[frozen].min()) >= float(w.detach().abs()[~frozen].max())
    before = quantizer(w).detach()[frozen]
    w.grad = None
    quantizer(w).sum().backward()
    assert torch.equal(w.grad, (~frozen).float())
    with torch.no_grad():
        w.add_(0.3)  # what training does to the rest must not move the frozen ones
    assert torch.equal(quantizer(w).detach()[frozen], before)
    q, step = quantizer.integers(w)
    assert set(q.abs().unique().int().tolist()) <= {0, *(2**k for k in range(8))}
    top = float(before.abs().max())
    assert np.log2(top) == round(np.log2(top))
    assert torch.equal((q * step.reshape(-1, 1, 1, 1))[frozen], before)


def test_companding_learns_where_levels_are_needed() -> None:
    """On a Laplace distribution training must beat the even spacing it starts from."""
    torch.manual_seed(0)
    w = torch.distributions.Laplace(0.0, 1.0).sample((1, 2000))
    config = QuantConfig(weight_bits=4, weight_quantizer="lcq", first_last_bits=None)
    quantizer = weight_quantizer(config, w, 4)
    start = levels.sqnr_db(w, quantizer(w).detach())
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    for _ in range(60):
        loss = (quantizer(w) - w).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert levels.sqnr_db(w, quantizer(w).detach()) > start + 1.0


RANGES = [
    ("max", 0.0, 40.0),
    ("percentile", 0.0, 8.0),
    ("mse", 0.0, 25.0),
]


@pytest.mark.parametrize(("rule", "least", "most"), RANGES)
def test_observers_treat_outliers_as_they_promise(rule: str, least: float, most: float) -> None:
    torch.manual_seed(0)
    observer = Observer(rule, 16, percentile=99.9)
    for _ in range(5):
        x = torch.distributions.Exponential(1.0).sample((4, 1000))
        x[0, 7] = 40.0
        observer(x)
    low, high = observer.range()
    assert float(low) == 0.0
    assert least < float(high) <= most


def test_moving_average_follows_the_batches() -> None:
    observer = Observer("ema", 256, ema=0.5)
    for high in (2.0, 4.0, 8.0):
        observer(torch.tensor([-high / 2, high]))
    assert [float(v) for v in observer.range()] == [-2.75, 5.5]  # 2, then (2+4)/2, then (3+8)/2


@pytest.mark.parametrize("signed", [False, True])
def test_constant_zero_activation_has_a_step(signed: bool) -> None:
    quantizer = AffineActQuantizer(8, STE(), Observer("max", 256), signed=signed)
    quantizer.train()
    assert torch.equal(quantizer(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert float(quantizer.step) > 0


def test_nan_activation_is_refused() -> None:
    quantizer = AffineActQuantizer(8, STE(), Observer("max", 256), signed=False)
    quantizer.train()
    with pytest.raises(TinyqError, match="TQ653"):
        quantizer(torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_bits": 9}, {"act_bits": 1}, {"weight_quantizer": "log"},
        {"act_estimator": "magic"}, {"weight_quantizer": "codebook"}, {"codebook": (1.0, 2.0)},
        {"percentile": 0.5},
        {"act_range": "minmax"}, {"first_last_bits": 16},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(TinyqError, match="TQ652"):
        QuantConfig(**fields)  # type: ignore[arg-type]
