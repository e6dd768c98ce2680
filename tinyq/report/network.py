"""The report at the end of a compilation, from the manifest of the folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tinyq.report.formats import count, plural, shape, shortened, size

Manifest = Mapping[str, Any]
_NAME_WIDTH = 26
_BASES = {
    "accumulators": "proved",
    "pairs": "all pairs",
    "construction": "by construction",
    "samples": "by samples",
    "codes": "all inputs",
    "float32": "rounded once",
}


def exactness_text(exactness: Mapping[str, Any]) -> str:
    """One cell: what is proved of a layer."""
    if exactness["differing"]:
        return f"{count(exactness['differing'])} may differ by {exactness['max_abs']}"
    text = _BASES[exactness["basis"]]
    if exactness["fixes"]:
        text += f", {plural(exactness['fixes'], 'fix')}"
    if exactness.get("guarded"):
        text += ", guarded"
    if exactness.get("ambiguous"):
        text += f", {plural(exactness['ambiguous'], 'sum')} ambiguous"
    return text


def why(layer: Mapping[str, Any]) -> str:
    """Why the layer's kernel was chosen; refusals matter where only a portable one is left."""
    parts = [layer["reason"]] if layer["reason"] else []
    if layer["reason"] == "portable" and not layer["alternatives"]:
        parts += [f"{entry['kernel']}: {entry['reason']}" for entry in layer["refusals"]]
    if layer["alternatives"]:
        parts.append(f"best of {len(layer['alternatives']) + 1}")
    return "; ".join(parts)


