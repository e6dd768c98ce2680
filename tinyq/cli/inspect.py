"""``tinyq inspect``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tinyq.cli.console import Json, guarded, show, show_json
from tinyq.cli.shapes import Shape, parse_shapes

if TYPE_CHECKING:
    from tinyq.report.encodings import LayerEncoding


@guarded
def inspect_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL|DIR", help="A model file, or a compiled folder.")
    ],
    stage: Annotated[
        Literal["integer", "qdq"],
        typer.Option(help="Which stage of a model: as imported (qdq), or lowered to integers."),
    ] = "integer",
    shape: Shape = None,
    as_json: Json = False,
) -> None:
    """Print a model as text with its weights' encodings, or the report of a compiled folder."""
    from tinyq.api import CompileOptions, inspect_model, lower_model

    if model.is_dir():
        from tinyq.report.network import network_report
        from tinyq.verification.verify import read_manifest

        manifest = read_manifest(model)
        show_json(manifest) if as_json else show(network_report(manifest))
        return
    shapes = parse_shapes(shape)
    if stage == "qdq":
        text = inspect_model(model, stage, shapes)
        encodings: tuple[LayerEncoding, ...] = ()
    else:
        from tinyq.ir import to_text
        from tinyq.report.encodings import encoding_table, layer_encodings

        graph, _, _ = lower_model(model, CompileOptions("", shapes=shapes))
        text, encodings = to_text(graph), layer_encodings(graph)
    if as_json:
        weights = [asdict(layer) for layer in encodings]
        show_json({"model": str(model), "stage": stage, "text": text, "weights": weights})
        return
    typer.echo(text, nl=False)
    if encodings:
        show(encoding_table(encodings))
