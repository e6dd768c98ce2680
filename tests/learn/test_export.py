"""What PyTorch computes and what onnxruntime computes from the exported file, by integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

from learn.networks import NETWORKS, settled  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import (  # noqa: E402
    QuantConfig,
    apot_config,
    calibrate,
    convert,
    export,
    export_float,
    prepare,
)
from tinyq.learn.layers import IntegerAdd  # noqa: E402
from tinyq.learn.prepare import input_quantizers, quant_layers  # noqa: E402
from tinyq.learn.quantizers import TableActQuantizer  # noqa: E402

pytestmark = pytest.mark.torch

CONFIGS = {
    "int8": QuantConfig(),
    "int8-symmetric-learned": QuantConfig(act_range="learned"),
    "w4a4": QuantConfig(weight_bits=4, act_bits=4, act_range="learned"),
    "w2a2": QuantConfig(weight_bits=2, act_bits=2, act_range="mse"),
    "binary": QuantConfig(weight_bits=1, weight_quantizer="binary"),
    "pot4": QuantConfig(weight_bits=4, weight_quantizer="pot", per_channel=False),
    "apot4": apot_config(4),
    "apot3": apot_config(3),
    "kmeans3-a-codebook": QuantConfig(
        weight_bits=3, weight_quantizer="kmeans", act_bits=3, act_quantizer="codebook",
        act_codebook=(-9.0, -4.0, -1.0, 0.0, 1.0, 4.0, 9.0, 16.0),
    ),
    "lcq4": QuantConfig(weight_bits=4, weight_quantizer="lcq"),
    "w6a5-all": QuantConfig(weight_bits=6, act_bits=5, first_last_bits=None),
}  # fmt: skip


def run(path: Path, x: torch.Tensor, *, optimize: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # no sum saturates
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return result


def prepared_network(name: str, config: QuantConfig) -> tuple[torch.fx.GraphModule, torch.Tensor]:
    model, x = settled(name)
    prepared = prepare(model, config, x[:2])
    calibrate(prepared, [x])
    return prepared.eval(), x


def output_step(path: Path) -> float:
    """Scale of the DequantizeLinear that makes the output."""
    graph = onnx.load(path).graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    (last,) = [n for n in graph.node if n.output[0] == graph.output[0].name]
    assert last.op_type == "DequantizeLinear"
    return float(values[last.input[1]])


EVERYWHERE = ("int8", "w4a4", "w2a2")
CASES = [(n, c) for c in CONFIGS for n in NETWORKS if c in EVERYWHERE or n == "resnet"]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_onnxruntime_computes_the_same_integers(name: str, config: str, tmp_path: Path) -> None:
    prepared, x = prepared_network(name, CONFIGS[config])
    path = export(prepared, tmp_path / "net.onnx")
    with torch.no_grad():
        expected = convert(prepared)(x).numpy()
    step = output_step(path)
    wrong = np.rint(expected / step) - np.rint(run(path, x) / step)
    assert (wrong == 0).mean() >= 0.999
    assert np.abs(wrong).max() <= 1
    assert len(np.unique(np.rint(expected / step))) > 5  # the comparison compares something


@pytest.mark.parametrize("config", ["int8", "w4a4", "w2a2"])
def test_conversion_keeps_what_was_trained(config: str) -> None:
    """Prepared and converted differ only by the rounding of biases: far less than by one level."""
    prepared, x = prepared_network("resnet", CONFIGS[config])
    with torch.no_grad():
        before, after = prepared(x), convert(prepared)(x)
    noise = (before - after).square().mean().sqrt()
    assert float(noise / before.std()) < 0.05


NORMS = {"a": "bn_a", "b": "bn_b", "down.0": "down.1"}


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_biases_are_finer_than_a_level_times_a_level(bits: int) -> None:
    """Unit of a bias: a weight's level times an activation's, over the factors of both."""
    prepared, _ = prepared_network("resnet", apot_config(bits))
    layers, made = quant_layers(prepared), convert(prepared)
    checked = 0
    for name, reads in input_quantizers(prepared).items():
        if not isinstance(reads, TableActQuantizer):
            continue
        norm = prepared.get_submodule(NORMS[name])
        gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).double().detach()
        real = norm.bias.double().detach() - norm.running_mean.double() * gain
        levels, step = layers[name].weight_quantizer.integers(layers[name].weight)
        level = step.double() * gain.abs() * reads.positive_step().double().detach()
        widened = 127 // int(levels.abs().max())
        factor = widened * {2: 63, 3: 25, 4: 5}[bits]
        layer = made.get_submodule(name)
        unit = layer.input_step.double() * layer.weight_step.double()
        assert torch.allclose(unit, level / factor, rtol=1e-5, atol=0)
        error = (layer.bias_int.double() * unit - real).abs()
        nearest = error <= 0.5 * level / factor + 1e-6 * real.abs()
        assert bool((error <= 32.5 * level / factor + 1e-6 * real.abs()).all())
        assert float(nearest.double().mean()) > 0.5  # the others change fewer outputs
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize(("bits", "signed_too"), [(4, False), (2, False), (3, True)])
def test_low_bit_ranges_survive_the_export(bits: int, signed_too: bool, tmp_path: Path) -> None:
    """torch's exporter drops quant_min and quant_max: 16 levels silently become 256."""
    name = "mobilenetv2" if signed_too else "resnet"
    prepared, x = prepared_network(name, QuantConfig(act_bits=bits, act_range="learned"))
    for quantizer in prepared.act.children():
        if quantizer.bits == bits:
            quantizer.step.data.mul_(0.3)  # make every low-bit quantizer clip
    path = export(prepared, tmp_path / "net.onnx")
    model = onnx.load(path)
    clips = [n for n in model.graph.node if n.op_type == "Clip" and n.name.endswith("_clip")]
    assert clips
    for node in clips:
        model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for values in session.run([n.output[0] for n in clips], {"x": x.numpy()}):
        assert values.dtype == np.uint8
        assert len(np.unique(values)) == 2**bits
        assert int(values.max()) - int(values.min()) == 2**bits - 1


