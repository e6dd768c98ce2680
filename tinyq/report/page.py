"""A verified network as one self-contained HTML page, without scripts and without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyq.errors import error
from tinyq.ir import Graph
from tinyq.report import charts
from tinyq.report.encodings import layer_encodings
from tinyq.report.formats import count, plural, shape, share, size
from tinyq.report.network import exactness_lines, exactness_text, port_lines
from tinyq.report.profile import cycles_text, hot_spots
from tinyq.report.verification import histogram_text
from tinyq.resources import data_dir
from tinyq.verification.profile import Profile
from tinyq.verification.report import LayerReport, VerifyReport


@dataclass(frozen=True)
class _Column:
    name: str
    kind: str = ""


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    bad: bool = False


@dataclass(frozen=True)
class _Section:
    id: str
    title: str
    text: str
    chart: str = ""
    columns: tuple[_Column, ...] = ()
    rows: tuple[_Row, ...] = ()


@dataclass(frozen=True)
class _Tile:
    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class Page:
    """What a page is about: a folder's manifest and graph, its verification and its profile.

    The verification has its layers.
    """

    manifest: Mapping[str, Any]
    graph: Graph
    verification: VerifyReport
    profile: Profile


def require_charts() -> None:
    """Raises TQ610 without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise error("TQ610", "the report's charts cannot be drawn")


