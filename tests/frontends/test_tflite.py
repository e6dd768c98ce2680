"""TensorFlow Lite models: both oracles, the C, and what is refused."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs the tflite extra")

import onnx
from agreement import compile_all, count_different, draw_inputs, run_c
from frontends.tflite_cases import CASES, conv
from frontends.tflite_models import Tfl

import tinyq
from tinyq.errors import TinyqError
from tinyq.frontends.onnx import import_model, opset
from tinyq.frontends.oracle import OrtOracle
from tinyq.frontends.ort import IslandEvaluator
from tinyq.frontends.tflite import TfliteModel, load_tflite, parse_tflite, to_onnx
from tinyq.frontends.tflite_oracle import TfliteEvaluator, TfliteOracle, interpreter
from tinyq.ir import Graph
from tinyq.passes.pipeline import to_integer
from tinyq.quant import FixedPointLinear, RealLinear, Rounding
from tinyq.verification.reference import outputs

ARITHMETIC_OF_ITS_OWN = (
    "conv",
    "depthwise",
    "dense",
    "softmax",
    "mean",
    "average",
    "arg",
    "bilinear",
    "chain",
)


@cache
def converted(case: str) -> tuple[TfliteModel, onnx.ModelProto]:
    model = parse_tflite(CASES[case]())
    return model, to_onnx(model)


@cache
def lowered(case: str, oracle: str) -> Graph:
    model, proto = converted(case)
    evaluate = TfliteEvaluator(model) if oracle == "tflite" else IslandEvaluator(opset(proto))
    return to_integer(import_model(proto), evaluate, oracle).graph


@pytest.mark.parametrize("case", CASES)
def test_reference_equals_the_reference_kernels(case: str) -> None:
    graph = lowered(case, "tflite")
    oracle = TfliteOracle(converted(case)[0], graph)
    for x in draw_inputs(graph, 6):
        assert count_different(outputs(graph, x), oracle.run(x)) == 0


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("bilinear")])
def test_reference_equals_onnxruntime(case: str) -> None:
    graph = lowered(case, "ort")
    oracle = OrtOracle(converted(case)[1], graph)
    ambiguous = any(getattr(node.attrs, "ambiguous", 0) for node in graph.nodes)
    for x in draw_inputs(graph, 6):
        pairs = list(zip(outputs(graph, x), oracle.run(x), strict=True))
        largest = max(int(np.abs(a.astype(int) - b).max()) for a, b in pairs)
        # A mean of a window that is half a unit goes to either side in onnxruntime's float32 sums.
        assert largest <= (1 if ambiguous else 0)


def test_c_equals_the_reference(tmp_path: Path) -> None:
    cases = [case for case in CASES if case.startswith(ARITHMETIC_OF_ITS_OWN)]
    graphs = {f"m{k}": lowered(case, "tflite") for k, case in enumerate(cases)}
    instances = compile_all(graphs, tmp_path)
    wrong = [
        case
        for case, (name, graph) in zip(cases, graphs.items(), strict=True)
        for x in draw_inputs(graph, 4)
        if count_different(run_c(instances[name], graph, x), outputs(graph, x))
    ]
    assert not wrong


def test_convolutions_round_twice_and_dense_layers_once() -> None:
    bent = lowered("conv", "tflite").nodes[0].attrs
    hidden = lowered("conv relu", "tflite").nodes[0].attrs
    dense = lowered("dense", "tflite").nodes[0].attrs
    assert bent.is_fixed_point
    assert not hidden.is_fixed_point, "behind a Relu one multiply gives the same"
    assert hidden.requant.exact
    assert not dense.is_fixed_point
    assert dense.requant.exact


def biased(op: str, dtype: str, scales: tuple[float, float, float], acc: np.ndarray) -> np.ndarray:
    """What the interpreter gives for accumulators: the biases of a layer that is fed zeros."""
    m = Tfl(dtype)
    count, shift = len(acc), 128 if dtype == "uint8" else 0
    shape = (count, 1, 1, 4) if op == "CONV_2D" else (count, 4)
    weights = m.const(np.full(shape, shift, dtype), np.float32(scales[1]))
    bias = m.const(acc.astype(np.int32), np.float32(scales[0]) * np.float32(scales[1]))
    ones = (1, 1) if op == "CONV_2D" else ()
    x, y = m.x((1, *ones, 4), scales[0], 0), m.tensor((1, *ones, count), scales[2], 0)
    fields = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    if op == "CONV_2D":
        m.op(op, [x, weights, bias], [y], "Conv2DOptions", **fields)
    else:
        m.op(op, [x, weights, bias], [y], "FullyConnectedOptions")
    runner = interpreter(m.end(y))
    runner.allocate_tensors()
    runner.set_tensor(x, np.full((1, *ones, 4), shift, dtype))
    runner.invoke()
    return runner.get_tensor(y).astype(np.int64).reshape(-1) - shift


@pytest.mark.parametrize("scales", [(5.13e-4, 1.37e-4, 0.731), (0.05, 0.007, 0.08), (0.5,) * 3])
@pytest.mark.parametrize(
    ("op", "dtype"),
    [("CONV_2D", "int8"), ("CONV_2D", "uint8"), ("FULLY_CONNECTED", "int8"),
     ("FULLY_CONNECTED", "uint8")],
)  # fmt: skip
def test_accumulators_beside_every_threshold(
    op: str, dtype: str, scales: tuple[float, float, float]
) -> None:
    x, w, y = (np.float32(s) for s in scales)
    product = np.float64(x * w) if (op, dtype) == ("CONV_2D", "uint8") else np.float64(x) * w
    real = np.array([product / np.float64(y)])
    beside = np.rint((np.arange(-127, 127) + 0.5) / real).astype(np.int64)
    acc = np.unique(beside[:, None] + np.arange(-3, 4))
    none = np.zeros(1, np.int64)
    oracle = (
        FixedPointLinear.of_scales(real, none, none, 0, Rounding.TWICE)
        if op == "CONV_2D"
        else RealLinear(real, none, none, 0)
    )
    assert np.array_equal(oracle(acc[None])[0], biased(op, dtype, scales, acc))


def test_intermediate_tensors_are_exposed_by_name() -> None:
    graph = lowered("chain", "tflite")
    model = converted("chain")[0]
    names = tuple(op.name for op in model.operations[:2])
    oracle = TfliteOracle(model, graph, names)
    (x,) = draw_inputs(graph, 3)[2:]
    found = oracle.run_exposed(x)
    assert [found[name].shape for name in names] == [(1, 6, 6, 8), (1, 3, 3, 8)]
    assert set(names) <= {origin.name for origin in graph.origins}


def test_bilinear_resizing_needs_the_oracle_that_does_it_in_integers() -> None:
    with pytest.raises(TinyqError) as caught:
        lowered("bilinear (9, 11) asymmetric", "ort")
    assert [d.code for d in caught.value.diagnostics] == ["TQ203"]
    assert "--oracle tflite" in str(caught.value)


def refused(raw: bytes) -> TinyqError:
    with pytest.raises(TinyqError) as caught:
        to_onnx(parse_tflite(raw, "model.tflite"))
    return caught.value


def test_every_unknown_operator_is_listed() -> None:
    m = Tfl()
    x = m.x((1, 4, 4, 2))
    for op in ("FLOOR", "SPACE_TO_DEPTH", "FLOOR"):
        x = m.op(op, [x], [m.tensor((1, 4, 4, 2))])
    found = refused(m.end(x)).diagnostics
    assert [d.operator for d in found] == ["FLOOR", "SPACE_TO_DEPTH", "FLOOR"]
    assert {d.code for d in found} == {"TQ201"}
    assert all(d.node and d.file == "model.tflite" for d in found)


def test_float_models_are_refused_with_the_way_to_quantize_them() -> None:
    m = Tfl()
    x = m.x((1, 4), dtype="float32")
    y = m.op("LOGISTIC", [x], [m.tensor((1, 4), dtype="float32")])
    (found,) = refused(m.end(y)).diagnostics
    assert found.code == "TQ202"
    assert "representative_dataset" in found.remedy


def test_computed_weights_are_refused() -> None:
    m = Tfl()
    x, w = m.x((1, 4)), m.x((3, 4))
    y = m.op("FULLY_CONNECTED", [x, w], [m.tensor((1, 3))], "FullyConnectedOptions")
    (found,) = refused(m.end(y)).diagnostics
    assert (found.code, found.operator) == ("TQ203", "FULLY_CONNECTED")


@pytest.mark.parametrize(("raw", "code"), [(b"not a model at all", "TQ102"), (b"", "TQ102")])
def test_other_files_are_refused(raw: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(raw)
    with pytest.raises(TinyqError) as caught:
        load_tflite(path)
    assert caught.value.diagnostics[0].code == code


def test_without_tensorflow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(conv())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(TinyqError) as caught:
        load_tflite(path)
    assert caught.value.diagnostics[0].code == "TQ108"
    assert "tinyq[tflite]" in str(caught.value)


def test_the_oracle_needs_a_model_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(converted("dense")[1].SerializeToString())
    with pytest.raises(TinyqError) as caught:
        tinyq.compile(path, output=tmp_path / "out", target="cortex-m4", oracle="tflite")
    assert caught.value.diagnostics[0].code == "TQ303"


@pytest.mark.parametrize(("oracle", "suffix"), [("ort", "onnx"), ("tflite", "tflite")])
def test_the_folder_keeps_the_model_that_its_oracle_runs(
    oracle: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / "chain.tflite"
    path.write_bytes(CASES["chain"]())
    tinyq.compile(path, output=tmp_path / "out", target="cortex-m4", oracle=oracle)
    assert (tmp_path / "out" / f"chain.{suffix}").is_file()
