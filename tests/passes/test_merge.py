"""Constant folding, common subexpressions, padding, tables: the same outputs with fewer nodes."""

from __future__ import annotations

import numpy as np
import pytest
from passes.integer_networks import Builder
from passes.test_dead_channels import assert_same

from tinyq.ir import DType, Graph, TensorType, Value
from tinyq.ops.lut import LutAttrs
from tinyq.passes.merge import (
    fold_constants,
    merge_equal_nodes,
    merge_neighbours,
    merge_pads,
    merge_tables,
)


def builder(zero_point: int = -128) -> tuple[Builder, Value]:
    net = Builder(np.random.default_rng(3), zero_point)
    return net, net.value("x", 1, 6, 7, 3)


def operators(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def table(net: Builder, x: Value, rows: np.ndarray) -> Value:
    return net.emit("lut", [x, net.constant(rows.astype(np.int8))], x.type.shape, LutAttrs(3))


def test_constants_are_folded() -> None:
    net, x = builder()
    rng = np.random.default_rng(0)
    data = rng.integers(-128, 128, (1, 6, 7, 3)).astype(np.int8)
    constant = Value("k", TensorType(data.shape, DType.INT8, net.quant), data)
    folded = table(net, net.pad(net.slice(constant, 0, 3), 5), rng.integers(-128, 128, (1, 256)))
    padded = net.pad(x, 3)
    graph = net.graph([x], [net.add(padded, folded)])
    after, notes = fold_constants(graph)
    assert operators(after) == ["pad", "add"]
    assert notes == ("constant folding: 3 operators",)
    assert_same(graph, after)


def test_equal_nodes_are_computed_once() -> None:
    net, x = builder()
    first, second = net.max_pool(x), net.max_pool(x)
    graph = net.graph([x], [net.add(net.max_pool(first), net.max_pool(second))])
    after, notes = merge_equal_nodes(graph)
    assert operators(after) == ["max_pool2d", "max_pool2d", "add"]
    assert notes == ("common subexpressions: 2 operators removed",)
    assert_same(graph, after)


def test_different_constants_are_not_equal() -> None:
    net, x = builder()
    graph = net.graph([x], [net.add(net.conv(x, 3, 1), net.conv(x, 3, 1))])
    assert merge_equal_nodes(graph) == (graph, ())


@pytest.mark.parametrize(
    ("zero_point", "value", "merges"),
    [(-128, -128, True), (3, 3, True), (3, -128, False), (-128, 0, False)],
)
def test_padding_goes_into_a_convolution_that_pads_with_the_same(
    zero_point: int, value: int, merges: bool
) -> None:
    net, x = builder(zero_point)
    graph = net.graph([x], [net.conv(net.pad(x, value), 4, 3, 2, 1)])
    after, notes = merge_pads(graph)
    assert operators(after) == (["conv2d"] if merges else ["pad", "conv2d"])
    assert bool(notes) == merges
    assert_same(graph, after)


@pytest.mark.parametrize(
    ("value", "end", "merges"), [(-128, 0, True), (-127, 0, False), (-128, 1, False)]
)
def test_padding_goes_into_a_maximum_only_as_its_least_value(
    value: int, end: int, merges: bool
) -> None:
    """Nor where a window would lie in padding alone."""
    net, x = builder()
    graph = net.graph([x], [net.max_pool(net.pad(x, value), end)])
    after, _ = merge_pads(graph)
    assert ("pad" not in operators(after)) == merges
    assert_same(graph, after)


def test_padding_stays_where_another_reads_it() -> None:
    net, x = builder()
    padded = net.pad(x, -128)
    graph = net.graph([x], [net.conv(padded, 4, 3), table(net, padded, np.ones((1, 256)))])
    assert merge_pads(graph) == (graph, ())


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_tables_are_merged(rows: tuple[int, int]) -> None:
    net, x = builder()
    rng = np.random.default_rng(1)
    inner = table(net, x, rng.integers(-128, 128, (rows[0], 256)))
    graph = net.graph([x], [table(net, inner, rng.integers(-128, 128, (rows[1], 256)))])
    after, notes = merge_tables(graph)
    assert operators(after) == ["lut"]
    assert notes == ("tables: 1 lookup merged or dropped",)
    assert_same(graph, after)


def test_a_table_that_two_read_stays() -> None:
    net, x = builder()
    rng = np.random.default_rng(1)
    inner = table(net, x, rng.integers(-128, 128, (1, 256)))
    outer = table(net, inner, rng.integers(-128, 128, (1, 256)))
    graph = net.graph([x], [net.add(inner, outer)])
    assert merge_tables(graph) == (graph, ())


def test_a_table_that_changes_nothing_is_dropped() -> None:
    net, x = builder()
    same = table(net, x, np.arange(256).astype(np.uint8).view(np.int8)[None])
    graph = net.graph([x], [net.max_pool(same)])
    after, _ = merge_neighbours(graph)
    assert operators(after) == ["max_pool2d"]
    assert_same(graph, after)
