"""The order of layers where the graph branches, and kernels exchanged where memory is fullest."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from codegen.fakes import FakeOperator, alias_call, copy_call, schedule_of, tensor

from tinyq.ir import Value
from tinyq.plan import plan
from tinyq.plan.exchange import Peaks
from tinyq.plan.limits import Limits, fit
from tinyq.plan.order import order_layers
from tinyq.select import Goal, Schedule, select
from tinyq.target import load_core


def two_branches() -> Schedule:
    """Both wide tensors first, then both narrow ones: the worst order."""
    x, y = tensor("x", 16), tensor("y", 16)
    wide = [tensor(f"wide{k}", 1024) for k in range(2)]
    narrow = [tensor(f"narrow{k}", 16) for k in range(2)]
    call = copy_call(16)
    steps = [(call, [x], [wide[0]]), (call, [x], [wide[1]])]
    steps += [(call, [wide[k]], [narrow[k]]) for k in range(2)]
    return schedule_of([x], [y], [*steps, (call, narrow, [y])])


def test_one_branch_after_the_other() -> None:
    schedule = two_branches()
    ordered = order_layers(schedule)
    names = [layer.outputs[0].name for layer in ordered.layers]
    assert names == ["wide0", "narrow0", "wide1", "narrow1", "y"]
    assert [layer.index for layer in ordered.layers] == list(range(5))
    assert [node.output.name for node in ordered.graph.nodes] == names
    assert plan(schedule).arena_bytes == 2 * 1024 + 16
    assert plan(ordered).arena_bytes == 1024 + 16 + 16


def test_fit_says_that_layers_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyq.plan import limits

    schedule = two_branches()
    monkeypatch.setattr(limits, "select", lambda *_, **__: schedule)
    found = fit(schedule.graph, schedule.core, Goal.SPEED, Limits())
    assert found.plan.arena_bytes == 1056
    assert found.notes == ("layers run in another order: 1,056 bytes of arena, not 2,064",)


def test_a_chain_stays_as_it_is() -> None:
    values = [tensor(f"v{k}", 16) for k in range(5)]
    steps = [(copy_call(16), [values[k]], [values[k + 1]]) for k in range(4)]
    schedule = schedule_of([values[0]], [values[-1]], steps)
    assert order_layers(schedule) is schedule


def drawn(seed: int) -> Schedule:
    """Up to seven layers that read any tensors before them; some share memory."""
    rng = np.random.default_rng(seed)
    values = [tensor("x", 16 * int(rng.integers(1, 9)))]
    steps = []
    for k in range(int(rng.integers(4, 8))):
        count = int(rng.integers(1, 3))
        reads = [values[i] for i in sorted(set(rng.integers(0, len(values), count).tolist()))]
        if rng.integers(0, 6) == 0:
            reads = reads[:1]
            steps.append((alias_call(), reads, [tensor(f"v{k}", reads[0].type.bytes)]))
        else:
            result = tensor(f"v{k}", 16 * int(rng.integers(1, 30)))
            scratch = 16 * int(rng.integers(0, 2)) * int(rng.integers(0, 12))
            steps.append((copy_call(1, scratch_bytes=scratch), reads, [result]))
        values += steps[-1][2]
    return schedule_of(values[:1], values[-1:], steps)


def peak(schedule: Schedule, order: tuple[int, ...]) -> int:
    """Bytes in use at the fullest layer of an order, by the last use of every buffer."""
    layers = [schedule.layers[k] for k in order]
    root: dict[Value, Value] = {v: v for v in schedule.graph.inputs}
    born: dict[Value, int] = dict.fromkeys(schedule.graph.inputs, -1)
    last: dict[Value, int] = dict.fromkeys(schedule.graph.inputs, -1)
    for time, layer in enumerate(layers):
        for value in layer.inputs:
            last[root[value]] = time
        for value in layer.outputs:
            root[value] = root[layer.inputs[0]] if layer.call.alias else value
            born.setdefault(root[value], time)
            last[root[value]] = time
    for value in schedule.graph.outputs:
        last[root[value]] = len(layers)
    return max(
        sum(v.type.bytes for v in born if born[v] <= time <= last[v]) + layer.call.scratch_bytes
        for time, layer in enumerate(layers)
    )


@pytest.mark.parametrize("seed", range(25))
def test_no_order_has_a_lower_peak(seed: int) -> None:
    """Against every order of small graphs."""
    schedule = drawn(seed)
    maker = {v: layer.index for layer in schedule.layers for v in layer.outputs}
    needs = [{maker[v] for v in la.inputs if v in maker} for la in schedule.layers]
    peaks = [
        peak(schedule, order)
        for order in permutations(range(len(needs)))
        if all(needs[k] <= set(order[:n]) for n, k in enumerate(order))
    ]
    ordered = order_layers(schedule)
    assert peak(ordered, tuple(range(len(needs)))) == min(peaks)
    plan(ordered)


def test_many_branches_take_bounded_time() -> None:
    """Sixty branches have more sets of executed layers than can be looked at."""
    x, call = tensor("x", 16), copy_call(16)
    wide = [tensor(f"wide{k}", 320) for k in range(60)]
    narrow = [tensor(f"narrow{k}", 16) for k in range(60)]
    steps = [(call, [x], [v]) for v in wide]
    steps += [(call, [a], [b]) for a, b in zip(wide, narrow, strict=True)]
    schedule = schedule_of([x], [tensor("y", 16)], steps)
    y = schedule.graph.outputs[0]
    schedule = schedule_of([x], [y], [*steps, (call, narrow, [y])])
    ordered = order_layers(schedule)
    assert plan(ordered).arena_bytes < plan(schedule).arena_bytes // 5


def with_two_kernels(goal: Goal) -> Schedule:
    """A kernel of few bytes with much scratch, and one a little larger without."""
    greedy = copy_call(64, instructions=100, code_bytes=100, scratch_bytes=640)
    modest = copy_call(64, instructions=104, code_bytes=120)
    operator = FakeOperator("fake", ("greedy", greedy), ("modest", modest))
    x, y = tensor("x", 64), tensor("y", 64)
    graph = schedule_of([x], [y], [(greedy, [x], [y])]).graph
    return select(graph, load_core("cortex-m4"), goal, operators={"fake": operator})


@pytest.mark.parametrize(
    ("goal", "arena"), [(Goal.SIZE, 128), (Goal.BALANCED, 128), (Goal.SPEED, 768)]
)
def test_scratch_has_a_price(goal: Goal, arena: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyq.plan import limits

    schedule = with_two_kernels(goal)
    monkeypatch.setattr(limits, "select", lambda *_, **__: schedule)
    found = fit(schedule.graph, schedule.core, goal, Limits())
    assert found.plan.arena_bytes == arena
    assert bool(found.notes) == (goal is not Goal.SPEED)
    limited = fit(schedule.graph, schedule.core, goal, Limits(ram=128))
    assert limited.plan.arena_bytes == 128


def test_exchanges_need_less_and_less() -> None:
    found = list(Peaks(with_two_kernels(Goal.SIZE)).exchanges())
    assert [(e.needed, e.cost) for e in found] == [(768, 0.0), (128, 20.0)]
