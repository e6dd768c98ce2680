"""Activations of few values packed in the arena: the same integers, less memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq import Qdq

import tinyq
from tinyq.api import CompileOptions, lower_model
from tinyq.errors import TinyqError
from tinyq.ir import Graph
from tinyq.passes.pack import is_region, pack, storable
from tinyq.passes.stripe import Region
from tinyq.plan import plan_shared
from tinyq.report.network import merged
from tinyq.select import Goal, select
from tinyq.target import load_core
from tinyq.verification.reference import interpret
from tinyq.verification.verify import VerifyOptions

RUNS = {"unsigned4": (-128, -113), "signed4": (-8, 7), "two_bits": (-128, -125), "one_bit": (0, 1)}
TABLES = {
    "apot": np.array([0, 1, 2, 3, 4, 6, 8, 9, 10, 12, 16, 18, 24, 32, 33, 48]),
    "four_levels": np.array([0, 1, 2, 4]),
}
LEVELS = {name: tuple(range(low, high + 1)) for name, (low, high) in RUNS.items()} | {
    name: tuple(int(v) - 128 for v in levels) for name, levels in TABLES.items()
}


def few(kind: str, channels: int = 8, width: int = 7, height: int = 9, pool: bool = False) -> Qdq:
    """Four convolutions, 3x3 and 1x1, whose results take few values; the first ones are added."""
    b, rng = Qdq("uint8" if kind in TABLES else "int8"), np.random.default_rng(3)
    zero = 128 if kind in TABLES else 0
    shape = (1, height, width, 3)
    x = b.op("Transpose", b.x(shape, 0.05, zero + 3), perm=[0, 3, 1, 2])

    def conv(x: str, inputs: int, outputs: int, k: int) -> str:
        weights = rng.integers(-60, 61, (outputs, inputs, k, k))
        pads = [k // 2] * 4
        y = b.op("Conv", x, b.weights(weights, 0.033 / (k * np.sqrt(inputs))), pads=pads)
        if kind in TABLES:
            levels = TABLES[kind].astype(np.uint8)
            table = levels[np.arange(256) * len(levels) // 256]
            codes = b.op("Cast", b.q(y, 0.008, 100), to=6)
            return b.dq(b.op("Gather", b.const(table), codes), 0.04, 0, "uint8")
        low, high = RUNS[kind]
        grid = (0.2, (low + high) // 2)
        bounds = (b.const(np.int8(low)), b.const(np.int8(high)))
        return b.dq(b.op("Clip", b.q(y, *grid), *bounds), *grid)

    first = conv(x, 3, channels, 3)
    if pool:
        first = b.op("MaxPool", first, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
        first = b.qdq(first, 0.2, sum(RUNS[kind]) // 2)
    second = conv(first, channels, channels, 1)
    third = conv(second, channels, channels, 3)
    wide = b.qdq(b.op("Add", third, first), 0.1, zero)
    return b.end(b.op("GlobalAveragePool", conv(wide, channels, channels, 3)), 0.03, zero)


def lowered(model: Qdq, folder: Path) -> Graph:
    onnx.save(model.model(), folder / "net.onnx")
    return lower_model(folder / "net.onnx", CompileOptions("cortex-m4"))[0]


@pytest.mark.parametrize(
    ("kind", "channels", "width"),
    [
        ("unsigned4", 8, 7), ("signed4", 5, 3), ("two_bits", 1, 1), ("one_bit", 9, 4),
        ("apot", 3, 5), ("four_levels", 8, 2),
    ],
)  # fmt: skip
def test_every_row_of_every_tensor(kind: str, channels: int, width: int, tmp_path: Path) -> None:
    """Through the reference: levels are the integers' own, and rows come back as they were."""
    graph = lowered(few(kind, channels, width), tmp_path)
    found = storable(graph)
    # Sums of few levels can be few too.
    assert any(set(attrs.storage.levels) <= set(LEVELS[kind]) for attrs in found.values())
    rng = np.random.default_rng(1)
    (x,) = graph.inputs
    inputs = {x.name: rng.integers(*x.type.dtype.limits, x.type.shape).astype(x.type.dtype.numpy)}
    wanted = interpret(graph, inputs)
    for value, attrs in found.items():
        assert set(np.unique(wanted[value])) <= set(attrs.storage.levels)
    for step in (0, 2):
        regions = [
            Region(k, k + 1, step)
            for k, node in enumerate(graph.nodes)
            if step and is_region(graph, k, k + 1) and node.output.type.shape[1] > step
        ]
        packed = pack(graph, found, regions)
        got = interpret(packed.graph, inputs)
        for value, rows in packed.rows.items():
            part = wanted[rows.of][:, rows.start : rows.stop]
            if rows.packed is not None:
                elements = part.astype(np.int8).reshape(rows.stop - rows.start, -1)
                part = rows.packed.storage.pack(elements).reshape(got[value].shape)
            assert np.array_equal(got[value], part)
        assert np.array_equal(got[graph.outputs[0]], wanted[graph.outputs[0]])
        plan_shared(select(packed.graph, load_core("cortex-m4"), Goal.SPEED))


