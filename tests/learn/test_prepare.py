"""Where quantizers go, what stays as it was, and what is refused."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from learn.networks import NETWORKS, settled  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import QuantConfig, apot_config, calibrate, freeze, prepare, step_down  # noqa: E402
from tinyq.learn.prepare import act_quantizers, input_quantizers, quant_layers  # noqa: E402
from tinyq.learn.quantizers import AffineActQuantizer, TableActQuantizer  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", NETWORKS)
def test_names_of_parameters_stay(name: str) -> None:
    model, x = settled(name)
    prepared = prepare(model, QuantConfig(), x[:2])
    assert set(model.state_dict()) <= set(prepared.state_dict())
    extra = set(dict(prepared.named_parameters())) - set(dict(model.named_parameters()))
    assert all(n.startswith("act.") or ".weight_quantizer." in n for n in extra)


def test_the_users_network_is_not_touched() -> None:
    model, x = settled("resnet")
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(model, QuantConfig(weight_bits=2), x[:2])
    calibrate(prepared, [x])
    prepared.train()(x).sum().backward()
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert model.relu.inplace


def test_eight_bits_cost_little() -> None:
    for name in NETWORKS:
        model, x = settled(name)
        prepared = prepare(model, QuantConfig(act_range="max"), x[:2])
        calibrate(prepared, [x])
        with torch.no_grad():
            expected = model(x)
            noise = (prepared.eval()(x) - expected).square().mean().sqrt()
        assert 0 < float(noise / expected.std()) < 0.08, name


def test_values_that_are_added_keep_eight_bits() -> None:
    model, x = settled("resnet")
    prepared = prepare(model, QuantConfig(weight_bits=4, act_bits=4), x[:2])
    bits = {n.removeprefix("act."): q.bits for n, q in act_quantizers(prepared).items()}  # type: ignore[attr-defined]
    # relu feeds `a` and the branch `down`: 8 bits, and 4 at each of the two; relu_1 only `b`.
    assert bits == {
        "x": 8, "relu": 8, "a_input": 4, "down_0_input": 4, "relu_1": 4, "bn_b": 8, "down_1": 8,
        "relu_2": 8, "avgpool": 8, "fc": 8,
    }  # fmt: skip
    widths = {n: layer.weight_quantizer.level_set for n, layer in quant_layers(prepared).items()}
    assert widths["conv1"].largest == widths["fc"].largest == 127
    assert widths["a"].largest == 7


def test_signs_follow_from_the_graph() -> None:
    model, x = settled("mobilenetv2")
    prepared = prepare(model, QuantConfig(), x[:2])
    signed = {n: q.signed for n, q in input_quantizers(prepared).items()}
    assert signed == {
        "stem.0": True, "expand.0": False, "depthwise.0": False, "project.0": False,
        "classifier": True,
    }  # fmt: skip
    model, x = settled("resnet")
    signed = {
        n: q.signed for n, q in input_quantizers(prepare(model, QuantConfig(), x[:2])).items()
    }
    assert signed == {"conv1": True, "a": False, "b": False, "down.0": False, "fc": False}


def test_no_quantizer_after_what_moves_integers() -> None:
    model, x = settled("resnet")
    names = act_quantizers(prepare(model, QuantConfig(), x[:2]))
    assert not {"act.maxpool", "act.view", "act.bn1", "act.conv1"} & set(names)


def test_tables_are_at_the_inputs_of_low_bit_layers() -> None:
    model, x = settled("resnet")
    prepared = prepare(model, apot_config(3), x[:2])
    inputs = input_quantizers(prepared)
    assert all(isinstance(inputs[n], TableActQuantizer) for n in ("a", "b", "down.0"))
    assert all(isinstance(inputs[n], AffineActQuantizer) for n in ("conv1", "fc"))


def test_statistics_freeze_at_the_stated_step_also_after_resuming() -> None:
    model, x = settled("resnet")
    config = QuantConfig(freeze_step=3)
    prepared = prepare(model, config, x[:2]).train()
    seen = []
    for _ in range(2):
        prepared(x + 1.0)
        seen.append(prepared.bn1.running_mean.clone())
    resumed = prepare(model, config, x[:2]).train()
    resumed.load_state_dict(prepared.state_dict())
    for _ in range(3):
        resumed(x + 1.0)
        seen.append(resumed.bn1.running_mean.clone())
    moved = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert moved == [True, True, False, False]


def test_frozen_statistics_are_what_training_normalises_with() -> None:
    model, x = settled("resnet")
    prepared = prepare(model, QuantConfig(), x[:2])
    calibrate(prepared, [x])
    freeze(prepared)
    with torch.no_grad():
        assert torch.equal(prepared.train()(x), prepared.eval()(x))


def test_state_dict_resumes_exactly() -> None:
    model, x = settled("inception")
    config = QuantConfig(weight_bits=4, act_bits=4, act_range="learned")
    prepared = prepare(model, config, x[:2])
    calibrate(prepared, [x])
    again = prepare(model, config, x[:2])
    again.load_state_dict(prepared.state_dict())
    with torch.no_grad():
        assert torch.equal(prepared.eval()(x), again.eval()(x))


def test_copies_and_graph_survive_deepcopy() -> None:
    model, x = settled("resnet")
    prepared = prepare(model, QuantConfig(), x[:2])
    calibrate(prepared, [x])
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(prepared).eval()(x), prepared.eval()(x))


def test_calibration_leaves_known_thresholds() -> None:
    model, x = settled("resnet")
    prepared = prepare(model, apot_config(4), x[:2])
    known = input_quantizers(prepared)["b"]
    known.set_threshold(1.25)
    calibrate(prepared, [x], keep=[known])
    assert float(known.positive_step().detach()) * 48 == pytest.approx(1.25)
    assert all(bool(q.ready) for q in act_quantizers(prepared).values())


def test_the_ladder_carries_thresholds() -> None:
    model, x = settled("resnet")
    four = prepare(model, apot_config(4), x[:2])
    calibrate(four, [x])
    four.a.weight_quantizer.set_threshold(2.5)
    input_quantizers(four)["a"].set_threshold(1.5)
    with torch.no_grad():
        four.a.weight.mul_(1.1)
    three = step_down(four, model, apot_config(3), x[:2])
    assert float(three.a.weight_quantizer.step.detach()) * 4 == pytest.approx(2.5)
    assert float(input_quantizers(three)["a"].positive_step().detach()) * 10 == pytest.approx(1.5)
    assert torch.equal(three.a.weight, four.a.weight)
    assert torch.equal(three.bn_a.running_var, four.bn_a.running_var)
    with torch.no_grad():
        assert bool(torch.isfinite(three.eval()(x)).all())


class _Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class _Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x).abs()


class _AddsANumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1.0


class _LooseNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x)


REFUSED = [
    (_Branching(), "TQ650"),
    (_Unknown(), "TQ651"),
    (_AddsANumber(), "TQ651"),
    (_LooseNorm(), "TQ651"),
    (nn.Sequential(nn.GELU()), "TQ651"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same")), "TQ651"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), "TQ651"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(5)), "TQ651"),
]


@pytest.mark.parametrize(("model", "code"), REFUSED)
def test_what_cannot_be_quantized_is_named(model: nn.Module, code: str) -> None:
    with pytest.raises(TinyqError, match=code):
        prepare(model, QuantConfig(), torch.randn(2, 3, 16, 16))


def test_nan_weights_are_refused() -> None:
    model, x = settled("resnet")
    with torch.no_grad():
        model.a.weight[0] = float("nan")
    with pytest.raises(TinyqError, match="TQ653"):
        prepare(model, QuantConfig(), x[:2])


def test_public_names_exist_and_are_described() -> None:
    import tinyq.learn

    assert list(tinyq.learn.__all__) == sorted(tinyq.learn.__all__)
    for name in tinyq.learn.__all__:
        assert getattr(tinyq.learn, name).__doc__, name