def merged(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The layers with the stripes of each one as a single entry, in order of their first ones.

    Work is the sum, memory the most of any; what only moves rows counts with the layer that
    computes them.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        rows = layer.get("rows")
        groups.setdefault((rows["layer"] or rows["of"]) if rows else layer["name"], []).append(
            layer
        )
    return [_merged(name, parts) for name, parts in groups.items() if _has_code(parts)]


def _has_code(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is more to a group than views of an input of the network."""
    first = parts[0].get("rows")
    return not first or bool(first["layer"]) or any(part["function"] for part in parts)


def _merged(name: str, parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if len(parts) == 1 and not parts[0].get("rows"):
        return parts[0]
    computing = [p for p in parts if p["name"].startswith(f"{name}@") and p["macs"]] or [
        p for p in parts if p["op"] not in ("slice", "concat", "pack", "unpack")
    ]
    # A table whose results are packed is looked up as they are.
    computing = computing or [p for p in parts if p["op"] == "pack"] or [parts[0]]
    first = computing[0]
    rows = first.get("rows")
    stripes = f"in {len(computing)} stripes; " if len(computing) > 1 else ""
    return {
        **first,
        "name": name,
        "shape": rows["shape"] if rows else first["shape"],
        "macs": sum(part["macs"] for part in parts),
        "instructions": sum(part["instructions"] for part in parts),
        "live_bytes": max(part["live_bytes"] for part in parts),
        "reason": f"{stripes}{first['reason']}",
    }


def layer_table(manifest: Manifest) -> Table:
    """A row for every layer, and the totals."""
    layers = merged(manifest["layers"])
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("#", "", justify="right")
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("operator")
    table.add_column("output", overflow="fold")
    table.add_column("MACs", count(manifest["macs"]), justify="right")
    table.add_column("flash", count(manifest["constant_bytes"]), justify="right")
    table.add_column("arena", count(manifest["arena_bytes"]), justify="right")
    table.add_column("instructions", count(manifest["instructions"]), justify="right")
    table.add_column("kernel", overflow="fold")
    table.add_column("exactness", verdict(layers), overflow="fold")
    for layer in layers:
        exactness = layer["exactness"]
        table.add_row(
            str(layer["index"]),
            shortened(layer["name"], _NAME_WIDTH),
            layer["op"],
            shape(layer["shape"]),
            count(layer["macs"]),
            count(layer["constant_bytes"]),
            count(layer["live_bytes"]),
            count(layer["instructions"]),
            layer["kernel"],
            Text(exactness_text(exactness), style="" if exactness["exact"] else "bold red"),
        )
    return table


def verdict(layers: Iterable[Mapping[str, Any]]) -> str:
    """The network's exactness in a few words."""
    found = [layer["exactness"] for layer in layers]
    differing = sum(e["differing"] for e in found)
    if differing:
        return f"{count(differing)} may differ"
    fixes = sum(e["fixes"] for e in found)
    proved = all(e["basis"] not in ("samples", "float32") for e in found)
    known = "all exact" if proved else "all proved are exact"
    return f"{known}, {plural(fixes, 'fix')}" if fixes else known


def exactness_lines(manifest: Manifest) -> list[Text]:
    """What is proved of the whole network, and a warning where the proof fails."""
    layers = merged(manifest["layers"])
    proved = [e["exactness"] for e in layers if e["exactness"]["basis"] == "accumulators"]
    reachable = sum(e["reachable"] for e in proved)
    differing = sum(la["exactness"]["differing"] for la in layers)
    lines = []
    if reachable and not differing:
        lines.append(
            Text(
                f"Exact: the integers equal {manifest['oracle']}'s rule at every one of the "
                f"{count(reachable)} accumulators that the weights can reach"
                f"{_fixes(proved)}.",
                "green",
            )
        )
    if differing:
        names = ", ".join(la["name"] for la in layers if la["exactness"]["differing"])
        largest = max(la["exactness"]["max_abs"] for la in layers)
        lines.append(
            Text(
                f"Not exact: at {count(differing)} of {count(reachable)} reachable accumulators "
                f"and pairs the result may differ from {manifest['oracle']}'s, by {largest} at "
                f"most, in {names}.",
                "bold red",
            )
        )
    unproved = [la["name"] for la in layers if la["exactness"]["basis"] == "samples"]
    if unproved:
        names = ", ".join(map(shortened, unproved))
        lines.append(Text(f"Not proved, but verified on samples: {names}."))
    rounded = sum(la["exactness"]["basis"] == "float32" for la in layers)
    if rounded:
        lines.append(
            Text(
                f"{plural(rounded, 'layer')} with int16 tensors: the exact result, rounded once. "
                "onnxruntime computes them in float32 and may differ by one, where that falls "
                "within its error of a half."
            )
        )
    ambiguous = sum(la["exactness"].get("ambiguous", 0) for la in layers)
    if ambiguous:
        lines.append(
            Text(
                f"At {plural(ambiguous, 'sum')} of means the oracle's own float32 may round either "
                "way, by the order of its additions.",
                "yellow",
            )
        )
    return lines


def _fixes(proved: Sequence[Mapping[str, Any]]) -> str:
    fixes = sum(e["fixes"] for e in proved)
    return f", {fixes} of them corrected one by one" if fixes else ""


def kernel_lines(manifest: Manifest) -> list[str]:
    """Why each kernel was chosen: one line for the layers that share kernel and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in merged(manifest["layers"]):
        groups.setdefault((layer["kernel"], why(layer)), []).append(str(layer["index"]))
    return [
        f"kernel {kernel} (layer{'s' if len(indices) > 1 else ''} {', '.join(indices)}): {reason}"
        for (kernel, reason), indices in groups.items()
        if reason
    ]


def port_lines(manifest: Manifest) -> list[str]:
    """One line for every input and output: what the C code takes and gives."""
    lines = []
    for kind in ("inputs", "outputs"):
        for port in manifest[kind]:
            quant = ""
            if "scale" in port:
                quant = f", real = {port['scale']:.9g} * (integer - {port['zero_point']})"
            lines.append(
                f"{kind[:-1]:6} {port['name']}: {port['dtype']}[{shape(port['shape'])}]{quant}"
            )
    return lines


def _build(library: Mapping[str, Any]) -> str:
    sources = plural(len(library["sources"]), "source file")
    defines = ", ".join(library["defines"])
    return f"{sources}, built with {defines}" if defines else sources


def network_report(manifest: Manifest) -> RenderableType:
    """The whole report of a compiled folder."""
    totals = (
        f"{manifest['name']} for {manifest['target']} ({manifest['optimize']}): "
        f"{count(manifest['macs'])} MACs, {size(manifest['constant_bytes'])} of constants, "
        f"{size(manifest['arena_bytes'])} of arena, about {count(manifest['instructions'])} "
        "instructions an inference (an estimate; `tinyq verify` counts them)"
    )
    libraries = [
        Text(f"Calls {entry['name']} {entry['version']}: {_build(entry)}")
        for entry in manifest.get("libraries", ())
    ]
    notes = [Text(f"Note: {note}", "yellow") for note in manifest.get("notes", ())]
    return Group(
        layer_table(manifest),
        *(Text(line, "dim") for line in kernel_lines(manifest)),
        *(Text(line) for line in port_lines(manifest)),
        *libraries,
        *notes,
        *exactness_lines(manifest),
        Text(totals),
    )
