"""``tinyq report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyq.cli.console import Quiet, guarded, progress, save_file
from tinyq.cli.profile import clock_of
from tinyq.cli.verify import DIFFERENT, Folder, Labels, Random, Samples, Seed
from tinyq.errors import error

_RANDOM = 20


@guarded
def report_command(
    folder: Folder,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")
    ] = Path("report.html"),
    samples: Samples = None,
    random: Random = None,
    seed: Seed = 0,
    labels: Labels = None,
    board: Annotated[
        str, typer.Option(help="A board whose clock gives milliseconds (`tinyq boards`).")
    ] = "",
    clock: Annotated[
        str, typer.Option(metavar="MHZ", help="A clock for milliseconds, such as 120.")
    ] = "",
    quiet: Quiet = False,
) -> None:
    """Verify and profile a compiled folder, and show it all on one HTML page.

    The page needs no network and no scripts. The exit status is the verdict, as with verify.
    """
    from tinyq.api import report, target_core
    from tinyq.verification.verify import VerifyOptions, read_manifest

    if samples is not None and random is not None:
        raise error("TQ303", "--samples and --random exclude each other", "Give one of them.")
    options = VerifyOptions(
        samples=samples, labels=labels, random=_RANDOM if random is None else random, seed=seed
    )
    if board:
        target_core(read_manifest(folder)["target"], board)
    with progress(quiet) as tell:
        html, found = report(folder, options, clock_of(board, clock), tell)
    save_file(html.encode(), output)
    if not quiet:
        typer.echo(f"Written to {output}: {'EQUAL' if found.equal else 'DIFFERENT'}.")
    if not found.equal:
        raise typer.Exit(DIFFERENT)
