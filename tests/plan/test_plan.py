"""The memory planner: cases, a proof of its own, random networks."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from codegen.fakes import alias_call, copy_call, schedule_of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyq.ir import Value
from tinyq.ops.base import KernelCall
from tinyq.plan import ALIGNMENT, MemoryPlan, OverlapError, plan, verify_plan
from tinyq.select import Layer, Schedule


def lifetimes(schedule: Schedule) -> dict[Value, tuple[int, int]]:
    """First and last time at which each tensor's bytes must be there, aliases not followed."""
    lives = dict.fromkeys(schedule.graph.inputs, (-1, -1))
    for layer in schedule.layers:
        for value in layer.inputs:
            lives[value] = (lives[value][0], layer.index)
        for value in layer.outputs:
            lives[value] = (layer.index, layer.index)
    for value in schedule.graph.outputs:
        lives[value] = (lives[value][0], len(schedule.layers))
    return lives


def may_share(layer: Layer, k: int, found: MemoryPlan) -> bool:
    """Whether the kernel allows what the plan does to input ``k`` of its layer."""
    gap = found.offsets[layer.inputs[k]] - found.offsets[layer.outputs[0]]
    if k in layer.call.in_place and gap == 0:
        return True
    behind = layer.call.overlap is not None and gap >= layer.call.overlap
    in_phase = layer.call.phase > 0 and gap % layer.call.phase == 0
    return k == 0 and (behind or in_phase)


def assert_no_overlap(schedule: Schedule, found: MemoryPlan) -> None:
    """Every two tensors that are needed at one time lie apart, overlays excepted."""
    lives = lifetimes(schedule)
    storage = {value: value for value in lives}
    handover: set[tuple[Value, Value]] = set()
    for layer in schedule.layers:
        if layer.call.alias:
            storage[layer.outputs[0]] = storage[layer.inputs[0]]
    for layer in schedule.layers:
        for k, value in enumerate(layer.inputs):
            if may_share(layer, k, found):
                handover.add((storage[value], storage[layer.outputs[0]]))
    for a, b in combinations(lives, 2):
        if storage[a] is storage[b]:
            assert found.offsets[a] == found.offsets[b]
            continue
        start = max(lives[a][0], lives[b][0])
        end = min(lives[a][1], lives[b][1])
        if (storage[a], storage[b]) in handover or (storage[b], storage[a]) in handover:
            end -= 1  # the layer that hands over is the one time both exist
        if start <= end:
            low, high = sorted((a, b), key=lambda v: found.offsets[v])
            assert found.offsets[low] + low.type.bytes <= found.offsets[high], (a.name, b.name)
    for layer in schedule.layers:
        offset = found.scratch[layer.index]
        if offset is not None:
            for value in (*layer.inputs, *layer.outputs):
                at = found.offsets[value]
                after = at >= offset + layer.call.scratch_bytes
                assert after or at + value.type.bytes <= offset


def chain(*sizes: int, **more: object) -> Schedule:
    values = [tensor(f"v{k}", size) for k, size in enumerate(sizes)]
    steps = [(copy_call(b.type.bytes, **more), [a], [b]) for a, b in pairwise(values)]
    return schedule_of([values[0]], [values[-1]], steps)


@pytest.mark.parametrize(
    ("schedule", "arena"),
    [
        (chain(16), 16),
        (chain(5), 5),
        (chain(16, 16), 32),
        (chain(16, 16, in_place=(0,)), 16),
        (chain(16, 32, 16, in_place=(0,)), 48),
        (chain(100, 30), 32 + 100),
        (chain(30, 100), 32 + 100),
        (chain(100, 30, 100), 32 + 100),
        (chain(16, 16, 16, 16), 32),
        (chain(16, 16, scratch_bytes=64), 96),
        (chain(64, 16, 64, in_place=(0,)), 80),
    ],
)
def test_arena_of_chains(schedule: Schedule, arena: int) -> None:
    found = plan(schedule)
    assert found.arena_bytes == arena


