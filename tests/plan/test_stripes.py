"""The first layers in stripes of rows: the same integers, less memory."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq import Qdq

import tinyq
from tinyq.api import CompileOptions, lower_model
from tinyq.errors import TinyqError
from tinyq.ir import Graph
from tinyq.passes.stripe import regions, stripe
from tinyq.plan import plan_shared
from tinyq.report.network import merged
from tinyq.select import Goal, select
from tinyq.target import load_core
from tinyq.verification.reference import interpret
from tinyq.verification.verify import VerifyOptions


def drawn(seed: int, height: int = 13, width: int = 8, blocks: int = 4) -> Qdq:
    """Convolutions of any window, depthwise ones, pools, activations and residuals, then a mean."""
    b, rng = Qdq(), np.random.default_rng(seed)
    channels = 4
    x = b.op("Transpose", b.x((1, height, width, channels), 0.05, 3), perm=[0, 3, 1, 2])
    size = height

    def conv(x: str, inputs: int, outputs: int, groups: int = 1, **window: object) -> str:
        k = int(window.pop("k", 3))  # type: ignore[call-overload]
        weights = rng.integers(-99, 99, (outputs, inputs // groups, k, 3))
        scale = 0.7 / (99 * np.sqrt(k * 3 * inputs / groups))
        y = b.op("Conv", x, b.weights(weights, scale), group=groups, **window)
        return b.qdq(y, 0.0731, int(rng.integers(-9, 9)))

    for _ in range(blocks):
        kind = rng.choice(["conv", "stride", "depthwise", "pool", "residual", "sigmoid"])
        if kind == "conv":
            k, top = int(rng.integers(1, 5)), int(rng.integers(0, 3))
            top, bottom = min(top, k - 1), int(rng.integers(0, k))
            if size + top + bottom < k + 2:
                continue
            x = conv(x, channels, channels, k=k, pads=[top, 1, bottom, 1])
            size += top + bottom - k + 1
        elif kind == "stride" and size > 5:
            x = conv(x, channels, 8, strides=[2, 1], pads=[1, 1, 1, 1])
            size, channels = (size - 1) // 2 + 1, 8
        elif kind == "depthwise":
            x = conv(x, channels, channels, channels, pads=[2, 2, 2, 2], dilations=[2, 2])
        elif kind == "pool" and size > 5:
            x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 1], pads=[0, 1, 0, 1])
            x, size = b.qdq(x, 0.0731, 0), (size - 3) // 2 + 1
        elif kind == "residual":
            y = conv(conv(x, channels, channels, pads=[1] * 4), channels, channels, pads=[1] * 4)
            x = b.qdq(b.op("Add", x, y), 0.0917, 2)
        elif kind == "sigmoid":
            x = b.qdq(b.op("HardSwish", x), 0.0731, -20)
    return b.end(b.op("GlobalAveragePool", x), 0.05, 3)


def lowered(model: Qdq, folder: Path) -> Graph:
    onnx.save(model.model(), folder / "net.onnx")
    return lower_model(folder / "net.onnx", CompileOptions("cortex-m4"))[0]


@pytest.mark.parametrize("seed", range(5))
def test_every_row_of_every_tensor(seed: int, tmp_path: Path) -> None:
    """Stripes of any size, through the reference: their tensors are rows of the graph's."""
    graph = lowered(drawn(seed), tmp_path)
    rng = np.random.default_rng(seed)
    inputs = {v.name: rng.integers(-128, 128, v.type.shape).astype(np.int8) for v in graph.inputs}
    wanted = interpret(graph, inputs)
    core = load_core("cortex-m4")
    macs = sum(la.macs for la in select(graph, core, Goal.SPEED).layers)
    found = list(regions(graph))
    assert found
    for nodes, step in product(found, (1, 3)):
        striped = stripe(graph, nodes, step)
        got = interpret(striped.graph, inputs)
        for value, rows in striped.rows.items():
            assert np.array_equal(got[value], wanted[rows.of][:, rows.start : rows.stop])
        assert np.array_equal(got[graph.outputs[0]], wanted[graph.outputs[0]])
        schedule = select(striped.graph, core, Goal.SPEED)
        assert sum(la.macs for la in schedule.layers) <= macs
        plan_shared(schedule)


@pytest.mark.parametrize(
    ("target", "seed"), [("cortex-m0", 4), ("cortex-m4", 8), ("cortex-m55", 6)]
)
def test_a_limit_is_met_on_the_emulated_core(target: str, seed: int, tmp_path: Path) -> None:
    """Every layer of every stripe is compared with rows of the tensor that it stands for."""
    onnx.save(drawn(seed, 16, 12, 3).model(), tmp_path / "net.onnx")
    whole = tinyq.compile(tmp_path / "net.onnx", output=tmp_path / "whole", target=target)
    limit = whole.plan.arena_bytes
    for _ in range(4):  # kernels with less scratch may be enough at first
        limit -= 8
        compiled = tinyq.compile(
            tmp_path / "net.onnx", output=tmp_path / "out", target=target, ram=str(limit)
        )
        assert compiled.plan.arena_bytes <= limit
        if any("stripes" in note for note in compiled.notes):
            break
        limit = compiled.plan.arena_bytes
    else:
        pytest.fail("no limit asked for stripes")
    report = tinyq.verify(tmp_path / "out", VerifyOptions(random=2, layers=True))
    assert report.equal
    striped = [la for la in report.layers if "@" in la.name]
    assert striped
    assert all(la.different == 0 for la in striped)
    assert any(la.oracle_different == 0 for la in striped)
    layers = merged(compiled.program.manifest["layers"])
    names = [layer["name"] for layer in layers]
    assert names == [la["name"] for la in whole.program.manifest["layers"] if la["name"] in names]
    assert sum(la["macs"] for la in layers) <= whole.program.manifest["macs"]


def test_what_no_stripes_meet(tmp_path: Path) -> None:
    onnx.save(drawn(1).model(), tmp_path / "net.onnx")
    with pytest.raises(TinyqError) as raised:
        tinyq.compile(tmp_path / "net.onnx", target="cortex-m4", ram="500")
    found = raised.value.diagnostics[0]
    assert found.code == "TQ801"
    assert "the network's inputs alone take 416" in found.found


def test_a_tensor_that_is_read_later_ends_no_region(tmp_path: Path) -> None:
    b, rng = Qdq(), np.random.default_rng(1)
    x = b.op("Transpose", b.x((1, 8, 8, 4), 0.05, 3), perm=[0, 3, 1, 2])
    first = b.qdq(b.op("Conv", x, b.weights(rng.integers(-99, 99, (4, 4, 1, 1)), 0.01)), 0.1)
    second = b.qdq(b.op("Sigmoid", first), 1 / 256, -128)
    b.end(b.op("Mul", first, second), 0.1)
    graph = lowered(b, tmp_path)
    # The product alone is a region: between the nodes before it two tensors are alive.
    assert list(regions(graph)) == [3]
