"""Whole networks through CMSIS-NN's functions: options, refusals, report, verification."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cmsis_cases import TABLE, Conv, make_cases
from qdq import Qdq

from tinyq.api import Compiled, CompileOptions, compile, compile_model, profile_kernels, verify
from tinyq.build import load_network
from tinyq.build.libraries import library_build
from tinyq.codegen import generate, write_program
from tinyq.emulate.network import RunOptions, run_network
from tinyq.errors import TinyqError
from tinyq.ir import Node
from tinyq.ops import REGISTRY
from tinyq.ops.base import LibraryUse
from tinyq.plan import plan
from tinyq.quant import Rounding
from tinyq.select import Goal, Libraries, select
from tinyq.target import load_core
from tinyq.verification.verify import VerifyOptions

STANDIN = Path(__file__).with_name("standin")
needs_library = pytest.mark.skipif(
    not (os.environ.get("CMSIS_NN_DIR") and os.environ.get("CMSIS_CORE_DIR")),
    reason="CMSIS_NN_DIR and CMSIS_CORE_DIR do not name the library",
)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMSIS_NN_DIR", str(STANDIN))
    monkeypatch.delenv("CMSIS_CORE_DIR", raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolution, depthwise, residual sum, mean, dense, softmax."""
    path = tmp_path_factory.mktemp("model") / "residual.onnx"
    onnx.save(residual_network(), path)
    return path


