"""Charts of a compiled network by matplotlib, as SVG that can stand in a page."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import numpy as np

from tinyq.ir import Graph, Node
from tinyq.ops.packed import encoding_of
from tinyq.report.formats import count, shape, shortened
from tinyq.verification.profile import Profile

P = ParamSpec("P")

_WIDTH = 11.0
_ROW = 0.24
MOST_LAYERS_OF_WEIGHTS = 24
_KINDS = {
    "input": "#4c78a8", "output": "#54a24b", "tensor": "#9ecae9", "scratch": "#f2cf5b",
}  # fmt: skip
_PALETTE = (
    "#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d",
    "#ff9da6", "#bab0ac",
)  # fmt: skip


def _plain(draw: Callable[P, str]) -> Callable[P, str]:
    """A chart whose texts are plain: a dollar in a layer's name begins no formula."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib as mpl

        with mpl.rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawn


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a distinct name, in order of appearance."""
    distinct = list(dict.fromkeys(names))
    return {name: _PALETTE[k % len(_PALETTE)] for k, name in enumerate(distinct)}


@_plain
def network_chart(graph: Graph, manifest: Mapping[str, Any]) -> str:
    """The layers from top to bottom with their kernels; arrows are tensors, with their shapes."""
    from matplotlib.patches import FancyBboxPatch

    entries = {layer["name"]: layer for layer in manifest["layers"]}
    ranks = _ranks(graph)
    rows: dict[int, list[str]] = {}
    for name, rank in ranks.items():
        rows.setdefault(rank, []).append(name)
    widest = max(map(len, rows.values()))
    place = {
        name: ((k - (len(names) - 1) / 2), -rank)
        for rank, names in rows.items()
        for k, name in enumerate(names)
    }
    figure = _figure(max(7.0, 3.4 * widest), 0.62 * len(rows) + 0.3)
    axes = figure.add_axes((0, 0, 1, 1))
    colour = colours([node.op for node in graph.nodes])
    wide, high = 0.9, 0.6
    for node in graph.nodes:
        x, y = place[node.name]
        entry = entries.get(node.name)
        axes.add_patch(
            FancyBboxPatch(
                (x - wide / 2, y - high / 2), wide, high, boxstyle="round,pad=0,rounding_size=0.08",
                mutation_aspect=0.5, facecolor=colour[node.op], edgecolor="none", alpha=0.35,
            )
        )  # fmt: skip
        title = f"{entry['index'] if entry else ''} {node.op}  {shape(node.output.type.shape)}"
        axes.text(x, y + 0.1, title, ha="center", va="center", fontsize=8.5, weight="bold")
        below = entry["kernel"] if entry else ""
        axes.text(x, y - 0.14, below, ha="center", va="center", fontsize=7, color="0.3")
        for value in node.present_inputs:
            producer = graph.producers.get(value)
            if producer is not None:
                _arrow(axes, place[producer.name], (x, y), high)
    axes.set_xlim(-widest / 2, widest / 2)
    axes.set_ylim(-len(rows) + 0.5, 0.5)
    axes.axis("off")
    return _svg(figure)


def _ranks(graph: Graph) -> dict[str, int]:
    """The longest way from an input to every node."""
    ranks: dict[str, int] = {}
    for node in graph.nodes:
        before = [graph.producers.get(value) for value in node.present_inputs]
        ranks[node.name] = max((ranks[p.name] + 1 for p in before if p is not None), default=0)
    return ranks


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], high: float) -> None:
    skips = start[1] - end[1] > 1
    bend = 0.35 if skips else 0.0
    axes.annotate(
        "", (end[0] + (0.4 if skips else 0), end[1] + high / 2),
        (start[0] + (0.4 if skips else 0), start[1] - high / 2),
        arrowprops={
            "arrowstyle": "-|>", "color": "0.45", "linewidth": 0.9,
            "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0,
        },
    )  # fmt: skip


@_plain
def memory_chart(manifest: Mapping[str, Any]) -> str:
    """The arena over time: a rectangle a buffer, over the layers during which it is needed."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    layers, buffers = manifest["layers"], manifest["buffers"]
    arena = manifest["arena_bytes"]
    figure = _figure(_WIDTH, 4.6)
    axes = figure.add_subplot()
    for buffer in buffers:
        if not buffer["bytes"]:
            continue
        across = buffer["last"] - buffer["first"] + 1
        axes.add_patch(
            Rectangle(
                (buffer["first"] - 0.5, buffer["offset"]), across, buffer["bytes"], alpha=0.75,
                facecolor=_KINDS[buffer["kind"]], edgecolor="white", linewidth=0.8,
            )
        )  # fmt: skip
        if buffer["bytes"] > arena / 14 and across * len(buffer["name"]) and len(layers) <= 40:
            axes.text(
                buffer["first"] - 0.5 + across / 2, buffer["offset"] + buffer["bytes"] / 2,
                count(buffer["bytes"]), ha="center", va="center", fontsize=6.5, rotation=90,
            )  # fmt: skip
    live = [layer["live_bytes"] for layer in layers]
    axes.step(range(len(layers)), live, where="mid", color="#e45756", linewidth=1.2)
    axes.axhline(arena, color="0.2", linewidth=1)
    axes.text(
        len(layers) + 0.4, arena, f"arena {count(arena)} B", ha="right", va="bottom", fontsize=8
    )
    axes.set_xlim(-1.5, len(layers) + 0.5)
    axes.set_ylim(0, arena * 1.1)
    axes.set_xlabel("layer")
    axes.set_ylabel("bytes of the arena")
    axes.xaxis.get_major_locator().set_params(integer=True)
    shown = [k for k in _KINDS if any(b["kind"] == k for b in buffers)]
    handles: list[Any] = [Patch(color=_KINDS[kind], label=kind) for kind in shown]
    handles.append(Line2D([], [], color="#e45756", label="in use"))
    axes.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=8, frameon=False)
    return _svg(figure)