@pytest.mark.parametrize(
    ("schedule", "arena"),
    [
        (chain(256, 256, overlap=32), 288),
        (chain(256, 256, 256, 256, overlap=16), 304),
        (chain(64, 256, overlap=200), 272),
        (chain(64, 256, overlap=-16), 256),
        (chain(256, 64, overlap=10), 272),
        (chain(256, 256, overlap=250), 512),
        (chain(256, 256, phase=8), 256),
        (chain(256, 256, scratch_bytes=64, phase=8), 320),
    ],
)
def test_arena_of_chains_that_follow_their_inputs(schedule: Schedule, arena: int) -> None:
    found = plan(schedule)
    assert_no_overlap(schedule, found)
    assert found.arena_bytes == arena
    assert found.live_bytes <= arena


def test_a_shift_by_whole_pixels_makes_room_for_a_larger_output() -> None:
    """The first tensor must lie low, under the input it follows, the second one high, over its
    own output: the layer between moves it, which neither in place nor apart from it could do."""
    x, a, b, y = tensor("x", 288), tensor("a", 192), tensor("b", 192), tensor("y", 384)
    steps = [
        (copy_call(1, overlap=16), [x], [a]),
        (copy_call(1, scratch_bytes=48, phase=8), [a], [b]),
        (copy_call(1, overlap=192), [b], [y]),
    ]
    assert plan(schedule_of([x], [y], steps)).arena_bytes == 384


def test_verify_refuses_an_output_too_close_behind_its_input() -> None:
    schedule = chain(64, 64, overlap=32)
    found = plan(schedule)
    x, y = schedule.graph.inputs[0], schedule.graph.outputs[0]
    closer = replace(found, offsets={x: 16, y: 0}, arena_bytes=96)
    with pytest.raises(OverlapError, match="overwritten"):
        verify_plan(schedule, closer)


def test_residual_keeps_the_shortcut() -> None:
    x, a, b, y = (tensor(name, 64) for name in "xaby")
    call = copy_call(64, in_place=(0,))
    found = plan(schedule_of([x], [y], [(call, [x], [a]), (call, [a], [b]), (call, [b, x], [y])]))
    # x is read at the end, so a cannot overlay it; b and y can overlay a.
    assert found.arena_bytes == 128
    assert found.overlays[0] is None
    assert found.overlays[1] is a


def residual_blocks(blocks: int, size: int, lead: int, scratch: int) -> Schedule:
    """Each: two layers whose results lie ``lead`` bytes before what they read, and a sum."""
    x = first = tensor("x", size)
    steps = []
    for k in range(blocks):
        a, b, y = (tensor(f"{name}{k}", size) for name in "aby")
        follows = copy_call(size, overlap=lead, scratch_bytes=scratch)
        total = copy_call(size, in_place=(0, 1))
        steps += [(follows, [x], [a]), (follows, [a], [b]), (total, [b, x], [y])]
        x = y
    return schedule_of([first], [x], steps)


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(("lead", "scratch"), [(544, 1536), (544, 2304), (32, 640), (1024, 4096)])
def test_residual_blocks_take_what_one_takes(blocks: int, lead: int, scratch: int) -> None:
    """Input, result and what is fullest beside them: not a third tensor, however many blocks."""
    schedule = residual_blocks(blocks, 16384, lead, scratch)
    found = plan(schedule)
    assert_no_overlap(schedule, found)
    assert found.live_bytes == 2 * 16384 + lead + scratch
    assert found.arena_bytes <= 1.02 * found.live_bytes


