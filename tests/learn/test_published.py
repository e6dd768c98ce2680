"""The checkpoints published with APoT are integers times a scale, and are rebuilt exactly."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
MODELS = Path(os.environ.get("TINYQ_MODELS", SHARED))
FOLDER = MODELS / "apot"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = [
    *(f"cifar10_resnet20_{b}bit" for b in (4, 3, 2)),
    *(f"mnist_resnet10_{b}bit" for b in (5, 4, 3, 2)),
    *(f"mnist_resnet10_uniform_{b}bit" for b in (5, 4, 3, 2)),
]
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        not FOLDER.is_dir(),
        reason="no published networks (apot/*.npz): neither TINYQ_MODELS nor ../shared/models",
    ),
]


@pytest.fixture(autouse=True)
def _examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("TINYQ_MODELS", str(MODELS))
    for name in ("resnet20", "apot_networks", "apot_thresholds"):
        sys.modules.pop(name, None)


LARGEST = {5: 48, 4: 10, 3: 4, 2: 1}


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_integers_times_a_scale(name: str) -> None:
    """α·q computed as the authors do, divided by α/largest, is whole to float32's precision."""
    from apot_networks import Published, paper_weight

    net = Published(name)
    even = net.uniform
    for layer in net.layers:
        alpha = net.weight_threshold(layer)
        w = paper_weight(net.state[f"{layer}.weight"], alpha, net.bits, even=even)
        largest = 2 ** (net.bits - 1) - 1 if even else LARGEST[net.bits]
        integers = w.double() / (alpha / largest)
        assert float((integers - integers.round()).abs().max()) < 1e-5
        assert len(integers.round().unique()) <= 2**net.bits - 1


# Where the 8-bit step is as large as the level step (5 bits: levels to 100), more values lie beside
# a midpoint that they may round across.
MOVED = [
    ("cifar10_resnet20_3bit", 0.01),
    ("mnist_resnet10_4bit", 0.03),
    ("mnist_resnet10_5bit", 0.07),
    ("mnist_resnet10_uniform_4bit", 0.0002),
]


@pytest.mark.parametrize(("name", "moved"), MOVED)
def test_tinyq_quantizes_as_the_authors_do(name: str, moved: float) -> None:
    """Weights equal; activations equal but for values beside a midpoint of an even gap."""
    from apot_networks import Published, paper_activation, paper_weight, tinyq_network

    from tinyq.learn.prepare import input_quantizers, quant_layers

    net = Published(name)
    prepared = tinyq_network(net)
    inputs = input_quantizers(prepared)
    for layer, module in quant_layers(prepared).items():
        if layer not in net.layers:
            continue
        alpha = net.weight_threshold(layer)
        expected = paper_weight(module.weight.detach(), alpha, net.bits, even=net.uniform)
        got = module.weight_quantizer(module.weight).detach()
        assert torch.allclose(got, expected, atol=1e-5)
        x = torch.linspace(0.0, 1.2 * net.act_threshold(layer), 20011)
        a = paper_activation(x, net.act_threshold(layer), net.bits, even=net.uniform)
        with torch.no_grad():
            b = inputs[layer].quantize(x)
        assert float(((a - b).abs() > 1e-5).float().mean()) < moved


def test_first_layers_integers_leave_int8(tmp_path: Path) -> None:
    """Division by max(w) reaches -145 in a published file: kept in int16 when asked for."""
    import onnx
    from apot_networks import Published, tinyq_network

    from tinyq.learn import export

    lowest = {}
    for name in ("cifar10_resnet20_4bit", "cifar10_resnet20_3bit", "cifar10_resnet20_2bit"):
        w = Published(name).state["conv1.weight"]
        lowest[name] = int((w / w.max() * 127).round().min())
    name = min(lowest, key=lambda n: lowest[n])
    assert lowest[name] < -128
    path = export(tinyq_network(Published(name), "authors"), tmp_path / "net.onnx")
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    assert weights["conv1_weight_int"].dtype == "int16"
    assert int(abs(weights["conv1_weight_int"]).max()) == -lowest[name]