def page(subject: Page) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(data_dir("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
    )
    manifest, report = subject.manifest, subject.verification
    return environment.get_template("report/report.html.j2").render(
        title=f"{manifest['name']} on {report.target}",
        subtitle=f"{manifest['model']}, optimised for {manifest['optimize']}; "
        + "; ".join(" ".join(line.split()) for line in port_lines(manifest)),
        equal=report.equal,
        verdict=_verdict(report),
        tiles=_tiles(subject),
        sections=[
            _network(subject), _exactness(subject), _time(subject), _memory(subject),
            _flash(subject), _weights(subject),
        ],
        footer=f"Made by tinyq. {report.emulator} on {report.host}; {cycles_text(subject.profile)}",
    )  # fmt: skip


def _verdict(report: VerifyReport) -> str:
    over = f"{count(report.outputs_compared)} output integers of {plural(report.samples, 'sample')}"
    if report.equal:
        return (
            f"Equal: {report.oracle}, the integer reference and the C on {report.emulator} agree "
            f"on all {over} ({report.sample_source}), and on every layer."
        )
    return (
        f"Different: {count(report.outputs_different)} of {over} ({report.sample_source}) differ, "
        f"by {report.max_difference} at most, or a layer does; see below."
    )


def _tiles(subject: Page) -> list[_Tile]:
    report, profile = subject.verification, subject.profile
    tiles = [
        _Tile("instructions an inference", count(profile.instructions), "counted"),
        _Tile("MACs", count(profile.macs), _per_mac(profile)),
    ]
    if profile.cycles is not None:
        note = "estimate"
        if profile.milliseconds is not None:
            note = f"estimate; {profile.milliseconds:.3g} ms at {profile.clock_hz / 1e6:g} MHz"
        tiles.append(_Tile("cycles", count(profile.cycles), note))
    code, constants = profile.code_bytes, profile.flash_bytes - profile.code_bytes
    tiles += [
        _Tile(
            "flash", size(profile.flash_bytes), f"code {count(code)}, constants {count(constants)}"
        ),
        _Tile(
            "RAM", size(profile.arena_bytes + profile.stack_bytes),
            f"arena {count(profile.arena_bytes)}, stack {count(profile.stack_bytes)}",
        ),
    ]  # fmt: skip
    if report.accuracy is not None and report.oracle_accuracy is not None:
        note = f"{report.oracle}: {report.oracle_accuracy:.2%}"
        tiles.append(_Tile("accuracy", f"{report.accuracy:.2%}", note))
    return tiles


def _per_mac(profile: Profile) -> str:
    each = profile.instructions_per_mac
    return "" if each is None else f"{each:.2f} instructions each"


def _network(subject: Page) -> _Section:
    return _Section(
        "network",
        "The network",
        "Layers in the order of their data, the kernel of each below its name.",
        charts.network_chart(subject.graph, subject.manifest),
    )


def _exactness(subject: Page) -> _Section:
    report, manifest = subject.verification, subject.manifest
    proofs = {layer["name"]: layer["exactness"] for layer in manifest["layers"]}
    pairs = "; ".join(
        f"{c.expected} and {c.got}: "
        + (f"{count(c.different)} differ ({histogram_text(c)})" if c.different else "equal")
        for c in report.comparisons
    )
    proved = " ".join(line.plain for line in exactness_lines(manifest))
    columns = (
        _Column("#", "number"), _Column("layer", "name"), _Column("operator"), _Column("proof"),
        _Column("elements", "number"), _Column("C and reference differ", "number"),
        _Column("reference and oracle differ", "number"),
    )  # fmt: skip
    rows = tuple(_compared(layer, proofs[layer.name]) for layer in report.layers)
    return _Section("exactness", "Exactness", f"{proved} {pairs}.", "", columns, rows)


def _compared(layer: LayerReport, proof: Mapping[str, Any]) -> _Row:
    bad = bool(layer.different or layer.oracle_different) or not proof["exact"]
    cells = (
        str(layer.index), layer.name, layer.op, exactness_text(proof), count(layer.elements),
        count(layer.different), count(layer.oracle_different),
    )  # fmt: skip
    return _Row(cells, bad)


def _time(subject: Page) -> _Section:
    profile = subject.profile
    columns = (
        _Column("#", "number"), _Column("layer", "name"), _Column("kernel"), _Column("output"),
        _Column("MACs", "number"), _Column("instructions", "number"), _Column("cycles", "number"),
        _Column("share", "number"),
    )  # fmt: skip
    shapes = {layer["name"]: layer["shape"] for layer in subject.manifest["layers"]}
    rows = tuple(
        _Row(
            (
                str(x.index), x.name, x.kernel, shape(shapes[x.name]), count(x.macs),
                count(x.instructions), count(x.cycles), share(x.instructions, profile.instructions),
            )
        )
        for x in profile.layers
    )  # fmt: skip
    return _Section(
        "time", "Time by layer", hot_spots(profile), charts.time_chart(profile), columns, rows
    )


def _memory(subject: Page) -> _Section:
    manifest = subject.manifest
    apart = sum(b["bytes"] for b in manifest["buffers"])
    text = (
        f"The arena has {count(manifest['arena_bytes'])} bytes ({manifest['arena_method']}); no "
        f"placement of these buffers has fewer than {count(manifest['arena_lower_bound'])}. Apart "
        f"they would take {count(apart)}. "
        "Where rectangles overlap, a kernel writes over what it has read."
    )
    return _Section("memory", "Memory over time", text, charts.memory_chart(manifest))


def _flash(subject: Page) -> _Section:
    profile = subject.profile
    text = (
        f"{count(profile.flash_bytes)} bytes in all: {count(profile.code_bytes)} of code, the rest "
        "constants, here by layer and by how the weights are stored."
    )
    chart = charts.flash_chart(subject.manifest, subject.graph)
    return _Section("flash", "Flash by layer", text, chart)


def _weights(subject: Page) -> _Section:
    layers = layer_encodings(subject.graph)
    columns = (
        _Column("layer", "name"), _Column("weights"), _Column("narrowest encoding"),
        _Column("bytes", "number"), _Column("packed", "number"),
    )  # fmt: skip
    rows = tuple(
        _Row((x.name, shape(x.shape), x.encoding, count(x.stored_bytes), count(x.packed_bytes)))
        for x in layers
    )
    text = "How often the weights take each integer; red marks are the levels of their encoding."
    if len(layers) > charts.MOST_LAYERS_OF_WEIGHTS:
        text += f" Drawn are the {charts.MOST_LAYERS_OF_WEIGHTS} largest layers."
    chart = charts.weights_chart(subject.graph)
    return _Section("weights", "Weights", text, chart, columns, rows)
