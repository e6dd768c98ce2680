"""Training, EWGS's strength, diagnosis and reconstruction on networks whose answers are known."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from learn.networks import settled  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import (  # noqa: E402
    FitConfig,
    Monitor,
    QuantConfig,
    ReconstructConfig,
    adaquant,
    adaround,
    apot_config,
    brecq,
    calibrate,
    correct_bias,
    dead_filters,
    diagnose,
    find_blocks,
    fit,
    freeze_stage,
    prepare,
    reestimate_batch_norm,
    update_ewgs,
)
from tinyq.learn.curvature import largest_strength  # noqa: E402
from tinyq.learn.prepare import quant_layers  # noqa: E402
from tinyq.learn.quantizers import WeightQuantizer  # noqa: E402
from tinyq.learn.reconstruct import Segment  # noqa: E402

pytestmark = pytest.mark.torch


class Data:
    """Batches of a task that ten prototypes define."""

    def __init__(self, count: int = 256, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(10, 3, 2, 2, generator=torch.Generator().manual_seed(99))
        prototypes = F.interpolate(coarse, scale_factor=8.0)
        self.y = torch.randint(0, 10, (count,), generator=generator)
        self.x = prototypes[self.y] + torch.randn(count, 3, 16, 16, generator=generator)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.x.split(64), self.y.split(64), strict=True)


def accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return float((model.eval()(data.x).argmax(1) == data.y).float().mean())


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Float network that solves the task."""
    model, _ = settled("resnet")
    fit(model, Data(), FitConfig(epochs=8, lr=1e-2), progress=False)
    assert accuracy(model, Data(seed=1)) > 0.9
    return model


def low_bits(model: nn.Module, **fields: object) -> torch.fx.GraphModule:
    data = Data()
    config = QuantConfig(weight_bits=2, act_bits=8, **fields)  # type: ignore[arg-type]
    prepared = prepare(model, config, data.x[:2])
    calibrate(prepared, [data.x])
    return prepared


def test_training_recovers_what_two_bits_lost(trained: nn.Module) -> None:
    data, test = Data(), Data(seed=1)
    prepared = prepare(
        trained, QuantConfig(weight_bits=2, act_bits=2, act_range="learned"), data.x[:2]
    )
    calibrate(prepared, [data.x])
    before = accuracy(prepared, test)
    result = fit(prepared, data, FitConfig(epochs=4, lr=2e-3), progress=False)
    assert len(result.losses) == 4
    assert accuracy(prepared, test) > before + 0.05


