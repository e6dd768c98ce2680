"""Tensors within others: slices of their input, inputs of a concatenation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from codegen.fakes import alias_call, copy_call, schedule_of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from qdq import Qdq

import tinyq
from tinyq.ir import Node, Value
from tinyq.ops.base import KernelCall, Sharing
from tinyq.ops.slice import SliceAttrs, SliceS8
from tinyq.plan import OverlapError, plan, plan_shared, verify_plan
from tinyq.plan.sharing import share_memory
from tinyq.select import Schedule
from tinyq.target import load_core
from tinyq.verification.verify import VerifyOptions


def join_call(*sizes: int) -> KernelCall:
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return KernelCall("join", "", None, sharing=Sharing("output", tuple(starts)))


def slice_call(start: int) -> KernelCall:
    return KernelCall("slice", "", None, sharing=Sharing("input", (start,)))


def joined() -> Schedule:
    x, a, b, y = tensor("x", 32), tensor("a", 48), tensor("b", 16), tensor("y", 64)
    z = tensor("z", 8)
    steps = [
        (copy_call(48), [x], [a]),
        (copy_call(16), [x], [b]),
        (join_call(48, 16), [a, b], [y]),
        (copy_call(8), [y], [z]),
    ]
    return schedule_of([x], [z], steps)


def test_a_join_is_written_by_the_producers() -> None:
    schedule, found = plan_shared(joined())
    x, (a, b, y, _) = schedule.graph.inputs[0], [la.outputs[0] for la in schedule.layers]
    assert schedule.layers[2].call.alias
    assert "shares memory of its 2 inputs" in schedule.layers[2].call.reason
    assert (found.offsets[a], found.offsets[b]) == (found.offsets[y], found.offsets[y] + 48)
    assert found.offsets[x] not in range(found.offsets[y], found.offsets[y] + 64)
    assert found.arena_bytes == 96
    assert plan(joined()).arena_bytes == 64 + 64


def test_slices_of_an_input_end_its_life_byte_by_byte() -> None:
    """A result for each half: the first may take the place of the half that is done."""
    x = tensor("x", 128)
    halves = [tensor(f"half{k}", 64) for k in range(2)]
    results = [tensor(f"y{k}", 64) for k in range(2)]
    steps = [
        (slice_call(0), [x], [halves[0]]),
        (copy_call(64, overlap=0), [halves[0]], [results[0]]),
        (slice_call(64), [x], [halves[1]]),
        (copy_call(64, overlap=0), [halves[1]], [results[1]]),
    ]
    schedule = share_memory(schedule_of([x], results, steps))
    assert plan(schedule).arena_bytes == 128


@pytest.mark.parametrize(
    "reason",
    ["constant offset", "twice in one join", "in two joins"],
)
def test_what_stays_a_copy(reason: str) -> None:
    x, a, y, z = tensor("x", 32), tensor("a", 32), tensor("y", 64), tensor("z", 64)
    odd = tensor("odd", 30)
    steps = {
        "constant offset": [(slice_call(2), [x], [odd])],
        "twice in one join": [(copy_call(32), [x], [a]), (join_call(32, 32), [a, a], [y])],
        "in two joins": [
            (copy_call(32), [x], [a]),
            (join_call(32, 32), [a, x], [y]),
            (join_call(32, 32), [x, a], [z]),
        ],
    }[reason]
    schedule = schedule_of([x], [steps[-1][2][0], steps[-1][1][0]], steps)
    assert not share_memory(schedule).layers[-1].call.alias


def test_verify_refuses_a_part_that_lies_elsewhere() -> None:
    schedule = share_memory(joined())
    found = plan(schedule)
    part = schedule.layers[1].outputs[0]
    moved = replace(found, offsets={**found.offsets, part: found.offsets[part] - 4})
    with pytest.raises(OverlapError, match="must lie 48 bytes into"):
        verify_plan(schedule, moved)


def test_verify_refuses_a_part_that_is_overwritten() -> None:
    """The first part is complete when the layer that makes the second one runs over it."""
    schedule = share_memory(joined())
    found = plan(schedule)
    x, y = schedule.graph.inputs[0], schedule.layers[2].outputs[0]
    over = {**found.offsets, x: found.offsets[y]}
    with pytest.raises(OverlapError, match="overwritten"):
        verify_plan(schedule, replace(found, offsets=over))


@st.composite
def networks(draw: st.DrawFn) -> Schedule:
    """Random graphs of kernels, slices, joins and reshapes."""
    values = [tensor(f"x{k}", 4 * draw(st.integers(1, 40))) for k in range(2)]
    inputs = list(values)
    steps: list[tuple[KernelCall, list[Value], list[Value]]] = []
    for k in range(draw(st.integers(1, 16))):
        kind = draw(st.sampled_from(["copy", "copy", "join", "slice", "reshape"]))
        reads = draw(st.lists(st.sampled_from(values[-8:]), min_size=1, max_size=3))
        name = f"v{k}"
        if kind == "join":
            sizes = [v.type.bytes for v in reads]
            steps.append((join_call(*sizes), reads, [tensor(name, sum(sizes))]))
        elif kind == "slice":
            size = reads[0].type.bytes
            start = draw(st.integers(0, size - 1))
            count = draw(st.integers(1, size - start))
            steps.append((slice_call(start), reads[:1], [tensor(name, count)]))
        elif kind == "reshape":
            steps.append((alias_call(), reads[:1], [tensor(name, reads[0].type.bytes)]))
        else:
            size = draw(st.sampled_from([reads[0].type.bytes, 4 * draw(st.integers(1, 60))]))
            call = copy_call(
                1,
                in_place=tuple(sorted(draw(st.sets(st.integers(0, len(reads) - 1))))),
                scratch_bytes=draw(st.sampled_from([0, 0, 40])),
                overlap=draw(st.sampled_from([None, -40, 0, 16, 50])),
                phase=draw(st.sampled_from([0, 0, 8, 20])),
            )
            steps.append((call, reads, [tensor(name, size)]))
        values += steps[-1][2]
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
    return schedule_of(inputs, outputs, steps)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(networks())
def test_random_networks(schedule: Schedule) -> None:
    """The plans are replayed on tagged bytes by the verifier, which plan() calls."""
    joined = share_memory(schedule)
    found = plan(joined)
    assert found.live_bytes <= found.arena_bytes
    for layer in joined.layers:
        sharing = layer.call.sharing
        if layer.call.alias and sharing is not None and sharing.whole == "output":
            at = [found.offsets[v] - found.offsets[layer.outputs[0]] for v in layer.inputs]
            assert tuple(at) == sharing.offsets
    assert plan_shared(schedule)[1].arena_bytes <= plan(schedule).arena_bytes


def test_a_slice_moved_over_its_input() -> None:
    """Steps of either sign: replayed byte by byte at the least distance that is stated."""
    for starts, steps, sizes in [((0, 1), (1, 2), (4, 3)), ((3, 5), (-1, -1), (4, 6)),
                                 ((2, 0), (1, 1), (2, 7)), ((0, 4), (1, 1), (3, 2))]:  # fmt: skip
        x, y = tensor("x", 4, 7), tensor("y", *sizes)
        call = SliceS8().plan(
            Node("slice", "s", (x,), (y,), SliceAttrs(starts, steps)), load_core("cortex-m0")
        )
        assert isinstance(call, KernelCall)
        assert call.overlap is not None
        source = np.arange(28).reshape(4, 7)
        index = [s + d * np.arange(n) for s, d, n in zip(starts, steps, sizes, strict=True)]
        taken = source[np.ix_(*index)].reshape(-1)
        arena = np.full(100, -1)
        arena[40:68] = np.arange(28)
        low = 40 - call.overlap
        for k, element in enumerate(taken):
            assert arena[40 + element] == element
            arena[low + k] = -2


def branches() -> Qdq:
    """Halves of an image convolved each in its own way, joined again, and padded."""
    b, rng = Qdq(), np.random.default_rng(5)
    x = b.x((1, 3, 8, 6), 0.05, 3)
    x = b.qdq(b.op("Conv", x, b.weights(rng.integers(-99, 99, (4, 3, 1, 1)), 0.013)), 0.11, 4)
    halves = []
    for half in b.ops("Split", 2, x, b.const((4, 4)), axis=2):
        weights = b.weights(rng.integers(-99, 99, (4, 4, 3, 3)), 0.013)
        halves.append(b.qdq(b.op("Conv", half, weights, pads=[1] * 4), 0.23, 4))
    y = b.qdq(b.op("Concat", *halves, axis=2), 0.23, 4)
    y = b.qdq(b.op("Pad", y, b.const((0, 0, 2, 1, 0, 0, 0, 3))), 0.23, 4)
    return b.end(b.op("MaxPool", y, kernel_shape=[3, 2]), 0.23, 4)


@pytest.mark.parametrize(("target", "emulator"), [("cortex-m0", "qemu"), ("cortex-m4", "host")])
def test_views_compute_the_same(target: str, emulator: str, tmp_path: Path) -> None:
    onnx.save(branches().model(), tmp_path / "net.onnx")
    compiled = tinyq.compile(tmp_path / "net.onnx", output=tmp_path / "out", target=target)
    layers = {layer["op"]: layer for layer in compiled.program.manifest["layers"]}
    assert not layers["concat"]["function"]
    assert not layers["slice"]["function"]
    assert layers["pad"]["overlays"] == layers["concat"]["output"]
    options = VerifyOptions(emulator=emulator, random=3, layers=True)
    assert tinyq.verify(tmp_path / "out", options).equal
