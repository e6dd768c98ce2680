"""Models whose weights were rounded when compiled: what changed, and that it is what runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from agreement import Model, assert_reference, draw_inputs
from onnx import helper, numpy_helper
from qdq import Qdq
from typer.testing import CliRunner

import tinyq
from tinyq.cli.app import app
from tinyq.errors import TinyqError
from tinyq.frontends.coarse_weights import WeightChoice, coarsen
from tinyq.frontends.ort import session
from tinyq.ops.packed import encoding_of
from tinyq.verification.verify import VerifyOptions


def network(bias_step: float = 1.0) -> Qdq:
    """Four layers: convolution, depthwise, Gemm with the weights transposed, MatMul."""
    rng = np.random.default_rng(4)
    b = Qdq()

    def weights(*shape: int) -> np.ndarray:
        return np.clip(rng.normal(0, 40, shape), -127, 127).round()

    w1, w2 = rng.uniform(0.002, 0.02, (2, 6)).astype(np.float32)
    x = b.x((1, 3, 6, 6), 0.051, 3)
    bias = rng.integers(-3000, 3000, 6)
    y = b.op("Conv", x, b.weights(weights(6, 3, 3, 3), w1), b.bias(bias, 0.051 * w1), pads=[1] * 4)
    y = b.qdq(b.op("Relu", y), 0.043, -128)
    w2 = b.weights(weights(6, 1, 3, 3), w2), b.bias(bias, 0.043 * w2)
    y = b.op("Conv", y, *w2, group=6, pads=[1] * 4)
    y = b.op("Flatten", b.qdq(y, 0.031, 5))
    bias = b.bias(np.arange(8) * 99, 0.031 * 0.0113)
    y = b.op("Gemm", y, b.weights(weights(8, 216), 0.0113), bias, transB=1)
    y = b.qdq(y, 0.057, -7)
    return b.end(b.op("MatMul", y, b.weights(weights(8, 5), 0.0091)), 0.083, 1)


def reals(model: onnx.ModelProto, names: list[str]) -> list[np.ndarray]:
    """Constant tensors of a model, by onnxruntime."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    run = session(part.SerializeToString(), optimise=False)
    feeds = {i.name: np.zeros(i.shape, np.int8) for i in run.get_inputs()}
    return list(run.run(names, feeds))


def layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]


@pytest.mark.parametrize("form", ["pot4", "apot4", "lut3", "int4", "ternary", "binary"])
@pytest.mark.parametrize("ends", [False, True])
def test_weights_become_levels(form: str, ends: bool) -> None:
    given = network().model()
    before = given.SerializeToString()
    changed, found = coarsen(given, WeightChoice(form, ends))
    assert given.SerializeToString() == before
    expected = [n.name for n in layers(given)] if ends else [n.name for n in layers(given)][1:-1]
    assert [layer.name for layer in found] == expected
    model = Model(form, changed)
    assert_reference(model, 4, plain=False)
    kernels = [n for n in model.graph.nodes if n.op in ("conv2d", "dense")]
    encodings = [encoding_of(n.input(1)) for n in kernels]
    bits = {"ternary": 2, "binary": 1}.get(form, int(form[-1]) if form[-1].isdigit() else 0)
    for encoding in encodings if ends else encodings[1:-1]:
        assert encoding is not None
        assert encoding.bits <= bits
    if not ends:
        assert encodings[0] is None


def test_reals_stay_close_and_biases_on_their_grid() -> None:
    given = network().model()
    changed, found = coarsen(given, WeightChoice("int5", True))
    for old, new, layer in zip(layers(given), layers(changed), found, strict=True):
        (was,), (now,) = reals(given, [old.input[1]]), reals(changed, [new.input[1]])
        noise = 10 * np.log10(np.square(was).sum() / np.square(was - now).sum())
        assert noise == pytest.approx(layer.sqnr_db, abs=1e-3)
        assert noise > 20
        if len(old.input) < 3:
            continue
        dequantize = next(n for n in changed.graph.node if n.output[0] == new.input[2])
        arrays = {t.name: numpy_helper.to_array(t) for t in changed.graph.initializer}
        assert arrays[dequantize.input[0]].dtype == np.int32
        (was,), (now,) = reals(given, [old.input[2]]), reals(changed, [new.input[2]])
        assert np.all(np.abs(was - now) <= arrays[dequantize.input[1]] * 0.5001)


def test_other_forms_of_weights() -> None:
    """Quantized by nodes, transposed behind DequantizeLinear, uint8, and QOperator."""
    rng = np.random.default_rng(6)
    b = Qdq()
    x = b.x((1, 12), 0.04)
    w = b.qdq(b.const(rng.normal(0, 1, (10, 12)).astype(np.float32)), 0.02)
    y = b.qdq(b.op("Gemm", x, w, transB=1), 0.07)
    w = b.op("Transpose", b.weights(rng.integers(-99, 99, (9, 10)), 0.01), perm=[1, 0])
    y = b.q(b.op("MatMul", y, w), 0.06)
    scale = b.scale(0.06, 0)
    w = [b.const(rng.integers(0, 255, (9, 7)).astype(np.uint8)), *b.scale(0.013, 120, "uint8")]
    b.output(b.op("QLinearMatMul", y, *scale, *w, *b.scale(0.11, -3)))
    given = b.model()
    changed, found = coarsen(given, WeightChoice("pot4", True))
    assert len(found) == 3
    assert min(layer.sqnr_db for layer in found) > 12
    model = Model("forms", changed)
    assert_reference(model, 4, plain=False)
    encodings = [encoding_of(n.input(1)) for n in model.graph.nodes if n.op == "dense"]
    assert [e.name for e in encodings if e] == ["pot4"] * 3


