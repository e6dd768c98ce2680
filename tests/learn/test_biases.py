"""Whole biases: which ones change the fewest outputs, and steps that make the real ones whole."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from learn.networks import NETWORKS, settled  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import QuantConfig, align_biases, apot_config, calibrate, convert  # noqa: E402
from tinyq.learn.biases import least_moved  # noqa: E402
from tinyq.learn.estimators import STE  # noqa: E402
from tinyq.learn.layers import IntegerConv2d, QuantConv2d  # noqa: E402
from tinyq.learn.levels import apot_unsigned, table_of  # noqa: E402
from tinyq.learn.observers import Observer  # noqa: E402
from tinyq.learn.prepare import input_quantizers, prepare, quant_layers  # noqa: E402
from tinyq.learn.quantizers import (  # noqa: E402
    ActQuantizer,
    AffineActQuantizer,
    TableActQuantizer,
)

pytestmark = pytest.mark.torch


def table_quantizer(threshold: float) -> TableActQuantizer:
    found = TableActQuantizer(apot_unsigned(4), STE(), Observer("max", 256), learned=False)
    found.set_threshold(threshold)
    return found.double().eval()


def affine_quantizer(low: float, high: float) -> AffineActQuantizer:
    found = AffineActQuantizer(8, STE(), Observer("max", 256), signed=low < 0)
    found.set_range(torch.tensor(low), torch.tensor(high))
    found.ready.fill_(True)
    return found.double().eval()


def crossed(after: ActQuantizer, accumulators: np.ndarray, bias: float, unit: float) -> np.ndarray:
    """Index of the output's integer among those that differ, from what the quantizer computes."""
    out = after(torch.from_numpy((accumulators + bias) * unit)).numpy()
    levels = after.integers().numpy() * float(after.exported_step())
    return np.abs(out[:, None] - levels).argmin(1)


@pytest.mark.parametrize("after", ["levels", "unsigned", "signed"])
@pytest.mark.parametrize("factor", [1, 7, 12])
def test_no_whole_bias_near_changes_fewer_outputs(after: str, factor: int) -> None:
    """Against every accumulator that the inputs can make, and every bias within 32."""
    generator = np.random.default_rng(factor)
    weight = generator.choice([-8, -4, -2, -1, 0, 1, 2, 4, 8], (24, 5)) * factor
    weight[:, 0] = factor  # a channel's own common factor is the layer's
    before = table_quantizer(1.5)
    unit = np.full(24, 1.7e-3 / factor)
    taken = {
        "levels": lambda: table_quantizer(1.1),
        "unsigned": lambda: affine_quantizer(0.0, 2.0),
        "signed": lambda: affine_quantizer(-1.2, 2.0),
    }[after]()
    bias = generator.uniform(-300, 300, 24)
    chosen = least_moved(
        torch.from_numpy(bias),
        torch.from_numpy(weight).float(),
        torch.from_numpy(unit),
        before,
        taken,
        None,
    ).numpy()
    given = before.lookup().numpy()
    better = 0
    for row in range(24):
        low = int(np.minimum(weight[row] * given.min(), weight[row] * given.max()).sum())
        high = int(np.maximum(weight[row] * given.min(), weight[row] * given.max()).sum())
        every = np.arange(low, high + 1, factor * int(np.gcd.reduce(given)))
        assert 0 in every
        real = crossed(taken, every, bias[row], unit[row])
        near = int(np.rint(bias[row]))
        moved = {
            b: int(np.abs(crossed(taken, every, b, unit[row]) - real).sum())
            for b in range(near - 32, near + 33)
        }
        assert moved[int(chosen[row])] == min(moved.values())
        assert len(np.unique(real)) > 5
        better += moved[near] > min(moved.values())
    assert better > 0 or factor == 1


def test_outputs_that_occur_weigh_more() -> None:
    """BatchNorm says where values lie; boundaries that none of them reaches are free."""
    norm = torch.nn.BatchNorm2d(1)
    before, after = table_quantizer(1.5), affine_quantizer(0.0, 8.0)
    weight = torch.full((1, 40), 8.0)
    unit = torch.tensor([1e-3])
    chosen = {}
    bias = torch.tensor([100.4], dtype=torch.float64)
    for mean in (0.5, 7.5):
        with torch.no_grad():
            norm.bias.fill_(mean)
            norm.weight.fill_(0.02)
        chosen[mean] = int(least_moved(bias, weight, unit, before, after, norm))
    accumulators = np.arange(0, 40 * 8 * 240 + 1, 8 * 5)
    for mean, whole in chosen.items():
        values = (accumulators + float(bias)) * float(unit)
        near = accumulators[np.abs(values - mean) < 0.05]
        assert len(near) > 2
        real = crossed(after, near, float(bias), float(unit))
        assert np.array_equal(crossed(after, near, whole, float(unit)), real)


