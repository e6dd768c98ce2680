"""Training that fails: each way ends in one error or finding that names the cause and the cure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from learn.networks import settled  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import (  # noqa: E402
    FitConfig,
    FitResult,
    Monitor,
    QuantConfig,
    ReconstructConfig,
    adaround,
    calibrate,
    convert,
    diagnose,
    fit,
    freeze,
    prepare,
    reestimate_batch_norm,
)
from tinyq.learn.prepare import act_quantizers  # noqa: E402

pytestmark = pytest.mark.torch

Pairs = list[tuple[Tensor, Tensor]]


def task(seed: int = 0, count: int = 512) -> Pairs:
    """Batches of 64 points around eight corners: 12 inputs, 8 classes."""
    corners = torch.randn(8, 12, generator=torch.Generator().manual_seed(42))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 8, (count,), generator=generator)
    x = corners[y] + 0.4 * torch.randn(count, 12, generator=generator)
    return list(zip(x.split(64), y.split(64), strict=True))


def mlp(norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    hidden = [nn.Linear(12, 24), *([nn.BatchNorm1d(24)] if norm else []), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8))


def prepared(norm: bool = False, **fields: object) -> torch.fx.GraphModule:
    made = prepare(mlp(norm), QuantConfig(**fields), task()[0][0][:2])  # type: ignore[arg-type]
    calibrate(made, task())
    return made


def train(model: nn.Module, data: object, config: FitConfig, **other: object) -> FitResult:
    return fit(model, data, config, progress=False, device="cpu", **other)  # type: ignore[arg-type]


def message(caught: pytest.ExceptionInfo[TinyqError]) -> str:
    return str(caught.value)


def with_nan(data: Pairs) -> Pairs:
    x = data[-1][0].clone()
    x[2, 3] = math.nan
    return [*data[:-1], (x, data[-1][1])]


def test_a_loss_that_rose_is_said_in_numbers_with_the_cure() -> None:
    model = prepared(norm=True)
    with pytest.warns(UserWarning, match="rose"):
        result = train(model, task(), FitConfig(epochs=3, lr=1.0))
    (found,) = [f for f in result.findings if f.kind == "diverged"]
    assert result.losses[-1] > 2.0
    assert "lower the learning rate" in found.text
    start, end = (float(v) for v in (found.text.split()[2], found.text.split()[8]))
    assert start == pytest.approx(2.1, abs=0.3)  # log(8), before any update
    assert end > 2 * start


@pytest.mark.parametrize("lr", [1e3, 1e12])
def test_a_loss_without_bound_is_an_error(lr: float) -> None:
    model = prepared()
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    with pytest.raises(TinyqError, match="TQ655") as caught:
        train(model, task(), FitConfig(epochs=3, clip=None), optimizer=sgd)
    assert "lower the learning rate" in message(caught)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("norm", [False, True])
def test_training_that_works_gets_no_warning(bits: int, norm: bool) -> None:
    model = prepared(norm, weight_bits=bits)
    result = train(model, task(), FitConfig(epochs=20, lr=1e-2))
    assert result.losses[-1] < 0.5
    assert "diverged" not in [f.kind for f in result.findings]
    if bits == 8:
        assert result.findings == []


def swinging(model: torch.fx.GraphModule, name: str) -> Monitor:
    """Monitor of a layer whose every weight goes up and down by a level at each step."""
    monitor = Monitor(model)
    layer = model.get_submodule(name)
    start = layer.weight.detach().clone()
    for k in range(40):
        with torch.no_grad():
            step = layer.weight_quantizer.current_step(layer.weight)
            layer.weight.copy_(start + step * (k % 2))
        monitor.step()
    return monitor


def test_swings_count_where_they_move_the_output() -> None:
    fields = {"weight_range": "mse", "first_last_bits": None}
    for bits, reported in ((8, False), (7, False), (3, True), (2, True)):
        monitor = swinging(prepared(weight_bits=bits, **fields), "2")
        assert monitor.oscillating()["2"] > 0.5
        assert bool(monitor.findings()) == reported, bits


def test_the_cure_for_swings_is_one_that_applies() -> None:
    fields = {"weight_bits": 2, "weight_range": "mse"}
    (found,) = swinging(prepared(**fields), "2").findings()
    assert "BatchNorm" not in found.text
    assert "learning rate end at 0" in found.text
    model = prepared(norm=True, **fields)
    (found,) = swinging(model, "3").findings()
    assert "freeze BatchNorm" in found.text
    freeze(model)
    (found,) = swinging(model, "3").findings()
    assert "freeze BatchNorm" not in found.text
    assert "re-estimate" in found.text


@pytest.mark.parametrize("frozen", [False, True])
def test_nan_in_the_data_is_blamed_on_the_data(frozen: bool) -> None:
    model = prepared()
    if frozen:
        freeze(model)
    with pytest.raises(TinyqError, match="TQ655 batch 7 of epoch 1 holds NaN") as caught:
        train(model, with_nan(task()), FitConfig(epochs=2))
    assert "in 1 of 768 input values" in message(caught)
    assert "calibrate" not in message(caught)
    assert diagnose(model, task()[0][0]) == []  # nothing in the network has seen it
    targets = [(x, F.one_hot(y, 8) + math.inf) for x, y in task()]
    with pytest.raises(TinyqError, match="the batch's targets hold"):
        train(prepared(), targets, FitConfig(epochs=1), loss=F.mse_loss)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_first_layer_that_overflows_is_named(frozen: bool) -> None:
    model = prepared()
    if frozen:
        freeze(model)
        for quantizer in act_quantizers(model).values():
            quantizer.enabled = False
    with torch.no_grad():
        for name in ("0", "2"):
            model.get_submodule(name).weight.mul_(1e20)
    with pytest.raises(TinyqError, match="TQ655") as caught:
        train(model, task(), FitConfig(epochs=1))
    assert "'2' is the first layer" in message(caught)
    assert "lower the learning rate" in message(caught)
    if frozen:
        assert [f.name for f in diagnose(model, task()[0][0]) if f.kind == "nan"] == ["2"]


def test_weights_of_nan_are_named() -> None:
    model = prepared()
    with torch.no_grad():
        model.get_submodule("2").weight[0, 0] = math.nan
    with pytest.raises(TinyqError, match=r"TQ655.*2\.weight holds NaN.*diverged"):
        train(model, task(), FitConfig(epochs=1))


def test_a_loss_function_that_gives_nan_is_told_from_the_network() -> None:
    with pytest.raises(TinyqError, match="look at the loss function"):
        train(prepared(), task(), FitConfig(epochs=1),
              loss=lambda out, y: F.cross_entropy(out, y) * math.nan)  # fmt: skip


def test_a_sample_with_nan_is_found() -> None:
    (found,) = diagnose(prepared(act_range="max"), with_nan(task())[-1][0])
    assert (found.kind, found.name) == ("nan", "the sample")
    assert "1 of 768" in found.text


def test_a_diverging_companding_is_explained() -> None:
    model = prepared(weight_bits=3, weight_quantizer="lcq")
    with torch.no_grad():
        model.get_submodule("2").weight_quantizer.rise[0] = math.nan
    with pytest.raises(TinyqError, match=r"TQ655.*2\.weight_quantizer\.rise"):
        train(model, task(), FitConfig(epochs=1))


def used() -> Iterator[tuple[Tensor, Tensor]]:
    exhausted = iter(task())
    list(exhausted)
    return exhausted


def test_no_data_is_an_error_wherever_data_is_needed() -> None:
    model = prepared(norm=True)
    for data in ([], used(), iter(())):
        with pytest.raises(TinyqError, match=r"TQ653.*no batch"):
            reestimate_batch_norm(model, data)
        with pytest.raises(TinyqError, match=r"TQ653.*no batch"):
            calibrate(model, data)
    for data in ([], used()):
        with pytest.raises(TinyqError, match=r"TQ655.*no batch in epoch 1"):
            train(model, data, FitConfig(epochs=1))
    with pytest.raises(TinyqError, match=r"TQ655.*once only"):
        train(model, iter(task()), FitConfig(epochs=3))
    assert len(train(model, iter(task()), FitConfig(epochs=1)).losses) == 1


def test_what_calibration_accepts() -> None:
    """Pairs, arrays and a single tensor give the ranges that a list of tensors gives."""
    inputs = [x for x, _ in task()]
    wanted = steps_after(inputs)
    assert steps_after(task()) == wanted
    assert steps_after([x.double().numpy() for x in inputs]) == wanted
    assert steps_after([[x, y] for x, y in task()]) == wanted
    assert steps_after(torch.cat(inputs)) == steps_after([torch.cat(inputs)])
    assert steps_after(torch.cat(inputs).numpy()) == steps_after([torch.cat(inputs)])
    for wrong in ([{"x": inputs[0]}], ["x"], [None]):
        with pytest.raises(TinyqError, match=r"TQ653.*batch 0 is a"):
            steps_after(wrong)


def steps_after(batches: object) -> list[float]:
    model = prepared()
    calibrate(model, batches)  # type: ignore[arg-type]
    return [float(q.step) for q in act_quantizers(model).values()]


@pytest.mark.parametrize("rule", ["max", "ema", "percentile", "mse", "learned"])
def test_nan_does_not_pass_calibration(rule: str) -> None:
    model = prepared(act_range=rule)
    with pytest.raises(TinyqError, match=r"TQ653.*batch 7 holds NaN or infinity in 1 of 768"):
        calibrate(model, with_nan(task()))
    with torch.no_grad():  # one value of thousands, behind finite data
        model.get_submodule("2").bias[0] = math.inf
    with pytest.raises(TinyqError, match=r"TQ653 '?.*act\..*diagnose"):
        calibrate(model, task())


def rates(data: object, epochs: int) -> list[float]:
    """Learning rate at each step."""
    model = prepared()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    seen = []

    def loss(out: Tensor, y: Tensor) -> Tensor:
        seen.append(optimizer.param_groups[0]["lr"])
        return 0.0 * F.cross_entropy(out, y)

    train(model, data, FitConfig(epochs=epochs), optimizer=optimizer, loss=loss)
    return seen


class Lengthless:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(task())


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_rate_ends_at_zero(epochs: int) -> None:
    seen = rates(task(), epochs)
    steps = 8 * epochs
    assert seen == pytest.approx([0.5 + 0.5 * math.cos(math.pi * k / steps) for k in range(steps)])
    assert seen[-1] < 0.04
    if epochs > 1:
        assert rates(Lengthless(), epochs)[8:] == pytest.approx(seen[8:])


def test_a_resumed_rate_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    seen: list[float] = []
    for stop in (17, 100):
        model = prepared()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

        def loss(out: Tensor, y: Tensor) -> Tensor:
            if len(seen) == stop:  # noqa: B023
                raise KeyboardInterrupt
            seen.append(optimizer.param_groups[0]["lr"])  # noqa: B023
            return 0.0 * F.cross_entropy(out, y)

        try:
            train(model, Lengthless(), FitConfig(epochs=3), optimizer=optimizer, loss=loss,
                  checkpoint=path)  # fmt: skip
        except KeyboardInterrupt:
            seen = seen[:16]
    assert seen[8:] == pytest.approx(rates(task(), 3)[8:])


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    short = FitConfig(epochs=1)
    train(prepared(weight_bits=4), task(), short, checkpoint=path)
    with pytest.raises(TinyqError, match=r"TQ656.*weight_bits was 4, is 3") as caught:
        train(prepared(weight_bits=3), task(), short, checkpoint=path)
    assert caught.value.diagnostics[0].file == str(path)
    with pytest.raises(TinyqError, match=r"TQ656.*not quantized"):
        train(mlp(), task(), short, checkpoint=path)
    wide = prepare(nn.Sequential(nn.Linear(12, 8)), QuantConfig(weight_bits=4), task()[0][0][:2])
    with pytest.raises(TinyqError, match=r"TQ656.*another network"):
        train(wide, task(), short, checkpoint=path)
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(TinyqError, match=r"TQ656.*not a checkpoint"):
        train(prepared(), task(), short, checkpoint=tmp_path / "text.pt")
    for wrong in (tmp_path / "none" / "run.pt", tmp_path):
        with pytest.raises(TinyqError, match=r"TQ703.*folder"):
            train(prepared(), task(), short, checkpoint=wrong)


def test_networks_that_do_not_train_are_refused() -> None:
    with pytest.raises(TinyqError, match=r"TQ654.*converted"):
        train(convert(prepared()), task(), FitConfig(epochs=1))
    model = prepared(weight_bits=4)
    adaround(model, task()[0][0], ReconstructConfig(steps=5))
    with pytest.warns(UserWarning, match="adaround"):
        train(model, task(), FitConfig(epochs=1))
    with pytest.raises(TinyqError, match=r"TQ655.*not a pair"):
        train(prepared(), [x for x, _ in task()], FitConfig(epochs=1))


def test_arrays_train_as_tensors_do() -> None:
    arrays = [(x.numpy(), y.numpy()) for x, y in task()]
    assert isinstance(arrays[0][0], np.ndarray)
    config = FitConfig(epochs=2)
    assert train(prepared(), arrays, config).losses == train(prepared(), task(), config).losses


def test_measuring_statistics_leaves_a_freeze() -> None:
    model, x = settled("resnet")
    made = prepare(model, QuantConfig(), x[:2])
    calibrate(made, [x])
    freeze(made)
    reestimate_batch_norm(made, [3.0 * x])
    before = made.bn1.running_var.clone()
    assert float(before.sum()) > 4 * float(model.bn1.running_var.sum())
    made.train()(x)
    assert torch.equal(made.bn1.running_var, before)