def test_the_network_s_output_and_wide_tensors_are_not_packed(tmp_path: Path) -> None:
    graph = lowered(few("signed4"), tmp_path)
    assert graph.outputs[0] not in storable(graph)
    sums = next(node.output for node in graph.nodes if node.op == "add")
    assert sums not in storable(graph)


@pytest.mark.parametrize(
    ("target", "kind", "channels", "width", "pool"),
    [
        ("cortex-m4", "unsigned4", 16, 12, False),
        ("cortex-m0plus", "signed4", 7, 11, True),
        ("cortex-m0plus", "four_levels", 8, 9, False),
        ("cortex-m4", "apot", 9, 13, False),
    ],
)
def test_packed_on_the_emulated_core(
    target: str, kind: str, channels: int, width: int, pool: bool, tmp_path: Path
) -> None:
    """Every row of every tensor is compared, packed ones as they lie in the arena."""
    model, folder = tmp_path / "net.onnx", tmp_path / "out"
    onnx.save(few(kind, channels, width, 16, pool).model(), model)
    whole = tinyq.compile(model, output=tmp_path / "whole", target=target, pack_activations="never")
    made = tinyq.compile(model, output=folder, target=target, pack_activations="always")
    manifest = made.program.manifest
    assert manifest["packed"]
    assert not whole.program.manifest["packed"]
    assert made.plan.arena_bytes < whole.plan.arena_bytes
    assert all(entry["bytes"] < entry["bytes_unpacked"] for entry in manifest["packed"])
    assert any("packed" in note for note in made.notes)
    report = tinyq.verify(folder, VerifyOptions(random=2, layers=True))
    assert report.equal
    packs = [layer for layer in report.layers if layer.op == "pack"]
    assert packs
    assert all(layer.different == 0 for layer in report.layers if layer.different is not None)
    assert all(layer.different == 0 for layer in packs)
    names = [layer["name"] for layer in whole.program.manifest["layers"]]
    found = [layer["name"] for layer in merged(manifest["layers"])]
    # Rows of an input are copied where they are not aligned: no layer of the whole network.
    assert [name for name in found if name in names] == [name for name in names if name in found]


def test_a_limit_is_met_by_packing(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    onnx.save(few("unsigned4", 16, 12, 16).model(), model)
    least = tinyq.compile(
        model, output=tmp_path / "a", target="cortex-m4", optimize="size", pack_activations="always"
    ).plan.arena_bytes
    made = tinyq.compile(model, output=tmp_path / "b", target="cortex-m4", ram=str(least))
    assert made.plan.arena_bytes <= least
    with pytest.raises(TinyqError) as raised:
        tinyq.compile(
            model, output=tmp_path / "c", target="cortex-m4", ram="200", pack_activations="never"
        )
    assert raised.value.diagnostics[0].code == "TQ801"
    with pytest.raises(TinyqError) as refused:
        tinyq.compile(model, output=tmp_path / "d", target="cortex-m4", pack_activations="some")
    assert refused.value.diagnostics[0].code == "TQ303"