@pytest.mark.parametrize("name", NETWORKS)
def test_aligned_biases_are_whole(name: str) -> None:
    model, x = settled(name)
    prepared = prepare(model, QuantConfig(), x[:2])
    calibrate(prepared, [x])
    prepared.eval()
    before = {
        k: layer.weight_quantizer.current_step(layer.weight).detach().clone()
        for k, layer in quant_layers(prepared).items()
    }
    count = align_biases(prepared)
    made = convert(prepared)
    whole = 0
    for key, layer in quant_layers(prepared).items():
        ratio = (layer.weight_quantizer.current_step(layer.weight) / before[key]).flatten()
        assert bool((ratio >= 1.0).all())
        assert bool((ratio <= 1.01001).all())
        whole += int((ratio > 1.0).sum())
        integers = made.get_submodule(key)
        assert isinstance(integers, IntegerConv2d)
        # Float32 has 24 bits, of which the bias takes those above the point.
        large = integers.bias_int.abs() > 100
        moved = (ratio > 1.0) & large
        if bool(moved.any()):
            x_step = input_quantizers(prepared)[key].exported_step().double()
            unit = (x_step * integers.weight_step.double())[moved]
            real = _real_bias(prepared, key)[moved] / unit
            assert bool(((real - real.round()).abs() <= 1e-6 * real.abs() + 1e-3).all())
    assert whole <= count
    assert count > 0


def _real_bias(prepared: torch.fx.GraphModule, key: str) -> torch.Tensor:
    (node,) = [n for n in prepared.graph.nodes if n.target == key]
    layer = prepared.get_submodule(key)
    bias = 0.0 if layer.bias is None else layer.bias.detach().double()
    (user, *_) = node.users
    norm = prepared.get_submodule(user.target) if user.op == "call_module" else None
    if not isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
        return torch.zeros(len(layer.weight), dtype=torch.float64) + bias
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return (norm.bias.double() + (bias - norm.running_mean.double()) * gain).detach()


def test_alignment_brings_integers_to_what_was_trained() -> None:
    """Low-bit layers in the middle, 8 bits at the ends: what moves is mostly the first layer's."""
    noise = {False: 0.0, True: 0.0}
    for bits in (2, 3, 4):
        for aligned in noise:
            model, x = settled("resnet")
            prepared = prepare(model, apot_config(bits), x[:2])
            calibrate(prepared, [x])
            prepared.eval()
            if aligned:
                assert align_biases(prepared) > 0
            with torch.no_grad():
                before, after = prepared(x), convert(prepared)(x)
            noise[aligned] += float((before - after).square().mean().sqrt() / before.std())
    assert noise[True] < noise[False] / 2


def test_learned_steps_stay_learned_and_low_bits_stay() -> None:
    model, x = settled("resnet")
    config = QuantConfig(weight_bits=4, act_bits=4, act_range="learned")
    prepared = prepare(model, config, x[:2])
    calibrate(prepared, [x])
    low = [k for k, v in quant_layers(prepared).items() if v.weight_quantizer.largest < 127]
    assert low
    before = {k: quant_layers(prepared)[k].weight_quantizer.step.clone() for k in low}
    align_biases(prepared.eval())
    for key, step in before.items():
        now = quant_layers(prepared)[key].weight_quantizer.step
        assert isinstance(now, torch.nn.Parameter)
        assert torch.equal(now, step)


def test_only_prepared_networks_are_aligned() -> None:
    with pytest.raises(TinyqError, match="TQ654"):
        align_biases(torch.nn.Linear(2, 2))
    model, x = settled("resnet")
    with pytest.raises(TinyqError, match="TQ653"):
        align_biases(prepare(model, QuantConfig(), x[:2]))


def test_levels_are_widened_to_fill_int8() -> None:
    """Whatever the levels, no larger common factor fits."""
    model, x = settled("resnet")
    for bits in (2, 3, 4):
        prepared = prepare(model, apot_config(bits), x[:2])
        calibrate(prepared, [x])
        made = convert(prepared)
        for key, layer in quant_layers(prepared).items():
            assert isinstance(layer, QuantConv2d | torch.nn.Linear)
            levels = layer.weight_quantizer.integers(layer.weight)[0].abs().max()
            found = int(made.get_submodule(key).weight_int.abs().max())
            assert found <= 127 < found + int(levels)
        assert int(table_of(apot_unsigned(bits)).max()) > 0
