"""tinyq's kernels beside CMSIS-NN's functions: every layer of the networks, on every core."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.measure import CORES, NETWORKS, Figures, LayerFigures, measure
from bench.tables import table

RECORDED = Path(__file__).with_name("beside.json")

KINDS = {
    "cmsis_convolve_s8": "convolution",
    "cmsis_depthwise_s8": "depthwise",
    "cmsis_add_s8": "sum",
    "cmsis_avgpool_s8": "mean",
    "cmsis_dense_s8": "dense",
    "cmsis_softmax_s8": "softmax",
}


@dataclass(frozen=True)
class Pair:
    """Instructions of one layer on one core, by tinyq's kernel and by CMSIS-NN's function."""

    network: str
    core: str
    goal: str
    kind: str
    macs: int
    kernel: str
    ours: int
    theirs: int

    @property
    def ratio(self) -> float:
        """Above 1 where tinyq takes more."""
        return self.ours / self.theirs


@dataclass(frozen=True)
class Kind:
    """All layers of one kind of a network on a core; ``worst`` is the largest ratio of a layer."""

    network: str
    core: str
    kind: str
    layers: int
    macs: int
    ours: int
    theirs: int
    worst: float

    @property
    def ratio(self) -> float:
        """Above 1 where tinyq takes more."""
        return self.ours / self.theirs


def library_layers(network: str, core: str) -> Figures:
    """The network on CMSIS-NN's functions; raises what building with the library raises.

    The library's softmax has an arithmetic of its own, so that it is measured under its own oracle;
    elsewhere both sides compute under onnxruntime's.
    """
    found = measure(network, core, "speed", layers=True, kernels="cmsis-nn", cycles=True)
    if all(layer.op != "softmax" for layer in found.layers):
        return found
    own = measure(network, core, "speed", layers=True, kernels="cmsis-nn", oracle="cmsis-nn")
    softmax = tuple(layer for layer in own.layers if layer.op == "softmax")
    others = tuple(layer for layer in found.layers if layer.op != "softmax")
    return Figures(**{**_fields(found), "layers": (*others, *softmax)})


def _fields(figures: Figures) -> dict[str, Any]:
    return {name: getattr(figures, name) for name in Figures.__dataclass_fields__}


def pairs(ours: Iterable[Figures], theirs: Sequence[Figures]) -> list[Pair]:
    """Layers that a function of the library computes, beside the kernel that tinyq takes."""
    found = []
    for mine in ours:
        for other in theirs:
            if (mine.network, mine.core) == (other.network, other.core):
                found += [
                    Pair(
                        mine.network, mine.core, mine.goal, KINDS[layer.kernel], layer.macs,
                        own.kernel, own.instructions, layer.instructions,
                    )
                    for layer, own in _paired(other.layers, mine.layers)
                ]  # fmt: skip
    return found


def _paired(
    theirs: Iterable[LayerFigures], ours: Iterable[LayerFigures]
) -> list[tuple[LayerFigures, LayerFigures]]:
    mine = {layer.name: layer for layer in ours}
    return [(layer, mine[layer.name]) for layer in theirs if layer.kernel.startswith("cmsis_")]


def slower(found: Iterable[Pair]) -> list[str]:
    """Layers that take more instructions than the library's function, in words.

    The other goals weigh flash against time: what counts is the goal speed.
    """
    return [
        f"{p.network} {p.core}: {p.kind} by {p.kernel}: {p.ours:,}, CMSIS-NN {p.theirs:,}"
        for p in found
        if p.goal == "speed" and p.ours > p.theirs
    ]


def kinds(found: Iterable[Pair]) -> list[Kind]:
    """Sums over the layers of one kind, for the goal speed."""
    groups: dict[tuple[str, str, str], list[Pair]] = defaultdict(list)
    for p in found:
        if p.goal == "speed":
            groups[p.network, p.core, p.kind].append(p)
    return [
        Kind(
            *key, len(group), sum(p.macs for p in group), sum(p.ours for p in group),
            sum(p.theirs for p in group), round(max(p.ratio for p in group), 3),
        )
        for key, group in groups.items()
    ]  # fmt: skip


def layer_table(found: Iterable[Pair]) -> list[str]:
    """Every layer."""
    head = ("network", "core", "for", "layer", "MACs", "kernel", "tinyq", "CMSIS-NN", "ratio")
    rows = [
        (
            p.network, p.core, p.goal, p.kind, p.macs, p.kernel, p.ours, p.theirs, f"{p.ratio:.2f}",
        )
        for p in found
    ]  # fmt: skip
    return table(head, rows)


def kind_table(found: Sequence[Kind]) -> list[str]:
    """Instructions by kind of layer, a column a core, and each core's worst single layer."""
    by_key = {(k.network, k.kind, k.core): k for k in found}
    cores = [core for core in CORES if any(k.core == core for k in found)]
    rows: list[tuple[object, ...]] = []
    for network in NETWORKS:
        for kind in KINDS.values():
            row = [by_key.get((network, kind, core)) for core in cores]
            first = next((k for k in row if k), None)
            if first:
                cells = (f"{k.ours:,} ({k.ratio:.2f})" if k else "-" for k in row)
                rows.append((network, kind, first.layers, first.macs or "-", *cells))
    worst = [max((k.worst for k in found if k.core == core), default=0.0) for core in cores]
    rows.append(("", "worst single layer", "", "", *(f"{ratio:.2f}" for ratio in worst)))
    return table(("network", "kind", "layers", "MACs", *cores), rows)


def record(found: Sequence[Kind]) -> None:
    """Add or replace these sums in the recorded file."""
    kept = {(k.network, k.core, k.kind): k for k in [*read(), *found]}
    rows = [json.dumps(asdict(kept[key])) for key in sorted(kept)]
    RECORDED.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def read() -> list[Kind]:
    """The recorded sums, empty when there are none."""
    if not RECORDED.is_file():
        return []
    return [Kind(**row) for row in json.loads(RECORDED.read_text(encoding="utf-8"))]
