"""The option that fixes the shapes of inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from tinyq.errors import error

Shape = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", metavar="INPUT=1,49,10,1", help="Fix the shape of an input; repeatable."
    ),
]


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes by input from ``NAME=1,2,3``; raises TQ303."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, _, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            raise error("TQ303", f"--shape {text}", "Write it as INPUT=1,49,10,1.")
        shapes[name] = shape
    return shapes