def test_alias_shares_memory_and_prolongs_its_life() -> None:
    x, flat, a, y = tensor("x", 4, 16), tensor("flat", 64), tensor("a", 64), tensor("y", 64)
    call = copy_call(64, in_place=(0,))
    schedule = schedule_of(
        [x], [y], [(alias_call(), [x], [flat]), (call, [x], [a]), (call, [a, flat], [y])]
    )
    found = plan(schedule)
    assert found.offsets[flat] == found.offsets[x]
    assert found.offsets[a] != found.offsets[x]


def test_in_place_waits_for_every_operand_in_the_buffer() -> None:
    """An operand that may not be overwritten shares the buffer of one that may."""
    x, flat, y = tensor("x", 64), tensor("flat", 4, 16), tensor("y", 64)
    steps = [(alias_call(), [x], [flat]), (copy_call(64, in_place=(0,)), [x, flat], [y])]
    found = plan(schedule_of([x], [y], steps))
    assert found.offsets[y] != found.offsets[x]


def test_outputs_survive() -> None:
    x, a, y = tensor("x", 32), tensor("a", 32), tensor("y", 32)
    call = copy_call(32, in_place=(0,))
    found = plan(schedule_of([x], [y, a], [(call, [x], [a]), (call, [a], [y])]))
    assert found.offsets[a] != found.offsets[y]


def test_plan_is_deterministic() -> None:
    sizes = [((k * 37) % 11 + 1) * 24 for k in range(60)]
    first, second = plan(chain(*sizes)), plan(chain(*sizes))
    assert list(first.offsets.values()) == list(second.offsets.values())


@pytest.mark.parametrize("move", [0, 16])
def test_verify_refuses_a_broken_plan(move: int) -> None:
    schedule = chain(32, 32, 32)
    found = plan(schedule)
    broken = replace(found, offsets=dict.fromkeys(found.offsets, move))
    with pytest.raises(OverlapError):
        verify_plan(schedule, replace(broken, arena_bytes=64))


def test_verify_refuses_scratch_over_an_operand() -> None:
    schedule = chain(32, 32, scratch_bytes=16)
    found = plan(schedule)
    with pytest.raises(OverlapError, match="overwritten"):
        verify_plan(schedule, replace(found, scratch=(found.offsets[schedule.graph.inputs[0]],)))


@st.composite
def networks(draw: st.DrawFn) -> Schedule:
    """A random network: any operands, in place or not, aliases, scratch, several outputs."""
    values = [tensor(f"x{k}", draw(st.integers(1, 200))) for k in range(draw(st.integers(1, 3)))]
    inputs = list(values)
    steps: list[tuple[KernelCall, list[Value], list[Value]]] = []
    for k in range(draw(st.integers(1, 14))):
        reads = draw(st.lists(st.sampled_from(values[-6:]), min_size=1, max_size=3))
        if draw(st.integers(0, 4)) == 0:
            result = [tensor(f"v{k}", reads[0].type.bytes)]
            steps.append((alias_call(), reads[:1], result))
        else:
            sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=2))
            if draw(st.booleans()):
                sizes[0] = reads[0].type.bytes
            result = [tensor(f"v{k}.{n}", size) for n, size in enumerate(sizes)]
            in_place = draw(st.sets(st.integers(0, len(reads) - 1)))
            scratch = draw(st.sampled_from([0, 0, 0, 1, 40, 128]))
            call = copy_call(
                1,
                in_place=tuple(sorted(in_place)),
                scratch_bytes=scratch,
                overlap=draw(st.sampled_from([None, None, -40, 0, 16, 50])),
                phase=draw(st.sampled_from([0, 0, 0, 8, 20])),
            )
            steps.append((call, reads, result))
        values += result
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
    return schedule_of(inputs, outputs, steps)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(networks())
def test_random_networks(schedule: Schedule) -> None:
    found = plan(schedule)
    assert_no_overlap(schedule, found)
    assert found.live_bytes <= found.arena_bytes
    for value, offset in found.offsets.items():
        assert offset % ALIGNMENT == 0
        assert 0 <= offset <= found.arena_bytes - value.type.bytes