@pytest.mark.parametrize("config", ["int8", "apot4", "w2a2"])
def test_optimised_and_plain_sessions_agree(config: str, tmp_path: Path) -> None:
    prepared, x = prepared_network("ds-cnn", CONFIGS[config])
    path = export(prepared, tmp_path / "net.onnx")
    difference = np.abs(run(path, x) - run(path, x, optimize=False)) / output_step(path)
    assert (np.rint(difference) != 0).mean() <= 0.001


def weights_of(path: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(path).graph
    return {
        i.name.removesuffix("_weight_int"): onnx.numpy_helper.to_array(i)
        for i in graph.initializer
        if i.name.endswith("_weight_int")
    }


@pytest.mark.parametrize(
    ("config", "magnitudes"),
    [
        ("w2a2", {0, 1}),
        ("w4a4", set(range(8))),
        ("binary", {1}),
        ("pot4", {0, 1, 2, 4, 8, 16, 32, 64}),
        ("apot4", {0, 1, 2, 3, 4, 6, 8, 10}),
    ],
)
def test_weights_are_levels_times_one_factor(
    config: str, magnitudes: set[int], tmp_path: Path
) -> None:
    prepared, _ = prepared_network("resnet", CONFIGS[config])
    weights = weights_of(export(prepared, tmp_path / "net.onnx"))
    for name in ("a", "b", "down_0"):
        w = weights[name].astype(int)
        assert w.dtype == int
        assert weights[name].dtype == np.int8
        factors = [f for f in range(1, 128) if not (w % f).any()]
        assert any(set(np.unique(np.abs(w // f)).tolist()) <= magnitudes for f in factors)


def test_levels_beyond_int8_are_int16(tmp_path: Path) -> None:
    config = QuantConfig(weight_bits=5, weight_quantizer="pot", per_channel=False)
    prepared, x = prepared_network("resnet", config)
    path = export(prepared, tmp_path / "net.onnx")
    assert weights_of(path)["a"].dtype == np.int16
    assert weights_of(path)["conv1"].dtype == np.int8
    assert onnx.load(path).opset_import[0].version == 21
    with torch.no_grad():
        expected = convert(prepared)(x).numpy()
    wrong = np.rint((expected - run(path, x)) / output_step(path))
    assert (wrong == 0).mean() >= 0.999


def test_bias_beyond_int32_coarsens_its_channel_and_says_so(tmp_path: Path) -> None:
    """A channel whose BatchNorm factor died is its bias; the weights' step grows until it fits."""
    model, x = settled("resnet")
    with torch.no_grad():
        model.bn1.weight[3] = 1e-12
        model.bn1.weight[4] = 0.0
        model.bn1.bias[3] = 0.7
    prepared = prepare(model, QuantConfig(), x[:2])
    calibrate(prepared, [x])
    with pytest.warns(UserWarning, match="conv1: 2 channels"):
        path = export(prepared, tmp_path / "net.onnx")
    values = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    real = values["conv1_bias_int"] * values["conv1_bias_scale"].astype(np.float64)
    assert real[3] == pytest.approx(0.7, rel=1e-3)
    assert (values["conv1_weight_scale"] > 0).all()
    assert np.isfinite(run(path, x)).all()


@pytest.mark.parametrize("config", ["int8", "int8-symmetric-learned", "w4a4", "w6a5-all"])
def test_even_probabilities(config: str, tmp_path: Path) -> None:
    """A step of the largest one, a tenth, would be too small for onnxruntime's integer softmax."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10), torch.nn.Softmax(1)
    )
    with torch.no_grad():
        model[2].weight *= 0.02
    x = torch.randn(64, 12)
    prepared = prepare(model, CONFIGS[config], x[:2])
    calibrate(prepared, [x])
    path = export(prepared.eval(), tmp_path / "net.onnx")
    assert output_step(path) == pytest.approx(1 / 256)
    with torch.no_grad():
        wanted = model(x).numpy()
    assert wanted.max() < 0.137
    found = run(path, x)
    assert np.abs(found - wanted).max() < 0.03
    assert np.abs(found.sum(1) - 1).max() < 0.03


def test_same_network_same_bytes(tmp_path: Path) -> None:
    prepared, _ = prepared_network("inception", CONFIGS["int8"])
    first = export(prepared, tmp_path / "a.onnx").read_bytes()
    assert first == export(prepared, tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_float_export(name: str, tmp_path: Path) -> None:
    model, x = settled(name)
    path = export_float(model, tmp_path / "float.onnx", x[:2])
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(run(path, x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(path, x[:1]), expected[:1], rtol=1e-4, atol=1e-4)


def test_converting_without_ranges_is_refused() -> None:
    model, x = settled("resnet")
    with pytest.raises(TinyqError, match="TQ653"):
        convert(prepare(model, QuantConfig(), x[:2]))


def test_converting_a_plain_network_is_refused() -> None:
    model, _ = settled("resnet")
    with pytest.raises(TinyqError, match="TQ654"):
        convert(model)


def test_converting_nan_is_refused() -> None:
    prepared, _ = prepared_network("resnet", replace(QuantConfig(), weight_bits=4))
    with torch.no_grad():
        prepared.get_submodule("a").weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(TinyqError, match="TQ653"):
        convert(prepared)


@pytest.mark.parametrize("case", range(12))
def test_sums_are_onnxruntimes_on_all_pairs(case: int) -> None:
    """Beside one half the order of its multiply-adds decides; a plain float sum differs there."""
    rng = np.random.default_rng(case)
    steps = rng.uniform(0.005, 0.05, 3).astype(np.float32)
    if case == 11:  # simple ratios put thousands of pairs on halves
        steps = steps[0] * np.float32([1, 2, 4])
    zeros = rng.integers(0, 256, 3)
    a, b = (v.reshape(-1) for v in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    constants = {"y_step": steps[2], "y_zero": zeros[2].astype(np.uint8)}
    for name, step, zero in (("a", steps[0], zeros[0]), ("b", steps[1], zeros[1])):
        constants |= {f"{name}_step": step, f"{name}_zero": zero.astype(np.uint8)}
    nodes = [
        helper.make_node("DequantizeLinear", [n, f"{n}_step", f"{n}_zero"], [f"{n}_real"])
        for n in "ab"
    ]
    nodes.append(helper.make_node("Add", ["a_real", "b_real"], ["sum"]))
    nodes.append(helper.make_node("QuantizeLinear", ["sum", "y_step", "y_zero"], ["y"]))
    values = [helper.make_tensor_value_info(n, TensorProto.UINT8, [a.size]) for n in "aby"]
    graph = helper.make_graph(
        nodes, "sum", values[:2], values[2:],
        [numpy_helper.from_array(np.array(v), n) for n, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString())
    (wanted,) = session.run(None, {"a": a.astype(np.uint8), "b": b.astype(np.uint8)})
    adder = IntegerAdd(torch.from_numpy(steps), torch.from_numpy(zeros))
    real = [torch.from_numpy((x - z).astype(np.float32)) * float(s)
            for x, z, s in ((a, zeros[0], steps[0]), (b, zeros[1], steps[1]))]  # fmt: skip
    found = torch.round(adder(*real) / float(steps[2])).numpy() + zeros[2]
    assert np.array_equal(np.clip(found, 0, 255), wanted)
