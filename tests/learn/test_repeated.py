"""Layers that are called several times, names that the network has already, copies and pickles."""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from learn.networks import settled  # noqa: E402
from learn.test_export import output_step, run  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import (  # noqa: E402
    QuantConfig,
    ReconstructConfig,
    adaround,
    align_biases,
    calibrate,
    convert,
    export,
    export_float,
    prepare,
    step_down,
)
from tinyq.learn.layers import FreezingBatchNorm2d  # noqa: E402
from tinyq.learn.prepare import act_quantizers, input_quantizers, quant_layers  # noqa: E402

pytestmark = pytest.mark.torch

CONFIGS = {
    "int8": QuantConfig(act_range="max"),
    "w4a4": QuantConfig(weight_bits=4, act_bits=4, act_range="learned"),
}


class Repeated(nn.Module):
    """One convolution in three rounds; BatchNorm of each round, of all rounds, or none."""

    def __init__(self, norms: str):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 8, 3, padding=1, bias=norms == "none")
        made = {"own": 3, "shared": 1, "none": 0}[norms]
        self.b = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(made))
        self.twice = nn.Linear(8, 8)
        self.out = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for k in range(3):
            y = self.d(x)
            x = F.relu(self.b[k % len(self.b)](y) if len(self.b) else y)
        x = x.mean((2, 3))
        return self.out(F.relu(self.twice(F.relu(self.twice(x)))))


