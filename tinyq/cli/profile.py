"""``tinyq profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyq.cli.console import Json, guarded, progress, show, show_json
from tinyq.cli.verify import Folder, Toolchain


@guarded
def profile_command(
    folder: Folder,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another compiled folder, to put beside the first."),
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Put tinyq's kernels, CMSIS-NN's (CMSIS_NN_DIR) and the better ones side by side.",
        ),
    ] = False,
    functions: Annotated[
        bool, typer.Option("--functions", help="Show what every function costs, too.")
    ] = False,
    target: Annotated[
        str, typer.Option(help="Run on another core than the folder was compiled for.")
    ] = "",
    board: Annotated[
        str, typer.Option(help="A board whose clock gives milliseconds (`tinyq boards`).")
    ] = "",
    clock: Annotated[
        str, typer.Option(metavar="MHZ", help="A clock for milliseconds, such as 120.")
    ] = "",
    emulator: Annotated[
        str,
        typer.Option(
            help="qemu, unicorn or renode (without cycles); by default qemu, or unicorn where "
            "qemu is not installed.",
            show_default=False,
        ),
    ] = "",
    toolchain: Toolchain = "",
    as_json: Json = False,
) -> None:
    """Count the instructions of every layer on the emulated core, and name the hot spots.

    Cycles are estimated from them with the core's timing table or the model of its pipeline.
    """
    from tinyq.api import target_core
    from tinyq.report.profile import comparison_report, function_report, profile_report
    from tinyq.verification.profile import profile
    from tinyq.verification.verify import read_manifest

    if kernels:
        show_kernels(folder, as_json)
        return
    clock_hz = clock_of(board, clock)
    folders = [folder, compare] if compare else [folder]
    for one in folders if board else ():
        target_core(target or read_manifest(one)["target"], board)
    profiles = []
    with progress(as_json) as tell:
        for number, one in enumerate(folders):
            tell("profiling", number, len(folders))
            profiles.append(
                profile(one, target, clock_hz=clock_hz, emulator=emulator, toolchain=toolchain)
            )
    if as_json:
        show_json({"profiles": [one.to_json() for one in profiles]})
    elif compare:
        show(comparison_report(*profiles))
    else:
        show(profile_report(profiles[0]))
    if functions and not as_json:
        for found in profiles:
            show(function_report(found))


def clock_of(board: str, megahertz: str) -> int:
    """The clock in Hz that was asked for, or the board's; 0 for neither. Raises TQ301 and TQ303."""
    from tinyq.errors import error
    from tinyq.target import load_board

    if not megahertz:
        return load_board(board).mcu.clock_hz if board else 0
    try:
        found = float(megahertz)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise error("TQ303", f"--clock {megahertz}", "Give megahertz, such as 120.")
    return round(found * 1e6)


def show_kernels(folder: Path, as_json: bool) -> None:
    """The folder's model with each choice of kernels, side by side."""
    from tinyq.api import COMPARED_KERNELS, profile_kernels
    from tinyq.report.profile import kernels_report

    with progress(as_json) as tell:
        tell("profiling", 0, 1)
        profiles = dict(zip(COMPARED_KERNELS, profile_kernels(folder), strict=True))
    if as_json:
        show_json({"profiles": {name: one.to_json() for name, one in profiles.items()}})
    else:
        show(kernels_report(profiles))
