"""``tinyq inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tinyq.cli.compile import parse_shapes
from tinyq.cli.console import Json, guarded, show, show_json


@guarded
def inspect_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL|DIR", help="A model file, or a compiled folder.")
    ],
    stage: Annotated[
        Literal["integer", "qdq"],
        typer.Option(help="Which stage of a model: as imported (qdq), or lowered to integers."),
    ] = "integer",
    shape: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=1,49,10,1", help="Fix the shape of an input.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a model as text, or the report of a compiled folder."""
    from tinyq.api import inspect_model

    if model.is_dir():
        from tinyq.report.network import network_report
        from tinyq.verification.verify import read_manifest

        manifest = read_manifest(model)
        show_json(manifest) if as_json else show(network_report(manifest))
        return
    text = inspect_model(model, stage, parse_shapes(shape or ()))
    if as_json:
        show_json({"model": str(model), "stage": stage, "text": text})
    else:
        typer.echo(text, nl=False)
