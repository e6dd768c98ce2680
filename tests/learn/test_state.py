"""A state dict holds everything: a network that loads it computes what the first one did."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from learn.networks import settled  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import (  # noqa: E402
    QuantConfig,
    ReconstructConfig,
    adaquant,
    adaround,
    align_biases,
    apot_config,
    brecq,
    calibrate,
    convert,
    export,
    freeze,
    freeze_stage,
    prepare,
    step_down,
)
from tinyq.learn.prepare import quant_layers  # noqa: E402

pytestmark = pytest.mark.torch

SHORT = ReconstructConfig(steps=20, batch=16)


def made(config: QuantConfig, seed: int = 0) -> tuple[torch.fx.GraphModule, Tensor]:
    """Prepared network of other float weights for each seed; data of the first."""
    model, _ = settled("resnet", seed)
    _, x = settled("resnet")
    prepared = prepare(model, config, x[:2])
    calibrate(prepared, [x])
    return prepared, x


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def reloaded(model: nn.Module, config: QuantConfig, tmp_path: Path) -> torch.fx.GraphModule:
    """Its state, through a file, in a network that was prepared from other weights."""
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other, _ = made(config, seed=7)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    return other


def moved(model: nn.Module) -> None:
    """Move weights as training does, so that neither network's levels come from its own."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in quant_layers(model).values():
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.add_(0.3 * layer.weight.std() * noise)


