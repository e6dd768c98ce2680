"""Removal of dead channels: nothing that is left may compute anything else."""

from __future__ import annotations

import numpy as np
import pytest
from passes.integer_networks import Builder, random_network

from tinyq.ir import AnyArray, Graph, Node, Origin
from tinyq.ops import REGISTRY
from tinyq.ops.conv2d import Conv2d
from tinyq.ops.dense import Dense
from tinyq.passes.dead_channels import remove_dead_channels
from tinyq.passes.ranges import channel_intervals


def samples(graph: Graph, count: int = 8) -> list[AnyArray]:
    rng = np.random.default_rng(7)
    shape = graph.inputs[0].type.shape
    ends = [np.full(shape, -128, np.int8), np.full(shape, 127, np.int8)]
    return ends + [rng.integers(-128, 128, shape).astype(np.int8) for _ in range(count)]


def run(graph: Graph, x: AnyArray) -> dict[str, AnyArray]:
    """Every value, linear layers by their oracle itself: requantization plays no part here."""
    values = {graph.inputs[0].name: x}
    for node in graph.nodes:
        operands = tuple(v.array if v.is_constant else values[v.name] for v in node.present_inputs)
        operator = REGISTRY[node.op]
        if isinstance(operator, Conv2d | Dense):
            acc = operator.accumulate(node, operands[0])
            rows = acc.reshape(-1, acc.shape[-1]).T
            result = node.attrs.oracle(rows).T.reshape(acc.shape).astype(np.int8)
        else:
            result = operator.reference(node, operands)[0]
        values[node.output.name] = result
    return values


def with_means(graph: Graph) -> Graph:
    """The graph with the requantizations of its means found."""
    return graph.replace(
        Node(n.op, n.name, n.inputs, n.outputs, REGISTRY[n.op].synthesize(n))
        if n.op == "average_pool2d"
        else n
        for n in graph.nodes
    )


def assert_same(before: Graph, after: Graph) -> None:
    before, after = with_means(before), with_means(after)
    for x in samples(before):
        wanted, got = run(before, x), run(after, x)
        for value in before.outputs:
            np.testing.assert_array_equal(wanted[value.name], got[value.name])


@pytest.mark.parametrize("seed", range(24))
def test_random_networks_compute_the_same(seed: int) -> None:
    graph = random_network(seed)
    assert_same(graph, remove_dead_channels(graph)[0])


def test_random_networks_lose_channels() -> None:
    changed = [bool(remove_dead_channels(random_network(seed))[1]) for seed in range(40)]
    assert sum(changed) > 30


@pytest.mark.parametrize("seed", range(6))
def test_a_second_run_finds_nothing(seed: int) -> None:
    once, _ = remove_dead_channels(random_network(seed))
    _, notes = remove_dead_channels(once)
    assert notes == ()


@pytest.mark.parametrize("seed", range(8))
def test_every_value_lies_in_its_interval(seed: int) -> None:
    graph = random_network(seed)
    intervals = channel_intervals(graph)
    real = with_means(graph)
    for x in samples(real):
        values = run(real, x)
        for value, interval in intervals.items():
            rows = values[value.name].reshape(-1, len(interval.low)).astype(np.int64)
            assert (rows >= interval.low).all()
            assert (rows <= interval.high).all()


def constant_into(pad: int, level: int, kernel: int = 3) -> tuple[Graph, Graph]:
    """Channel 1 is always ``level``; the zero point, which padding reads, is -128."""
    net = Builder(np.random.default_rng(0))
    x = net.value("x", 1, 5, 5, 3)
    middle = net.conv(x, 4, 1, whole=True)
    oracle = net.nodes[0].attrs.oracle
    net.nodes[0].input(1).array[:] = 30
    net.nodes[0].input(1).array[1] = 0
    oracle.offset[:], oracle.bias[:] = 128 * 90, 0
    oracle.offset[1], oracle.bias[1] = 0, 10 * (level + 128)
    oracle.scale[1] = np.float32(0.1)
    last = net.conv(middle, 2, kernel, 1, pad, whole=True)
    graph = net.graph([x], [last])
    return graph, remove_dead_channels(graph)[0]


@pytest.mark.parametrize(
    ("pad", "level", "left"),
    [(0, -128, 3), (0, 22, 3), (1, -128, 3), (1, 22, 4)],
    ids=["no padding", "no padding, another level", "padding reads it", "padding reads another"],
)
def test_a_constant_beside_padding_is_folded_only_where_padding_reads_the_same(
    pad: int, level: int, left: int
) -> None:
    before, after = constant_into(pad, level)
    assert channel_intervals(before)[before.nodes[0].output].low[1] == level
    assert after.nodes[0].output.type.shape[3] == left
    assert_same(before, after)


def test_a_tensor_never_becomes_empty() -> None:
    net = Builder(np.random.default_rng(0))
    x = net.value("x", 1, 3, 3, 2)
    middle = net.conv(x, 4, 1)
    net.nodes[0].attrs.oracle.bias[:] = -(10**6)
    graph = net.graph([x], [net.conv(middle, 2, 1)])
    after, _ = remove_dead_channels(graph)
    assert after.nodes[0].output.type.shape == (1, 3, 3, 1)
    assert_same(graph, after)


def test_origins_say_which_channels_are_left() -> None:
    graph, _ = constant_into(0, 22)
    value = graph.nodes[0].output
    graph = graph.with_origins([Origin("t", value, value.type.shape, (0, 3, 1, 2))])
    (origin,) = remove_dead_channels(graph)[0].origins
    assert origin.kept == (0, 2, 3)
    assert origin.shape == (1, 5, 5, 3)
