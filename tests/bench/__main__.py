"""`make bench`: measures every network on every core and compares with what others reached.

    make bench ARGS="--record --cores cortex-m4 --networks kws --goals speed --out out/bench"

Writes a table (bench.md) and bench.json. ``--record`` makes the figures the ones that `make check`
compares with. With CMSIS_NN_DIR set, the same networks also run on CMSIS-NN's functions; a layer
that takes more instructions than theirs for the goal speed is then a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench import beside
from bench.measure import (
    BOARDS,
    CORES,
    GOALS,
    MODELS,
    NETWORKS,
    RECORDED,
    REFERENCE,
    Figures,
    as_json,
    compiler,
    key_of,
    measure,
    read_recorded,
    worse,
)  # fmt: skip
from bench.tables import table

from tinyq.errors import TinyqError


def main() -> int:
    """Run; the exit status is 1 for a worse figure, a wrong output or a layer above CMSIS-NN's."""
    arguments = _arguments()
    if not MODELS.is_dir():
        print(f"no models in {MODELS}", file=sys.stderr)
        return 2
    library = bool(os.environ.get("CMSIS_NN_DIR"))
    figures: list[Figures] = []
    theirs: list[Figures] = []
    for core in arguments.cores:
        for network in arguments.networks:
            for goal in arguments.goals:
                print(f"{network} on {core} for {goal}", file=sys.stderr)
                layers = goal != "size"
                figures.append(measure(network, core, goal, layers=layers, cycles=True))
            if library:
                theirs += _with_library(network, core)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pairs = beside.pairs((f for f in figures if f.layers), theirs)
    text = report(figures, pairs)
    if library:
        text += "\n".join(_beside_boards(arguments.cores))
    (arguments.out / "bench.md").write_text(text, encoding="utf-8")
    found = {**as_json(figures), "cmsis_nn": as_json(theirs)["figures"]}
    (arguments.out / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)
    if arguments.record:
        record(figures)
        beside.record(beside.kinds(pairs))
    return _verdict(figures, beside.slower(pairs))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--cores", nargs="+", choices=CORES, default=list(CORES))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--goals", nargs="+", choices=GOALS, default=list(GOALS))
    return parser.parse_args()


def _with_library(network: str, core: str) -> list[Figures]:
    try:
        return [beside.library_layers(network, core)]
    except TinyqError as problem:
        print(f"CMSIS-NN: {network} on {core}: {problem}", file=sys.stderr)
        return []


def record(figures: list[Figures]) -> None:
    """Add or replace these figures in the recorded file."""
    old = read_recorded()
    kept: dict[str, Any] = dict(old["figures"]) if old["compiler"] == compiler() else {}  # type: ignore[call-overload]
    kept |= {key_of(f.network, f.core, f.goal): f.compared for f in figures}
    found = {"compiler": compiler(), "figures": dict(sorted(kept.items()))}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _verdict(figures: list[Figures], problems: list[str]) -> int:
    recorded: Any = read_recorded()
    problems = problems + [
        f"{key_of(f.network, f.core, f.goal)}: wrong" for f in figures if not f.equal
    ]
    if recorded["compiler"] == compiler():
        for f in figures:
            before = recorded["figures"].get(key_of(f.network, f.core, f.goal))
            problems += worse(f, before) if before else []
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


def report(figures: list[Figures], pairs: list[beside.Pair]) -> str:
    """The tables, as Markdown."""
    parts = ["# Measurements", "", f"arm-none-eabi-gcc {compiler()}, QEMU, one inference.", ""]
    parts += _totals(figures) + _against(figures) + _library(pairs)
    for f in figures:
        if f.core == "cortex-m4" and f.layers:
            parts += _layers(f)
    return "\n".join(parts) + "\n"


def _totals(figures: list[Figures]) -> list[str]:
    head = (
        "network", "core", "for", "instructions", "per MAC", "cycles", "code", "constants",
        "flash", "arena", "least arena", "stack", "equal",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (
            f.network, f.core, f.goal, f.instructions, f"{f.instructions / f.macs:.2f}",
            f.cycles or "-", f.code, f.constants, f.flash, f.arena, f.arena_bound, f.stack,
            "yes" if f.equal else "NO",
        )
        for f in figures
    ]  # fmt: skip
    return ["## Every network on every core", "", *table(head, rows)]


def _against(figures: list[Figures]) -> list[str]:
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    rows: list[tuple[object, ...]] = []
    for f in figures:
        if f.core != reference["core"]:
            continue
        entry = reference["networks"][f.network]
        for what, other in entry["tflm"].items():
            if what not in f.compared:
                continue
            now, target = f.compared[what], entry["target"][what]
            library = entry["cmsis_nn"].get(what, other)
            rows.append(
                (
                    f.network, f.goal, what, now, other, f"{now / other:.2f}", library,
                    f"{now / library:.2f}", target, "yes" if now <= target else "no",
                )
            )  # fmt: skip
    head = (
        "network", "for", "figure", "tinyq", "TFLM + CMSIS-NN", "ratio", "CMSIS-NN alone", "ratio",
        "target", "met",
    )  # fmt: skip
    return ["## Beside the reference", "", reference["source"], "", *table(head, rows)]


def _library(found: list[beside.Pair]) -> list[str]:
    """Layer by layer against CMSIS-NN in the same firmware."""
    if not found:
        return []
    by_kind = beside.kind_table(beside.kinds(found))
    return [
        *("## Kinds of layers beside CMSIS-NN", "", "Instructions (ratio).", "", *by_kind),
        *("## Layers beside CMSIS-NN", "", *beside.layer_table(found)),
    ]


def _beside_boards(cores: list[str]) -> list[str]:
    """Estimated cycles of CMSIS-NN's functions beside what boards took with them."""
    published = json.loads(BOARDS.read_text(encoding="utf-8"))
    rows: list[tuple[object, ...]] = []
    for board in (board for board in published["boards"] if board["core"] in cores):
        for network, milliseconds in board["milliseconds"].items():
            f = measure(
                network, board["core"], "speed", kernels="cmsis-nn", oracle="cmsis-nn", cycles=True
            )
            taken = round(milliseconds * board["clock_hz"] / 1e3)
            rows.append((board["name"], network, f.cycles, taken, f"{taken / f.cycles:.2f}"))
    head = ("board", "network", "estimated cycles", "cycles on the board", "ratio")
    return ["## Estimates beside boards", "", published["source"], "", *table(head, rows)]


def _layers(f: Figures) -> list[str]:
    rows: list[tuple[object, ...]] = [
        (
            k, layer.op, layer.kernel, layer.macs, layer.instructions,
            f"{layer.instructions / layer.macs:.2f}" if layer.macs else "-",
        )
        for k, layer in enumerate(f.layers)
    ]  # fmt: skip
    head = ("#", "operator", "kernel", "MACs", "instructions", "per MAC")
    return [f"## {f.network} on {f.core}, layer by layer", "", *table(head, rows)]


if __name__ == "__main__":
    sys.exit(main())
