"""``tinyq export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tinyq.cli.console import Json, Quiet, guarded, show_json

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that tinyq compiled.")]


@guarded
def export_command(
    folder: Folder,
    form: Annotated[
        Literal[
            "make", "cmake", "arduino", "platformio", "zephyr", "cmsis-pack", "esp-idf", "bare"
        ],
        typer.Option("--format", help="What the package is for."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder; by default DIR-FORMAT."),
    ] = None,
    board: Annotated[
        str, typer.Option(help="The board of a bare export, or one that it has to fit.")
    ] = "",
    samples: Annotated[int, typer.Option(help="Most golden samples.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the golden samples.")] = 0,
    package_version: Annotated[str, typer.Option(help="Version of the package.")] = "1.0.0",
    author: Annotated[str, typer.Option(help="Author, or vendor, of the package.")] = "tinyq",
    url: Annotated[str, typer.Option(help="Home page of the package.")] = "https://example.org",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a package of an embedded ecosystem from a compiled folder, with golden samples."""
    from tinyq.api import check_board, export
    from tinyq.export import Package

    fit = check_board(folder, board) if board else None
    package = Package(package_version, author, url)
    written = export(folder, form, output, board=board, samples=samples, seed=seed, package=package)
    if as_json:
        sizes = {} if fit is None else {"flash_bytes": fit.flash_bytes, "ram_bytes": fit.ram_bytes}
        show_json({"directory": str(written), "format": form, "board": board, **sizes})
    elif not quiet:
        if fit is not None:
            typer.echo(
                f"{fit.board.title}: {fit.flash_bytes:,} of {fit.board.flash.size:,} bytes of "
                f"flash, {fit.ram_bytes:,} of {fit.board.ram.size:,} bytes of RAM."
            )
        typer.echo(f"Written to {written}. Next: see {written / 'README.md'}")
