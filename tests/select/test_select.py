"""Selection: goals, refusals, forced kernels."""

from __future__ import annotations

import pytest
from codegen.fakes import FakeOperator, tensor

from tinyq.errors import TinyqError
from tinyq.ir import Graph, Node, Stage
from tinyq.ops.base import KernelCall
from tinyq.select import Goal, select
from tinyq.target import load_core


def call(name: str, instructions: int, code: int) -> tuple[str, KernelCall]:
    return name, KernelCall(name, "", None, instructions=instructions, code_bytes=code)


FAST = call("fast", 100, 4000)
SMALL = call("small", 1000, 300)
MIDDLE = call("middle", 150, 340)


def graph(*ops: str) -> Graph:
    values = [tensor(f"v{k}", 4) for k in range(len(ops) + 1)]
    nodes = [Node(op, f"n{k}", (values[k],), (values[k + 1],)) for k, op in enumerate(ops)]
    return Graph("g", Stage.INTEGER, (values[0],), (values[-1],), tuple(nodes))


@pytest.mark.parametrize(
    ("goal", "wanted"),
    [(Goal.SPEED, "fast"), (Goal.SIZE, "small"), (Goal.BALANCED, "middle")],
)
def test_goal(goal: Goal, wanted: str) -> None:
    operators = {"op": FakeOperator("op", FAST, SMALL, MIDDLE, macs=7)}
    schedule = select(graph("op", "op"), load_core("cortex-m4"), goal, operators=operators)
    assert [layer.call.kernel for layer in schedule.layers] == [wanted, wanted]
    assert [layer.index for layer in schedule.layers] == [0, 1]
    assert schedule.layers[0].macs == 7
    assert [c.kernel for c in schedule.layers[0].candidates] == ["fast", "small", "middle"]


def test_first_kernel_wins_a_tie() -> None:
    operators = {"op": FakeOperator("op", call("a", 5, 1), call("b", 5, 1))}
    schedule = select(graph("op"), load_core("cortex-m0"), Goal.SPEED, operators=operators)
    assert schedule.layers[0].call.kernel == "a"


def test_refusals_are_kept() -> None:
    operators = {"op": FakeOperator("op", ("dsp", "the core has no DSP extension"), SMALL)}
    schedule = select(graph("op"), load_core("cortex-m0"), Goal.SPEED, operators=operators)
    assert schedule.layers[0].candidates[0].refusal == "the core has no DSP extension"
    assert schedule.instructions == 1000


def test_every_refused_node_is_reported() -> None:
    operators = {
        "good": FakeOperator("good", FAST),
        "bad": FakeOperator("bad", ("k1", "too wide"), ("k2", "too long")),
        "none": FakeOperator("none"),
    }
    with pytest.raises(TinyqError) as caught:
        select(
            graph("bad", "good", "none"), load_core("cortex-m3"), Goal.SPEED, operators=operators
        )
    found = caught.value.diagnostics
    assert [(d.code, d.node, d.operator) for d in found] == [
        ("TQ206", "n0", "bad"),
        ("TQ206", "n2", "none"),
    ]
    assert "k1: too wide; k2: too long" in found[0].found


def test_forced_kernel() -> None:
    operators = {"op": FakeOperator("op", FAST, SMALL, ("odd", "only odd sizes"))}
    core = load_core("cortex-m4")
    schedule = select(graph("op", "op"), core, Goal.SPEED, {"n1": "small"}, operators)
    assert [layer.call.kernel for layer in schedule.layers] == ["fast", "small"]
    for forced, text in [
        ({"n0": "odd"}, "only odd sizes"),
        ({"n0": "missing"}, "does not exist"),
        ({"nowhere": "fast"}, "no node of the network"),
    ]:
        with pytest.raises(TinyqError, match=text) as caught:
            select(graph("op"), core, Goal.SPEED, forced, operators)
        assert caught.value.diagnostics[0].code == "TQ303"


def test_layers_that_share_code_bear_it_together() -> None:
    # 16 instructions a byte: 90 bytes more for 900 instructions less pay from two layers on.
    shared = call("shared", 100, 390)
    operators = {"op": FakeOperator("op", shared, SMALL)}
    for layers, wanted in ((1, "small"), (2, "shared")):
        schedule = select(
            graph(*["op"] * layers), load_core("cortex-m4"), Goal.BALANCED, operators=operators
        )
        assert {layer.call.kernel for layer in schedule.layers} == {wanted}