def residual_network() -> onnx.ModelProto:
    """Convolution, depthwise, residual sum, mean, dense, softmax over int8 [1, 3, 8, 8]."""
    g, rng = Qdq(), np.random.default_rng(3)

    def conv(x: str, x_scale: float, shape: tuple[int, ...], y_scale: float, groups: int) -> str:
        scales = rng.uniform(0.004, 0.01, shape[0]).astype(np.float32)
        weights = g.weights(rng.integers(-127, 128, shape), scales)
        bias = g.bias(rng.integers(-900, 900, shape[0]), np.float32(x_scale) * scales)
        pads = [shape[2] // 2] * 4
        made = g.op("Conv", x, weights, bias, pads=pads, group=groups)
        return g.qdq(g.op("Relu", made), y_scale, -128)

    x = g.x((1, 3, 8, 8), 0.04, -3)
    first = conv(x, 0.04, (8, 3, 3, 3), 0.05, 1)
    deep = conv(first, 0.05, (8, 1, 3, 3), 0.06, 8)
    deep = conv(deep, 0.06, (8, 8, 1, 1), 0.07, 1)
    total = g.qdq(g.op("Add", first, deep), 0.09, -128)
    mean = g.qdq(g.op("AveragePool", total, kernel_shape=[8, 8]), 0.09, -128)
    flat = g.op("Reshape", mean, g.const([1, 8]))
    weights = g.weights(rng.integers(-127, 128, (5, 8)), 0.01)
    bias = g.bias(rng.integers(-900, 900, 5), np.float32(0.09) * np.float32(0.01))
    scores = g.qdq(g.op("Gemm", flat, weights, bias, transB=1), 0.08, 4)
    return g.end(g.op("Softmax", scores, axis=-1), 1 / 256, -128).model()


def options(**changes: Any) -> CompileOptions:
    return replace(CompileOptions("cortex-m4", name="net", optimize="speed"), **changes)


def kernels_of(compiled: Compiled) -> list[str]:
    return [layer.call.kernel for layer in compiled.schedule.layers if not layer.call.alias]


def differing(compiled: Compiled) -> dict[str, int]:
    entries = compiled.program.manifest["libraries"][0]["layers_differing"]
    return {entry["layer"]: entry["differing"] for entry in entries}


@pytest.mark.usefixtures("standin")
def test_library_wherever_it_fits(model: Path) -> None:
    compiled = compile_model(model, options(kernels="cmsis-nn", oracle="cmsis-nn"))
    assert kernels_of(compiled) == [
        "cmsis_transpose_s8", "cmsis_convolve_s8", "cmsis_depthwise_s8", "cmsis_convolve_s8",
        "cmsis_add_s8", "cmsis_avgpool_s8", "cmsis_dense_s8", "cmsis_softmax_s8",
    ]  # fmt: skip
    manifest = compiled.program.manifest
    assert manifest["libraries"][0]["version"] == "header 0.1.0"
    assert manifest["libraries"][0]["defines"] == ()
    assert not differing(compiled)
    assert all(layer["exactness"]["exact"] for layer in manifest["layers"])


@pytest.mark.usefixtures("standin")
def test_single_rounding_follows_onnxruntime(model: Path) -> None:
    compiled = compile_model(model, options(kernels="cmsis-nn", oracle="ort"))
    manifest = compiled.program.manifest
    assert manifest["libraries"][0]["defines"] == ("CMSIS_NN_USE_SINGLE_ROUNDING",)
    assert kernels_of(compiled)[-1] == "softmax_s8"
    inexact = {e["name"] for e in manifest["layers"] if not e["exactness"]["exact"]}
    assert inexact == set(differing(compiled))
    assert "CMSIS_NN_USE_SINGLE_ROUNDING" in compiled.program.files["CMakeLists.txt"].decode()
    fragment = compiled.program.files["cmsis-nn.mk"].decode()
    assert "arm_convolve_wrapper_s8.c" in fragment
    assert "arm_softmax_s8" not in fragment
    assert str(STANDIN) not in "".join(f.decode() for f in compiled.program.files.values()
                                       if not f.startswith(b"\x08"))  # fmt: skip


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("oracle", ["ort", "cmsis-nn"])
def test_auto_never_differs(model: Path, oracle: str) -> None:
    compiled = compile_model(model, options(kernels="auto", oracle=oracle))
    for layer in compiled.schedule.layers:
        assert layer.call.library is None or layer.call.library.differing == 0
    best = compile_model(model, options(kernels="tinyq", oracle="ort")).schedule.instructions
    if oracle == "ort":
        assert compiled.schedule.instructions <= best


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("oracle", ["ort", "cmsis-nn"])
@pytest.mark.parametrize("kernels", ["cmsis-nn", "auto"])
def test_c_equals_the_reference(kernels: str, oracle: str, model: Path, tmp_path: Path) -> None:
    compiled = compile(
        model, output=tmp_path / "net", target="cortex-m3", kernels=kernels, oracle=oracle
    )
    report = verify(tmp_path / "net", VerifyOptions(emulator="host", layers=True, random=20))
    own = next(c for c in report.comparisons if c.expected == "reference")
    assert own.equal
    assert report.equal or differing(compiled)


def test_own_kernels_need_no_library(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMSIS_NN_DIR", raising=False)
    compiled = compile_model(model, options())
    assert compiled.program.manifest["libraries"] == []
    assert "cmsis-nn.mk" not in compiled.program.files
    with pytest.raises(TinyqError, match="TQ407"):
        compile_model(model, options(kernels="auto"))
    with pytest.raises(TinyqError, match="TQ303"):
        compile_model(model, options(kernels="cmsis"))


def test_build_needs_the_library(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "net"
    compile(model, output=folder, target="cortex-m4", kernels="cmsis-nn", cmsis_nn=str(STANDIN))
    network = load_network(folder)
    monkeypatch.delenv("CMSIS_NN_DIR", raising=False)
    with pytest.raises(TinyqError, match="TQ407"):
        library_build(network)
    empty = tmp_path / "other"
    (empty / "Include").mkdir(parents=True)
    (empty / "Source" / "A").mkdir(parents=True)
    (empty / "Include" / "arm_nnfunctions.h").write_text("")
    (empty / "Source" / "A" / "a.c").write_text("")
    monkeypatch.setenv("CMSIS_NN_DIR", str(empty))
    with pytest.raises(TinyqError, match="is missing"):
        library_build(network)
    assert json.loads((folder / "manifest.json").read_text())["libraries"][0]["sources"]


USES: Mapping[str, tuple[LibraryUse, str]] = {
    "exact": (LibraryUse("l", ("f",), "h", "once", 0, 100), ""),
    "no_rounding": (LibraryUse("l", ("f",), "h"), ""),
    "other_rounding": (LibraryUse("l", ("f",), "h", "twice"), "it rounds twice"),
    "differs": (LibraryUse("l", ("f",), "h", "once", 3, 100), "differs from the oracle at 3"),
}


@pytest.mark.parametrize("name", USES)
def test_what_auto_refuses(name: str) -> None:
    use, text = USES[name]
    refusal = Libraries("once", preferred=False).refuses(use)
    assert text in refusal
    assert bool(text) == bool(refusal)


def test_difference_is_allowed_where_the_library_is_preferred() -> None:
    assert not Libraries("once", preferred=True).refuses(USES["differs"][0])
    assert Libraries("once", preferred=True).refuses(USES["other_rounding"][0])


def with_factor(node: Node, multiplier: int, shift: int) -> Node:
    oracle = node.attrs.oracle
    oracle = replace(
        oracle,
        multiplier=np.full_like(oracle.multiplier, multiplier),
        shift=np.full_like(oracle.shift, shift),
    )
    attrs = replace(node.attrs, oracle=oracle, requant=oracle)
    return Node(node.op, node.name, node.inputs, node.outputs, attrs)


@pytest.mark.parametrize(
    ("shift", "refusal"),
    [(-30, ""), (-31, ""), (-33, ""), (0, ""), (20, "leaves 32 bits"), (31, "leaves 32 bits")],
)
def test_shifts_are_bounded(shift: int, refusal: str) -> None:
    """A right shift beyond 30 gives 0 at every sum: the factor becomes 0, which is defined."""
    node = Conv((4, 4, 8), 4, (3, 3))("conv", Rounding.TWICE, np.random.default_rng(0))
    node = with_factor(node, 2**30 + 12345, shift)
    found = REGISTRY["conv2d"].kernels[-2].plan(node, load_core("cortex-m4"))
    if refusal:
        assert isinstance(found, str)
        assert refusal in found
    else:
        assert not isinstance(found, str)
        shifts = next(c.array for c in found.constants if c.suffix == "shift")
        assert shifts.min() >= -30


@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4"])
def test_own_kernels_round_twice_too(target: str, tmp_path: Path) -> None:
    """Cases of the library's arithmetic by tinyq's kernels, on the host."""
    own = {k: v for k, v in TABLE.items() if k.startswith(("conv", "dense", "add", "mul", "soft"))}
    cases = make_cases(own, Rounding.TWICE)
    schedule = select(cases.graph, load_core(target), Goal.SPEED)
    assert all(layer.call.library is None for layer in schedule.layers)
    write_program(generate(schedule, plan(schedule), "cases"), tmp_path / "net")
    samples = cases.samples(4, 2)
    options = RunOptions(emulator="host", sanitize=True)
    outputs = run_network(load_network(tmp_path / "net"), samples, options).trace.outputs
    for name, got, want in zip(own, outputs, cases.wanted(samples), strict=True):
        assert np.array_equal(got, want), name


@needs_library
@pytest.mark.qemu
@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4", "cortex-m55"])
def test_network_on_cores(target: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    compile(model, output=folder, target=target, kernels="cmsis-nn", oracle="cmsis-nn")
    assert verify(folder, VerifyOptions(layers=True, random=5)).equal


@needs_library
@pytest.mark.qemu
def test_kernels_side_by_side(model: Path, tmp_path: Path) -> None:
    compile(model, output=tmp_path / "net", target="cortex-m4", optimize="speed")
    own, theirs, best = profile_kernels(tmp_path / "net")
    names = [[layer.name for layer in each.layers] for each in (own, theirs, best)]
    assert names[0] == names[1] == names[2]
    assert any(layer.kernel.startswith("cmsis") for layer in theirs.layers)
    assert best.instructions <= theirs.instructions
