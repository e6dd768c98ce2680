"""``tinyq profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyq.cli.console import Json, guarded, progress, show, show_json
from tinyq.cli.verify import Folder


@guarded
def profile_command(
    folder: Folder,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another compiled folder, to put beside the first."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Run on another core than the folder was compiled for.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Count the instructions of every layer on the emulated core, and name the hot spots."""
    from tinyq.report.profile import comparison_report, profile_report
    from tinyq.verification.profile import profile

    folders = [folder, compare] if compare else [folder]
    profiles = []
    with progress(as_json) as tell:
        for number, one in enumerate(folders):
            tell("profiling", number, len(folders))
            profiles.append(profile(one, target))
    if as_json:
        show_json({"profiles": [one.to_json() for one in profiles]})
    elif compare:
        show(comparison_report(*profiles))
    else:
        show(profile_report(profiles[0]))
