"""The order of layers where the graph branches: the one with the least peak of memory.

The search goes level by level over the sets of executed layers, keeping for each set the order with
the lowest peak. Where no level has more than ``_WIDTH`` sets it is exact; beyond that the sets with
the lowest peaks are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinyq.ir import Value
from tinyq.plan.placement import aligned
from tinyq.select import Layer, Schedule

_WIDTH = 256
"""Sets of executed layers that are kept at every level."""


@dataclass(frozen=True, eq=False)
class _State:
    """Layers executed so far, in order: the peak until here, and what is in use now."""

    order: tuple[int, ...]
    done: frozenset[int]
    peak: int
    used: int


def order_layers(schedule: Schedule) -> Schedule:
    """The schedule in the order of the least estimated peak; the same object when none is less.

    The estimate counts what is in use at each layer, its scratch included, and an operand that ends
    there once where the kernel may write over it.
    """
    layers = schedule.layers
    if len(layers) < 3 or not _branches(schedule):
        return schedule
    search = _Search(schedule)
    best = search.run()
    if best.peak >= search.peak(tuple(range(len(layers)))):
        return schedule
    moved = tuple(replace(layers[k], index=n) for n, k in enumerate(best.order))
    graph = schedule.graph.replace(tuple(layer.node for layer in moved))
    return replace(schedule, graph=graph, layers=moved)


def _branches(schedule: Schedule) -> bool:
    """Whether some layer does not read what the one before it has computed."""
    layers = schedule.layers
    return any(
        not set(layers[k].inputs) & set(layers[k - 1].outputs) for k in range(1, len(layers))
    )


class _Search:
    def __init__(self, schedule: Schedule) -> None:
        self.layers = schedule.layers
        self.maker: dict[Value, int] = {}
        self.readers: dict[Value, set[int]] = {}
        self.root: dict[Value, Value] = {}
        for layer in self.layers:
            shared = layer.call.alias and layer.inputs
            for value in layer.outputs:
                self.maker[value] = layer.index
                self.root[value] = self._of(layer.inputs[0]) if shared else value
            if not shared:
                for value in layer.inputs:
                    self.readers.setdefault(self._of(value), set()).add(layer.index)
            else:
                self.readers.setdefault(self._of(layer.inputs[0]), set()).add(layer.index)
        self.kept = {self._of(v) for v in schedule.graph.outputs if not v.is_constant}
        self.start = sum(aligned(v.type.bytes) for v in schedule.graph.inputs)
        self.needs = [
            frozenset(self.maker[v] for v in la.inputs if v in self.maker) for la in self.layers
        ]

    def _of(self, value: Value) -> Value:
        return self.root.get(value, value)

    def run(self) -> _State:
        """The best order."""
        level = {frozenset[int](): _State((), frozenset(), self.start, self.start)}
        for _ in self.layers:
            following: dict[frozenset[int], _State] = {}
            for state in level.values():
                for layer in self.layers:
                    k = layer.index
                    if k in state.done or not self.needs[k] <= state.done:
                        continue
                    reached = self.step(state, layer)
                    known = following.get(reached.done)
                    if known is None or self._rank(reached) < self._rank(known):
                        following[reached.done] = reached
            level = dict(sorted(following.items(), key=lambda kv: self._rank(kv[1]))[:_WIDTH])
        return min(level.values(), key=self._rank)

    @staticmethod
    def _rank(state: _State) -> tuple[int, int, tuple[int, ...]]:
        return state.peak, state.used, state.order

    def peak(self, order: tuple[int, ...]) -> int:
        """The estimate for one order."""
        state = _State((), frozenset(), self.start, self.start)
        for k in order:
            state = self.step(state, self.layers[k])
        return state.peak

    def step(self, state: _State, layer: Layer) -> _State:
        """Execute one more layer."""
        done = state.done | {layer.index}
        call = layer.call
        ended = [
            root for root in dict.fromkeys(self._of(v) for v in layer.inputs)
            if root not in self.kept and self.readers.get(root, set()) <= done
        ]  # fmt: skip
        freed = sum(aligned(root.type.bytes) for root in ended)
        new = [v for v in layer.outputs if self._of(v) is v]
        made = sum(aligned(v.type.bytes) for v in new)
        # A result that nothing reads is needed while it is written.
        unread = [v for v in new if v not in self.kept and not self.readers.get(v)]
        peak = state.used + made + aligned(call.scratch_bytes) - self._saved(layer, ended)
        used = state.used + made - freed - sum(aligned(v.type.bytes) for v in unread)
        return _State((*state.order, layer.index), done, max(state.peak, peak), used)

    def _saved(self, layer: Layer, ended: list[Value]) -> int:
        """Bytes of the result that may lie over an operand that ends here."""
        call, result = layer.call, layer.outputs[0].type.bytes
        saved = 0
        for k, value in enumerate(layer.inputs):
            if self._of(value) not in ended:
                continue
            size = value.type.bytes
            if (k in call.in_place and result <= size) or (k == 0 and call.phase):
                saved = max(saved, min(result, size))
            elif k == 0 and call.overlap is not None:
                saved = max(saved, result + size - max(result, size + max(call.overlap, 0)))
        return saved // 16 * 16