QUANTIZERS = {
    "uniform": {"weight_bits": 3},
    "uniform max": {"weight_bits": 8, "weight_range": "max"},
    "binary": {"weight_quantizer": "binary"},
    "ternary": {"weight_quantizer": "ternary"},
    "pot": {"weight_bits": 4, "weight_quantizer": "pot"},
    "apot": {"weight_bits": 4, "weight_quantizer": "apot"},
    "kmeans": {"weight_bits": 4, "weight_quantizer": "kmeans"},
    "quantile": {"weight_bits": 4, "weight_quantizer": "quantile"},
    "lcq": {"weight_bits": 4, "weight_quantizer": "lcq"},
    "codebook": {"weight_bits": 2, "weight_quantizer": "codebook", "codebook": (-3, -1, 1, 4)},
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_is_restored(name: str, tmp_path: Path) -> None:
    config = QuantConfig(**QUANTIZERS[name])  # type: ignore[arg-type]
    prepared, x = made(config)
    moved(prepared)
    again = reloaded(prepared, config, tmp_path)
    assert torch.equal(output(prepared, x), output(again, x))
    for key, layer in quant_layers(prepared).items():
        other = quant_layers(again)[key].weight_quantizer
        assert other.level_set == layer.weight_quantizer.level_set
    assert torch.equal(output(convert(prepared), x), output(convert(again), x))


def test_inq_is_restored_between_stages(tmp_path: Path) -> None:
    config = QuantConfig(weight_bits=5, weight_quantizer="inq")
    prepared, x = made(config)
    freeze_stage(prepared, 0.5)
    moved(prepared)
    again = reloaded(prepared, config, tmp_path)
    assert torch.equal(output(prepared, x), output(again, x))
    for model in (prepared, again):
        freeze_stage(model, 1.0)
    assert torch.equal(output(prepared, x), output(again, x))


def test_a_freeze_is_restored(tmp_path: Path) -> None:
    config = QuantConfig()
    prepared, x = made(config)
    freeze(prepared)
    again = reloaded(prepared, config, tmp_path)
    before = copy.deepcopy(again.state_dict())
    again.train()(10.0 * x)
    assert all(torch.equal(v, before[n]) for n, v in again.state_dict().items())


def test_aligned_biases_are_restored(tmp_path: Path) -> None:
    config = QuantConfig(weight_bits=4, act_bits=4)
    prepared, x = made(config)
    plain = output(prepared, x)
    assert align_biases(prepared) > 0
    assert not torch.equal(output(prepared, x), plain)
    again = reloaded(prepared, config, tmp_path)
    assert torch.equal(output(prepared, x), output(again, x))


@pytest.mark.parametrize("quantizer", ["uniform", "kmeans", "lcq", "apot"])
def test_chosen_rounding_is_restored_and_can_be_left(quantizer: str, tmp_path: Path) -> None:
    config = QuantConfig(weight_bits=3, weight_quantizer=quantizer)
    prepared, x = made(config)
    before = copy.deepcopy(prepared.state_dict())
    nearest = output(prepared, x)
    adaround(prepared, x, SHORT)
    assert not torch.equal(output(prepared, x), nearest)
    again = reloaded(prepared, config, tmp_path)
    assert torch.equal(output(prepared, x), output(again, x))
    assert torch.equal(output(convert(prepared), x), output(convert(again), x))
    again.load_state_dict(before)
    assert torch.equal(output(again, x), nearest)


def test_levels_of_another_configuration_are_refused() -> None:
    four, _ = made(QuantConfig(weight_bits=4))
    for config in (QuantConfig(weight_bits=3), QuantConfig(weight_bits=4, act_bits=4)):
        other, _ = made(config)
        with pytest.raises(TinyqError, match=r"TQ656.*levels from") as caught:
            other.load_state_dict(four.state_dict())
        assert caught.value.diagnostics[0].node in dict(other.named_modules())


def earlier(model: nn.Module) -> dict[str, Tensor]:
    """State as versions without levels and counts in it wrote it."""
    new = (".table", ".fixed", ".chosen")
    state = model.state_dict()
    return {
        n: v
        for n, v in state.items()
        if not n.endswith(new) and not (n.startswith("act.") and n.endswith(".steps"))
    }


def test_states_of_earlier_versions_load_or_say_why_not() -> None:
    config = QuantConfig(weight_bits=4, weight_quantizer="apot")
    prepared, x = made(config)
    other, _ = made(config, seed=7)
    other.load_state_dict(earlier(prepared))
    assert torch.equal(output(prepared, x), output(other, x))
    config = QuantConfig(weight_bits=4, weight_quantizer="kmeans")
    prepared, x = made(config)
    other, _ = made(config, seed=7)
    with pytest.raises(TinyqError, match=r"TQ656.*lacks the levels of kmeans"):
        other.load_state_dict(earlier(prepared))
    begun, _ = made(config)  # what the message says to do
    other.load_state_dict({**begun.state_dict(), **earlier(prepared)})
    assert torch.equal(output(prepared, x), output(other, x))


def test_after_adaround_everything_else_still_works() -> None:
    config = QuantConfig(weight_bits=4)
    prepared, x = made(config)
    adaround(prepared, x, SHORT)
    first = output(prepared, x)
    assert align_biases(prepared) >= 0
    aligned = output(prepared, x)
    assert float((aligned - first).abs().max()) < 0.3 * float(first.std())
    brecq(prepared, x, SHORT)
    adaround(prepared, x, SHORT)
    with pytest.raises(TinyqError, match=r"TQ652.*adaround"):
        adaquant(prepared, x, SHORT)
    model, _ = settled("resnet")
    lower = step_down(prepared, model, QuantConfig(weight_bits=3), x[:2])
    assert quant_layers(lower)["a"].weight_quantizer.chosen is None


def test_an_interrupted_reconstruction_leaves_the_network_as_it_was() -> None:
    prepared, x = made(QuantConfig(weight_bits=3))
    before = output(prepared, x)
    bad = x.clone()
    bad[3, 0, 0, 0] = float("nan")
    for method in (adaround, brecq, adaquant):
        with pytest.raises(TinyqError, match=r"TQ653.*NaN.*in 1 of"):
            method(prepared, bad, SHORT)
    assert torch.equal(output(prepared, x), before)


def test_reconstruction_of_a_network_without_gradients() -> None:
    prepared, x = made(QuantConfig(weight_bits=3))
    before = output(prepared, x)
    prepared.requires_grad_(False)
    with torch.no_grad():
        adaquant(prepared, x, SHORT, weight_lr=1e-3)
        adaround(prepared, x, SHORT)
    assert not torch.equal(output(prepared, x), before)
    assert not any(p.requires_grad for p in prepared.parameters())


def test_unfrozen_inq_weights_are_not_converted(tmp_path: Path) -> None:
    prepared, x = made(QuantConfig(weight_bits=5, weight_quantizer="inq"))
    freeze_stage(prepared, 0.5)
    with pytest.raises(TinyqError, match=r"TQ658.*50% of the weights.*freeze_stage"):
        convert(prepared)
    with pytest.raises(TinyqError, match="TQ658"):
        export(prepared, tmp_path / "model.onnx")
    for method in (adaround, adaquant):
        with pytest.raises(TinyqError, match=r"TQ652.*inq"):
            method(prepared, x, SHORT)
    freeze_stage(prepared, 1.0)
    assert torch.isfinite(output(convert(prepared), x)).all()


def test_a_stage_is_a_share_of_a_network_that_has_stages() -> None:
    prepared, _ = made(QuantConfig(weight_bits=5, weight_quantizer="inq"))
    for share in (50, -0.1, float("nan")):
        with pytest.raises(TinyqError, match=r"TQ652.*fraction"):
            freeze_stage(prepared, share)
    with pytest.raises(TinyqError, match=r"TQ652.*inq"):
        freeze_stage(made(QuantConfig())[0], 0.5)


def test_observed_ranges_stop_at_the_freeze_step_also_after_resuming(tmp_path: Path) -> None:
    config = QuantConfig(freeze_step=3)
    prepared, x = made(config)

    def steps(model: nn.Module, count: int, start: int) -> list[float]:
        seen = []
        for k in range(count):
            model.train()((start + k + 2.0) * x)
            seen.append(float(model.act.x.step))
        return seen

    seen = steps(prepared, 2, 0)
    seen += steps(reloaded(prepared, config, tmp_path), 3, 2)
    assert seen[0] < seen[1] < seen[2] == seen[3] == seen[4]


def test_step_down_refuses_another_network() -> None:
    four, x = made(apot_config(4))
    with pytest.raises(TinyqError, match=r"TQ654.*prepared from"):
        step_down(four, settled("mobilenetv2")[0], apot_config(3), x[:2])
    with pytest.raises(TinyqError, match="TQ654"):
        step_down(settled("resnet")[0], settled("resnet")[0], apot_config(3), x[:2])


def test_converted_and_float_networks_are_refused() -> None:
    prepared, x = made(QuantConfig())
    converted = convert(prepared)
    for network in (converted, settled("resnet")[0]):
        for method in (adaround, brecq, adaquant):
            with pytest.raises(TinyqError, match="TQ654"):
                method(network, x, SHORT)
        with pytest.raises(TinyqError, match="TQ654"):
            calibrate(network, [x])
        with pytest.raises(TinyqError, match="TQ654"):
            align_biases(network)
