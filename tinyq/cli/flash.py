"""``tinyq flash``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from tinyq.cli.console import Json, Quiet, guarded, show_json
from tinyq.errors import error

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that tinyq compiled.")]


@guarded
def flash_command(
    folder: Folder,
    board: Annotated[str, typer.Option(help="The board (`tinyq boards`).")],
    firmware: Annotated[
        Literal["device", "test"],
        typer.Option(
            help="device: runs samples for `tinyq verify --device`; test: runs the golden samples "
            "and reports through the probe."
        ),
    ] = "device",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Package; by default DIR-BOARD."),
    ] = None,
    port: Annotated[
        str, typer.Option(metavar="PORT", help="Serial port, for loaders that need one.")
    ] = "",
    drive: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the board's USB drive is: copy a UF2 file there."),
    ] = None,
    baud: Annotated[int, typer.Option(help="Baud rate of the device firmware.")] = 115_200,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build, and print the command without running it.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build a compiled folder's firmware for a board and write it there.

    With pyOCD if it is installed and knows the board, else with the tool of the board's probe. If
    neither is here, the command is printed and the status is 11.
    """
    from tinyq.api import build_package
    from tinyq.device.flash import flash, plan_flashing
    from tinyq.target import load_board

    chosen = load_board(board)
    build = build_package(folder, board, firmware, output, baud)
    how = plan_flashing(chosen, build, port or "PORT", drive)
    line = shlex.join(how.command) or f"cp {how.image} {drive}"
    if dry_run:
        said = ""
    elif not how.available:
        raise error(
            "TQ908",
            f"'{how.command[0]}' is not on the PATH; nothing was written. The command is\n  {line}",
        )
    elif how.needs_port and not port:
        raise error("TQ303", f"'{board}' is flashed over a serial port", "Name it with --port.")
    else:
        said = flash(chosen, how, drive)
    if as_json:
        entry = {"board": board, "by": how.by, "command": list(how.command), "written": not dry_run}
        show_json({**entry, "image": str(how.image)})
    elif not quiet:
        typer.echo(line)
        if not dry_run:
            start = f" What starts it: {chosen.start}." if chosen.start else ""
            typer.echo(f"{said}\nWritten.{start} Next: tinyq verify {folder} --device PORT")
