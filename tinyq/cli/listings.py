"""``tinyq targets``, ``tinyq ops`` and ``tinyq explain``: what tinyq knows."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from tinyq.cli.console import Json, guarded, show, show_json
from tinyq.errors import CATALOG, error


@guarded
def targets_command(as_json: Json = False) -> None:
    """List the cores, the emulators of each, and which emulators and compilers are installed."""
    from tinyq.emulate import tools
    from tinyq.emulate.renode_platform import CPUS
    from tinyq.emulate.unicorn import MODELS
    from tinyq.target import core_names, load_board, load_core

    cores = [load_core(name) for name in core_names()]
    if as_json:
        show_json(
            {
                "targets": [dataclasses.asdict(core) for core in cores],
                "tools": [dataclasses.asdict(tool) for tool in tools()],
            }
        )
        return
    table = _table("target", "core", "architecture", "instructions", "FPU", "emulated by")
    for core in cores:
        qemu = load_board(core.board).qemu
        isas = ", ".join(f"{i} (default)" if i == core.default_isa else i for i in core.isas)
        machine = f"qemu ({qemu.machine})" if qemu else "-"
        machine += ", unicorn" if core.name in MODELS else ""
        machine += ", renode" if core.name in CPUS else ""
        table.add_row(core.name, core.title, core.architecture, isas, core.fpu, machine)
    show(table)
    typer.echo(
        "Append +scalar, +dsp or +mve to choose the instruction set, and +mul32 for a Cortex-M0 or "
        "M0+ with the small multiplier: cortex-m4+scalar."
    )
    installed = _table("for verifying", "kind", "installed", "to install")
    for tool in tools():
        wanted = "" if tool.found else tool.install
        installed.add_row(tool.name, tool.kind, tool.found or "no", wanted)
    show(installed)


@guarded
def boards_command(as_json: Json = False) -> None:
    """List the boards, with the memory that a program may use on each."""
    from tinyq.target import board_names, load_board

    boards = [load_board(name) for name in board_names()]
    if as_json:
        entries = [
            {
                **dataclasses.asdict(board),
                "flash_bytes": board.flash.size,
                "ram_bytes": board.ram.size,
            }
            for board in boards
        ]
        show_json({"boards": entries})
        return
    table = _table("board", "title", "core", "MHz", "flash", "RAM", "QEMU", "probe")
    for board in boards:
        table.add_row(
            board.name, board.title, board.mcu.core, f"{board.clock_hz / 1e6:g}",
            f"{board.flash.size // 1024} KiB", f"{board.ram.size // 1024} KiB",
            board.qemu.machine if board.qemu else "-",
            board.flasher.probe if board.flasher else "-",
        )  # fmt: skip
    show(table)


@guarded
def ops_command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as it stands in the README.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the operators that are supported, their ONNX names and their kernels."""
    if markdown:
        from tinyq.report.operators import operators_markdown

        typer.echo(operators_markdown(), nl=False)
        return
    from tinyq.ops import REGISTRY

    operators = list(REGISTRY.operators.values())
    if as_json:
        entries = [
            {
                "name": op.name,
                "summary": op.summary,
                "onnx": list(op.onnx),
                "kernels": [kernel.name for kernel in op.kernels],
            }
            for op in operators
        ]
        show_json({"operators": entries})
        return
    table = _table("operator", "ONNX", "what", "kernels")
    for op in operators:
        kernels = ", ".join(kernel.name for kernel in op.kernels)
        table.add_row(op.name, ", ".join(op.onnx), op.summary, kernels)
    show(table)


@guarded
def explain_command(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A code such as TQ202.")] = "",
    as_json: Json = False,
) -> None:
    """Say what a diagnostic code means and what to do; without one, list them all."""
    if not code:
        _all_codes(as_json)
        return
    info = CATALOG.get(code.upper())
    if info is None:
        raise error("TQ303", f"no code '{code}'", "`tinyq explain` lists all codes.")
    if as_json:
        show_json(dataclasses.asdict(info))
        return
    typer.echo(f"{info.code} {info.title} (exit status {info.exit_status})\n")
    typer.echo(f"{info.explanation}\n\nWhat to do: {info.remedy}")


def _all_codes(as_json: bool) -> None:
    infos = [CATALOG[code] for code in sorted(CATALOG)]
    if as_json:
        show_json({"codes": [dataclasses.asdict(info) for info in infos]})
        return
    table = _table("code", "status", "meaning", "what to do")
    for info in infos:
        table.add_row(info.code, str(info.exit_status), info.title, info.remedy)
    show(table)


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
