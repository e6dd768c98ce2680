"""How the weights of each layer can be stored below eight bits, for `tinyq inspect`."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.table import Table

from tinyq.ir import Graph
from tinyq.ops.packed import encoding_of
from tinyq.report.formats import count, shape

_WITH_WEIGHTS = ("conv2d", "dense")


@dataclass(frozen=True)
class LayerEncoding:
    """The weights of a layer: their shape, what they take as they are, and packed.

    ``encoding`` is ``int8`` or ``int16`` where packing would not help. Bytes count the codes, and
    the level of every code.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    stored_bytes: int
    packed_bytes: int


def layer_encodings(graph: Graph) -> tuple[LayerEncoding, ...]:
    """Every convolution and dense layer of an integer graph, in order."""
    found = []
    for node in graph.nodes:
        if node.op not in _WITH_WEIGHTS:
            continue
        weights = node.input(1)
        encoding = encoding_of(weights)
        stored = int(weights.array.nbytes)
        name, taken = weights.type.dtype.value, stored
        if encoding is not None:
            name = encoding.name
            taken = encoding.packed_bytes(weights.type.elements) + len(encoding.levels)
        found.append(LayerEncoding(node.name, weights.type.shape, name, stored, taken))
    return tuple(found)


def encoding_table(layers: tuple[LayerEncoding, ...]) -> Table:
    """A row a layer, and the totals."""
    stored, packed = (
        sum(getattr(la, part) for la in layers) for part in ("stored_bytes", "packed_bytes")
    )
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("layer", "total", overflow="fold")
    table.add_column("weights")
    table.add_column("encoding")
    table.add_column("bytes", count(stored), justify="right")
    table.add_column("packed", count(packed), justify="right")
    table.add_column("saved", _saved(stored, packed), justify="right")
    for la in layers:
        saved = _saved(la.stored_bytes, la.packed_bytes)
        table.add_row(
            la.name, shape(la.shape), la.encoding, count(la.stored_bytes),
            count(la.packed_bytes), saved,
        )  # fmt: skip
    return table


def _saved(stored: int, packed: int) -> str:
    return f"{100 * (stored - packed) / max(stored, 1):.0f}%"