def repeated(norms: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Repeated(norms), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        model.d.weight.mul_(3.0)
        for k, norm in enumerate(model.b):
            norm.weight.uniform_(0.5 + k, 1.5 + k)
            norm.bias.normal_(0.0, 0.5)
        for _ in range(40):
            model(x)
    return model.eval(), x


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("norms", ["own", "shared", "none"])
def test_every_call_is_converted_on_its_own(norms: str, config: str, tmp_path: Path) -> None:
    model, x = repeated(norms)
    prepared = prepare(model, CONFIGS[config], x[:2])
    calibrate(prepared, [x])
    with torch.no_grad():
        real, before = model(x), prepared.eval()(x)
        after = convert(prepared)(x)
    assert float((after - before).std() / before.std()) < 0.05
    if config == "int8":
        assert float((after - real).std() / real.std()) < 0.08
    path = export(prepared, tmp_path / "net.onnx")
    wrong = np.rint((run(path, x) - after.numpy()) / output_step(path))
    assert (wrong == 0).mean() >= 0.999
    steps = [q.exported_step() for n, q in input_quantizers(prepared).items() if n[0] == "d"]
    assert len(steps) == 3
    assert len({float(s.detach()) for s in steps}) == 3


def test_calls_share_their_parameters_and_state_dicts_load() -> None:
    model, x = repeated("own")
    prepared = prepare(model, CONFIGS["w4a4"], x[:2])
    assert set(model.state_dict()) <= set(prepared.state_dict())
    names = [n for n in quant_layers(prepared) if n.startswith("d")]
    assert len(names) == 3
    layers = [prepared.get_submodule(n) for n in names]
    assert all(layer.weight is prepared.d.weight for layer in layers)
    kept = {n for n, _ in prepared.named_parameters() if "quantizer" not in n and n[:3] != "act"}
    assert kept == {n for n, _ in model.named_parameters()}

    other, _ = repeated("own")
    nn.init.normal_(other.d.weight)
    for assign in (False, True):
        prepared.load_state_dict(other.state_dict(), strict=False, assign=assign)
        assert all(torch.equal(layer.weight, other.d.weight) for layer in layers)
        assert all(layer.weight is prepared.d.weight for layer in layers)
    again = copy.deepcopy(prepared)
    with torch.no_grad():
        again.d.weight.zero_()
    assert all(not bool(again.get_submodule(n).weight.any()) for n in names)
    assert bool(prepared.d.weight.any())


def test_gradients_of_all_calls_add_up() -> None:
    """With rounding of 8 bits the gradient is nearly that of the float network."""
    model, x = repeated("none")
    prepared = prepare(model, CONFIGS["int8"], x[:2])
    calibrate(prepared, [x])
    model(x).square().sum().backward()
    prepared.eval()(x).square().sum().backward()
    a, b = model.d.weight.grad.flatten(), prepared.d.weight.grad.flatten()
    assert float(F.cosine_similarity(a, b, dim=0)) > 0.99
    assert float(b.norm() / a.norm()) == pytest.approx(1.0, abs=0.1)


def test_shared_statistics_freeze_at_the_stated_step() -> None:
    model, x = repeated("shared")
    prepared = prepare(model, QuantConfig(freeze_step=2), x[:2]).train()
    (norm,) = [m for m in prepared.modules() if isinstance(m, FreezingBatchNorm2d)]
    seen = [norm.running_mean.clone()]
    for _ in range(4):
        prepared(x + 1.0)
        seen.append(norm.running_mean.clone())
    moved = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert moved == [True, True, False, False]


def test_repeated_layers_are_reconstructed_aligned_and_stepped_down(tmp_path: Path) -> None:
    model, x = repeated("own")
    prepared = prepare(model, CONFIGS["w4a4"], x[:2])
    calibrate(prepared, [x])
    adaround(prepared, x[:16], ReconstructConfig(steps=3))
    lower = step_down(prepare(model, CONFIGS["w4a4"], x[:2]), model, QuantConfig(3), x[:2])
    calibrate(lower, [x])
    align_biases(lower)
    for net in (prepared, lower):
        path = export(net, tmp_path / "net.onnx")
        with torch.no_grad():
            wrong = np.rint((run(path, x) - convert(net)(x).numpy()) / output_step(path))
        assert (wrong == 0).mean() >= 0.999


class Named(nn.Module):
    """Attributes that the prepared network would like to have, too."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.mean_integer = nn.Conv2d(4, 4, 1)
        self.dropout = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.mean_integer(self.act(x)), 0.25, self.training)
        return self.dropout(x).mean((2, 3))


@pytest.mark.parametrize("whole", [True, False])
def test_names_that_the_network_has_already(whole: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Named().eval(), torch.randn(32, 3, 6, 6)
    if not whole:
        model.act = nn.Sequential(nn.Conv2d(3, 4, 1))
    prepared = prepare(model, CONFIGS["int8"], x[:2])
    assert set(model.state_dict()) <= set(prepared.state_dict())
    assert all(n.startswith("act_1.") for n in act_quantizers(prepared))
    calibrate(prepared, [x])
    path = export(prepared, tmp_path / "net.onnx")
    with torch.no_grad():
        expected = model(x).numpy()
    assert (run(path, x) - expected).std() / expected.std() < 0.05


@pytest.mark.parametrize("name", ["resnet", "inception"])
def test_pickled_networks_are_prepared_still(name: str, tmp_path: Path) -> None:
    model, x = settled(name)
    prepared = prepare(model, CONFIGS["w4a4"], x[:2])
    calibrate(prepared, [x])
    prepared.eval()
    expected = run(export(prepared, tmp_path / "a.onnx"), x)
    for made in (prepared, convert(prepared)):
        file = io.BytesIO()
        torch.save(made, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for again in (copy.deepcopy(loaded), loaded):
            assert np.array_equal(run(export(again, tmp_path / "b.onnx"), x), expected)
    file = io.BytesIO()
    torch.save(prepared, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    adaround(loaded, x[:8], ReconstructConfig(steps=3))  # walks the graph, whose shapes were lost
    assert not np.array_equal(run(export(loaded, tmp_path / "b.onnx"), x), expected)


def test_preparing_or_converting_twice_is_refused(tmp_path: Path) -> None:
    model, x = settled("resnet")
    prepared = prepare(model, CONFIGS["int8"], x[:2])
    calibrate(prepared, [x])
    converted = convert(prepared)
    with pytest.raises(TinyqError, match=r"TQ657.*prepared already"):
        prepare(prepared, QuantConfig(), x[:2])
    with pytest.raises(TinyqError, match=r"TQ657.*prepared already"):
        prepare(nn.Sequential(prepared, nn.ReLU()), QuantConfig(), x[:2])
    with pytest.raises(TinyqError, match=r"TQ657.*converted already"):
        prepare(converted, QuantConfig(), x[:2])
    with pytest.raises(TinyqError, match=r"TQ657.*converted already"):
        convert(converted)
    with pytest.raises(TinyqError, match=r"TQ657.*tinyq.learn.export"):
        export_float(prepared, tmp_path / "float.onnx", x[:2])
    with pytest.raises(TinyqError, match=r"TQ703.*missing"):
        export(prepared, tmp_path / "missing" / "net.onnx")