@_plain
def time_chart(profile: Profile) -> str:
    """Cycles (or instructions, where cycles are not known) of every layer."""
    cycles = all(layer.cycles is not None for layer in profile.layers)
    amounts = [
        layer.cycles if cycles and layer.cycles is not None else layer.instructions
        for layer in profile.layers
    ]
    labels = [f"{layer.index} {shortened(layer.name, 28)}" for layer in profile.layers]
    kinds = [layer.op for layer in profile.layers]
    return _bars(labels, amounts, kinds, "estimated cycles" if cycles else "instructions")


@_plain
def flash_chart(manifest: Mapping[str, Any], graph: Graph) -> str:
    """Constants of every layer, coloured by how its weights are stored."""
    stored = _stored(manifest, graph)
    layers = [layer for layer in manifest["layers"] if layer["constant_bytes"]]
    labels = [f"{layer['index']} {shortened(layer['name'], 28)}" for layer in layers]
    amounts = [layer["constant_bytes"] for layer in layers]
    kinds = [stored.get(layer["name"], "tables") for layer in layers]
    return _bars(labels, amounts, kinds, "bytes of constants")


def _stored(manifest: Mapping[str, Any], graph: Graph) -> dict[str, str]:
    """The encoding in which each layer's kernel keeps its weights."""
    kernels = {layer["name"]: layer["kernel"] for layer in manifest["layers"]}
    found = {}
    for node in _with_weights(graph):
        weights = node.input(1)
        encoding = encoding_of(weights)
        packed = any(part in kernels.get(node.name, "") for part in ("packed", "sums"))
        whole = weights.type.dtype.value
        found[node.name] = encoding.name if encoding is not None and packed else whole
    return found


@_plain
def weights_chart(graph: Graph) -> str:
    """How often the weights of each layer take each integer, and the levels that they have."""
    nodes = _with_weights(graph)
    if not nodes:
        return ""
    largest = sorted(nodes, key=lambda node: -node.input(1).type.elements)
    chosen = {node.name for node in largest[:MOST_LAYERS_OF_WEIGHTS]}
    nodes = [node for node in nodes if node.name in chosen]
    columns = min(4, len(nodes))
    rows = -(-len(nodes) // columns)
    figure = _figure(_WIDTH, 1.75 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(nodes) :]:
        axes.axis("off")
    for axes, node in zip(panels, nodes, strict=False):
        weights = node.input(1)
        values, times = np.unique(weights.array, return_counts=True)
        axes.bar(values, times, width=1.0, color=_PALETTE[0])
        encoding = encoding_of(weights)
        name = weights.type.dtype.value
        if encoding is not None:
            name = encoding.name
            levels = sorted(set(encoding.levels))
            axes.plot(levels, np.zeros(len(levels)), "|", color=_PALETTE[3], markersize=9)
        axes.set_yscale("symlog")
        axes.set_title(f"{shortened(node.name, 24)}: {name}", fontsize=7.5)
        axes.tick_params(labelsize=6)
    return _svg(figure)


def _with_weights(graph: Graph) -> list[Node]:
    """Convolutions and dense layers, whose second input is constant."""
    return [n for n in graph.nodes if n.op in ("conv2d", "dense") and n.input(1).is_constant]


def _bars(labels: list[str], amounts: list[int], kinds: list[str], axis: str) -> str:
    from matplotlib.patches import Patch

    figure = _figure(_WIDTH, max(1.6, _ROW * len(labels) + 0.9))
    axes = figure.add_subplot()
    colour = colours(kinds)
    at = range(len(labels))
    axes.barh(at, amounts, color=[colour[kind] for kind in kinds], height=0.75)
    largest = max([*amounts, 1])
    for k, amount in enumerate(amounts):
        axes.text(amount + largest / 150, k, count(amount), va="center", fontsize=7)
    axes.set_yticks(at, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.1)
    axes.set_xlabel(axis, fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    handles = [Patch(color=c, label=name) for name, c in colour.items()]
    axes.legend(handles=handles, loc="lower right", fontsize=7, frameon=False)
    return _svg(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=None if width < _WIDTH else "constrained")


def _svg(figure: Any) -> str:
    """The figure as an SVG element; text stays text."""
    import matplotlib as mpl

    stream = io.StringIO()
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tinyq"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