def test_an_interrupted_run_resumes_to_the_same_weights(trained: nn.Module, tmp_path: Path) -> None:
    data = Data(128)

    def run(epochs: list[int], checkpoint: Path | None) -> dict[str, Tensor]:
        for stop in epochs:
            prepared = low_bits(trained)
            config = FitConfig(epochs=4, lr=1e-3)
            if stop < 4:  # an interruption: the loss function raises after that many epochs
                with pytest.raises(KeyboardInterrupt):
                    fit(prepared, data, config, loss=_stops_after(2 * stop), checkpoint=checkpoint,
                        progress=False)  # fmt: skip
            else:
                fit(prepared, data, config, checkpoint=checkpoint, progress=False)
        return prepared.state_dict()

    whole = run([4], None)
    resumed = run([2, 4], tmp_path / "run.pt")
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def _stops_after(steps: int) -> object:
    count = 0

    def loss(out: Tensor, y: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count > steps:
            raise KeyboardInterrupt
        return F.cross_entropy(out, y)

    return loss


def test_a_loss_that_is_not_finite_is_explained(trained: nn.Module) -> None:
    prepared = low_bits(trained)
    with pytest.raises(TinyqError, match="TQ655"):
        fit(prepared, Data(64), loss=lambda out, y: out.sum() * float("nan"), progress=False)


def test_inq_in_stages_ends_in_powers_of_two(trained: nn.Module) -> None:
    data = Data()
    prepared = prepare(trained, QuantConfig(weight_bits=5, weight_quantizer="inq"), data.x[:2])
    calibrate(prepared, [data.x])
    for share in (0.5, 0.75, 0.82, 1.0):
        freeze_stage(prepared, share)
        if share < 1.0:
            fit(prepared, data, FitConfig(epochs=1, lr=1e-3), progress=False)
    layer = quant_layers(prepared)["b"]
    exponents = layer.weight_quantizer(layer.weight).detach().abs().unique()
    exponents = exponents[exponents > 0].log2()
    assert torch.equal(exponents, exponents.round())
    assert accuracy(prepared, Data(seed=1)) > 0.85


class Quadratic(nn.Module):
    """One layer whose output is its weight times ones: the loss is a known function of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_strength_of_a_quadratic_loss_is_exact() -> None:
    """L = ½·c·Σ w²: H = c·I, so Tr(H)/N = c, g = c·w, λ = c·span / (3·std(c·w))."""
    torch.manual_seed(0)
    config = QuantConfig(
        weight_bits=4, weight_estimator="ewgs", per_channel=False, first_last_bits=None
    )
    model = prepare(Quadratic(), config, torch.eye(4))
    for quantizer in model.act.children():
        quantizer.enabled = False
    layer = model.fc
    q = layer.weight_quantizer(layer.weight).detach()
    span = float(layer.weight_quantizer.step.detach().abs()) * 14
    found = update_ewgs(model, [(torch.eye(4), torch.zeros(4, 3))] * 3,
                        lambda out, y: 2.5 * out.square().sum(), guarded=False)  # fmt: skip
    expected = span / (3 * float(q.std()))  # the factor c cancels
    assert found["fc.weight_quantizer"] == pytest.approx(expected, rel=1e-4)


def test_a_negative_trace_gives_no_strength() -> None:
    torch.manual_seed(0)
    config = QuantConfig(weight_bits=4, weight_estimator="ewgs", first_last_bits=None)
    model = prepare(Quadratic(), config, torch.eye(4))
    found = update_ewgs(
        model, [(torch.eye(4), torch.zeros(4, 3))], lambda out, y: -out.square().sum()
    )
    assert list(found.values()) == [0.0]


def kill(layer: nn.Module, *filters: int) -> None:
    """Make filters quantize to zero altogether, as a threshold that is too large does."""
    with torch.no_grad():
        for f in filters:
            layer.weight[f] *= 1e-3


def test_a_dead_filter_explodes_the_strength_unless_guarded(trained: nn.Module) -> None:
    """The survey's failure: BatchNorm of a dead filter multiplies its gradient by 1/sqrt(eps)."""
    data = Data()
    config = QuantConfig(weight_bits=2, weight_estimator="ewgs", per_channel=False)
    strengths = {}
    for guarded in (False, True):
        prepared = prepare(trained, config, data.x[:2])
        calibrate(prepared, [data.x])
        kill(prepared.a, 0, 1)
        with torch.no_grad():
            prepared.bn_a.bias[:2] = 0.5  # a closed ReLU would hide the dead filters
        prepared.train()
        torch.manual_seed(0)
        assert dead_filters(prepared)["a"][:2] == [0, 1]
        found = update_ewgs(prepared, list(data)[:3], F.cross_entropy, probes=20, guarded=guarded)
        strengths[guarded] = found["a.weight_quantizer"]
    limit = largest_strength(prepared.a.weight_quantizer)
    assert limit == 4.0  # ternary: 2·(L - 1)
    assert strengths[True] < limit < strengths[False]


def test_diagnosis_names_layer_and_cure(trained: nn.Module) -> None:
    prepared = low_bits(trained, weight_estimator="ewgs", per_channel=False, act_range="max")
    kill(prepared.b, 3)
    prepared.a.weight_quantizer.strength.fill_(50.0)
    prepared.act.relu.set_threshold(0.3)
    with torch.no_grad():
        prepared.fc.bias[0] = float("inf")
    found = {(f.kind, f.name): str(f) for f in diagnose(prepared, Data(64).x)}
    assert "channels 3" in found["dead", "b"]
    assert "ladder" in found["dead", "b"]
    assert "change sign" in found["lambda", "a.weight_quantizer"]
    assert "learning rate" in found["nan", "fc.bias"]
    assert "calibrate" in found["clipping", "act.relu"]


def test_a_healthy_network_gets_no_finding(trained: nn.Module) -> None:
    data = Data(64)
    prepared = prepare(trained, QuantConfig(act_range="max"), data.x[:2])
    calibrate(prepared, [data.x])
    assert diagnose(prepared, data.x) == []


def test_oscillating_weights_are_noticed(trained: nn.Module) -> None:
    prepared = low_bits(trained)
    monitor = Monitor(prepared)
    original = prepared.a.weight.detach().clone()
    for step in range(40):
        with torch.no_grad():  # every weight swings over half a step, as on a boundary
            swing = prepared.a.weight_quantizer.step.abs() * (1 if step % 2 else -1)
            prepared.a.weight.copy_(original.sign() * 0.5 * swing.abs() + 0.1 * swing)
        monitor.step()
    assert monitor.oscillating()["a"] > 0.9
    assert monitor.oscillating()["b"] == 0.0
    assert [f.name for f in monitor.findings()] == ["a"]


def test_blocks_follow_the_residual_connections() -> None:
    model, x = settled("resnet")
    assert find_blocks(prepare(model, QuantConfig(), x[:2])) == [
        ["conv1"], ["a", "b", "down.0"], ["fc"]
    ]  # fmt: skip
    model, x = settled("mobilenetv2")
    blocks = find_blocks(prepare(model, QuantConfig(), x[:2]))
    assert blocks == [["stem.0"], ["expand.0", "depthwise.0", "project.0"], ["classifier"]]


def output_error(prepared: torch.fx.GraphModule, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((prepared.eval()(x) - model.eval()(x)).square().mean())


@pytest.mark.parametrize("quantizer", ["uniform", "apot", "kmeans"])
@pytest.mark.parametrize("method", [adaround, brecq])
def test_trained_rounding_beats_nearest(trained: nn.Module, method: object, quantizer: str) -> None:
    data, unseen = Data(), Data(128, seed=1)
    config = QuantConfig(
        weight_bits=3, weight_quantizer=quantizer, per_channel=quantizer != "kmeans"
    )
    prepared = prepare(trained, config, data.x[:2])
    calibrate(prepared, [data.x])
    nearest = output_error(prepared, trained, unseen.x)
    method(prepared, data.x, ReconstructConfig(steps=240, lr=3e-2))  # type: ignore[operator]
    assert output_error(prepared, trained, unseen.x) < 0.8 * nearest
    # What is exported are levels, each a neighbour of the weight.
    layer = prepared.b
    q, step = layer.weight_quantizer.integers(layer.weight)
    assert set(q.unique().int().tolist()) <= set(layer.weight_quantizer.level_set.integers)
    source = copy.deepcopy(layer.weight_quantizer)
    assert isinstance(source, WeightQuantizer)
    source.chosen = None
    nearest_q, _ = source.integers(layer.weight)
    assert 0 < int((q != nearest_q).sum()) < q.numel() // 2
    with torch.no_grad():
        assert torch.equal(layer.weight_quantizer(layer.weight), q * step.reshape(-1, 1, 1, 1))


def test_adaquant_beats_nearest(trained: nn.Module) -> None:
    data, unseen = Data(), Data(128, seed=1)
    prepared = low_bits(trained)
    nearest = output_error(prepared, trained, unseen.x)
    adaquant(prepared, data.x, ReconstructConfig(steps=60, batch=50), weight_lr=1e-3)
    assert output_error(prepared, trained, unseen.x) < 0.8 * nearest


def test_bias_correction_removes_the_mean_error(trained: nn.Module) -> None:
    data = Data()
    prepared = low_bits(trained)
    reference = copy.deepcopy(prepared)
    correct_bias(prepared, data.x)
    for name in quant_layers(prepared):
        segment = Segment.of(prepared, [name], activation=False)
        target, given = segment.data(data.x, reference)
        with torch.no_grad():
            difference = target - segment.run(given)
        dims = [d for d in range(difference.dim()) if d != 1]
        assert float(difference.mean(dims).abs().max()) < 1e-4 * float(target.abs().max()) + 1e-5


def test_statistics_are_measured_anew(trained: nn.Module) -> None:
    data = Data()
    prepared = low_bits(trained)
    reestimate_batch_norm(prepared, [data.x])
    collected = []
    handle = prepared.bn_a.register_forward_pre_hook(lambda m, args: collected.append(args[0]))
    with torch.no_grad():
        prepared.eval()(data.x)
    handle.remove()
    assert torch.allclose(prepared.bn_a.running_mean, collected[0].mean((0, 2, 3)), atol=1e-2)
    assert not prepared.bn_a.training


def test_normalised_weights_get_statistics_of_their_own(trained: nn.Module) -> None:
    """Without new statistics a network with APoT's weights starts at chance."""
    data = Data()
    prepared = prepare(trained, apot_config(4), data.x[:2])
    calibrate(prepared, [data.x])
    assert accuracy(prepared, Data(seed=1)) > 0.7