def test_dead_channels_and_large_biases() -> None:
    b = Qdq()
    weights = np.random.default_rng(1).integers(-90, 90, (5, 8))
    weights[2] = 0
    step = np.full(5, 0.01, np.float32)
    bias = np.array([5, -7, 2**29, 0, 1])
    y = b.op(
        "Gemm", b.x((1, 8), 0.05), b.weights(weights, step), b.bias(bias, 0.05 * step), transB=1
    )
    given = b.end(y, 0.1).model()
    for form in ("binary", "ternary", "lut2", "pot3"):
        changed, _ = coarsen(given, WeightChoice(form, True))
        model = Model(form, changed)
        assert_reference(model, 4, plain=False)
        (x,) = model.graph.inputs
        got = model.reference({x.name: np.full((1, 8), 11, np.int8)})[0]
        assert got[0, 2] == 127


def test_layers_by_name() -> None:
    given = network().model()
    names = [n.name for n in layers(given)]
    choice = WeightChoice("pot4", layers={names[0]: "lut5", names[1]: "int8"})
    _, found = coarsen(given, choice)
    assert {la.name: la.form for la in found} == {names[0]: "lut5", names[2]: "pot4"}
    _, found = coarsen(given, WeightChoice(layers={names[2]: "apot4"}))
    assert [la.form for la in found] == ["apot4"]
    with pytest.raises(
        TinyqError, match=r"--weights-layer nobody: no such layer.*Layers: "
    ) as caught:
        coarsen(given, WeightChoice("pot4", layers={"nobody": "pot4"}))
    assert caught.value.diagnostics[0].code == "TQ303"


def test_compiled_and_verified(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(network().model(), str(path))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(-128, 127, (6, 3, 6, 6)))
    compiled = tinyq.compile(
        path, output=tmp_path / "out", target="cortex-m0plus", weights="apot4", kernels="packed",
        weights_samples=str(tmp_path / "x.npy"),
    )  # fmt: skip
    assert any("2 layers rounded to apot4" in note for note in compiled.notes)
    assert any("over the first 6 of x.npy samples the outputs have" in n for n in compiled.notes)
    assert any("packed" in layer.call.kernel for layer in compiled.schedule.layers)
    report = tinyq.verify(tmp_path / "out", VerifyOptions(random=5, emulator="host"))
    assert report.equal
    stored = onnx.load(tmp_path / "out" / "net.onnx")
    again, _ = coarsen(network().model(), WeightChoice("apot4"))
    for x in draw_inputs(compiled.graph, 3):
        assert np.array_equal(
            Model("stored", stored).oracle(x)[0], Model("again", again).oracle(x)[0]
        )


def test_float_networks_are_quantized_first(tmp_path: Path) -> None:
    """int4 is a width of the quantization itself; other formats round what it gives."""
    rng = np.random.default_rng(2)
    weights = rng.normal(0, 0.2, (3, 5, 4, 1, 1)).astype(np.float32)
    nodes, constants, name = [], [], "x"
    for k, array in enumerate((weights[0, :4], weights[1, :4], weights[2, :4])):
        constants.append(numpy_helper.from_array(array, f"w{k}"))
        nodes.append(helper.make_node("Conv", [name, f"w{k}"], [f"y{k}"], name=f"c{k}"))
        name = f"y{k}"
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", kind, (1, 4, 5, 5))],
        [helper.make_tensor_value_info(name, kind, (1, 4, 5, 5))], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "f.onnx"))
    np.save(tmp_path / "c.npy", rng.normal(0, 1, (8, 4, 5, 5)).astype(np.float32))
    for form, rounded in (("int4", False), ("pot3", True)):
        result = CliRunner().invoke(
            app,
            ["compile", str(tmp_path / "f.onnx"), "-t", "cortex-m4", "-o", str(tmp_path / form),
             "--calib", str(tmp_path / "c.npy"), "--weights", form, "--json"],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        notes = json.loads(result.stdout)["notes"]
        assert any(f"rounded to {form}" in note for note in notes) is rounded
        assert tinyq.verify(tmp_path / form, VerifyOptions(random=3, emulator="host")).equal


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "pot9"], "--weights pot9"),
        (["--weights-layer", "conv"], "Write it as LAYER=pot4"),
        (["--weights-layer", "nobody=pot4"], "no such layer"),
        (["--weights-layer", "conv1=lut9"], "lut9"),
        (["--weights", "pot4", "--weights-samples", "missing.npz"], "missing.npz"),
    ],
)
def test_command_line_refusals(options: list[str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(network().model(), str(path))
    result = CliRunner().invoke(
        app, ["compile", str(path), "-t", "cortex-m4", "-o", str(tmp_path / "out"), *options]
    )
    assert result.exit_code in (5, 8)
    assert words in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()
