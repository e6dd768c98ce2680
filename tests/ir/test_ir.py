"""Graphs: validity, substitution, dead code, the text form."""

from __future__ import annotations

import numpy as np
import pytest

from tinyq.ir import (
    DType,
    Graph,
    InvalidGraphError,
    Node,
    Origin,
    QuantParams,
    Stage,
    TensorType,
    Value,
    check,
    substitute,
    to_text,
    without_dead_nodes,
)

INT8 = TensorType((1, 4), DType.INT8, QuantParams.per_tensor(0.5, -3))


def value(name: str, type_: TensorType = INT8, data: np.ndarray | None = None) -> Value:
    return Value(name, type_, data)


def chain() -> tuple[Graph, list[Value]]:
    values = [value(n) for n in ("x", "a", "b", "y")]
    nodes = tuple(
        Node("rebase", f"n{k}", (values[k],), (values[k + 1],)) for k in range(len(values) - 1)
    )
    return Graph("g", Stage.INTEGER, (values[0],), (values[-1],), nodes), values


def test_a_valid_graph_passes_the_check_and_is_returned() -> None:
    graph, _ = chain()
    assert check(graph) is graph


def broken_order() -> Graph:
    graph, _ = chain()
    return graph.replace(reversed(graph.nodes))


def broken_names() -> Graph:
    x, a, b = value("x"), value("a"), value("a")
    nodes = (Node("rebase", "n", (x,), (a,)), Node("rebase", "m", (a,), (b,)))
    return Graph("g", Stage.INTEGER, (x,), (b,), nodes)


def broken_node_names() -> Graph:
    x, a, b = value("x"), value("a"), value("b")
    nodes = (Node("rebase", "n", (x,), (a,)), Node("rebase", "n", (a,), (b,)))
    return Graph("g", Stage.INTEGER, (x,), (b,), nodes)


def broken_output() -> Graph:
    graph, _ = chain()
    return graph.replace(graph.nodes, (value("nobody"),))


def broken_constant() -> Graph:
    x, y = value("x"), value("y")
    weights = value("w", TensorType((2,), DType.INT8), np.zeros(3, np.int8))
    return Graph("g", Stage.INTEGER, (x,), (y,), (Node("lut", "n", (x, weights), (y,)),))


def broken_float() -> Graph:
    x, y = value("x"), value("y", TensorType((1, 4), DType.FLOAT32))
    return Graph("g", Stage.INTEGER, (x,), (y,), (Node("lut", "n", (x,), (y,)),))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (broken_order, "before it is computed"),
        (broken_names, "two values share the name 'a'"),
        (broken_node_names, "two nodes share the name 'n'"),
        (broken_output, "never computed"),
        (broken_constant, "declared"),
        (broken_float, "float tensor"),
    ],
)
def test_a_broken_graph_is_named(make, says) -> None:
    with pytest.raises(InvalidGraphError, match=says):
        check(make())


def test_substitution_follows_chains_and_keeps_untouched_nodes() -> None:
    graph, (x, a, b, _) = chain()
    changed = substitute(graph, {b: a, a: x})
    assert changed.nodes[2].inputs == (x,)
    assert changed.nodes[0] is graph.nodes[0]


def test_dead_nodes_and_their_origins_go() -> None:
    graph, (x, a, b, y) = chain()
    graph = graph.with_origins([Origin(v.name, v, (1, 4), (0, 1)) for v in (a, b, y)])
    cut = without_dead_nodes(graph.replace(graph.nodes, (a,)))
    assert [node.name for node in cut.nodes] == ["n0"]
    assert [o.name for o in cut.origins] == ["a"]
    assert cut.inputs == (x,)


def test_text_form_is_stable_and_complete() -> None:
    graph, _ = chain()
    line = "int8[1x4] (scale=0.5, zero_point=-3)"
    assert to_text(graph).splitlines() == [
        "graph g stage=integer {",
        f"  input %x: {line}",
        f'  %a: {line} = rebase(%x) "n0"',
        f'  %b: {line} = rebase(%a) "n1"',
        f'  %y: {line} = rebase(%b) "n2"',
        "  output %y",
        "}",
    ]


@pytest.mark.parametrize(
    ("scales", "zeros", "axis"),
    [((), (), None), ((1.0,), (0, 1), None), ((1.0, 2.0), (0, 0), None)],
)
def test_contradicting_quantization_is_refused(scales, zeros, axis) -> None:
    with pytest.raises(ValueError, match="scale"):
        QuantParams(scales, zeros, axis)
