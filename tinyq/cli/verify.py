"""``tinyq verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyq.cli.console import Json, Quiet, guarded, progress, show, show_json
from tinyq.errors import error

DIFFERENT = 1
_DEFAULT_RANDOM = 20

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that tinyq compiled.")]
Emulator = Annotated[
    str,
    typer.Option(
        help="Where the C runs: qemu, unicorn or renode (an emulated core), host (this machine), "
        "or several with commas; by default qemu, or unicorn where qemu is not installed.",
        show_default=False,
    ),
]
Toolchain = Annotated[
    str,
    typer.Option(
        help="What compiles the firmware: gcc, clang or zig; by default gcc, or zig where gcc is "
        "not installed.",
        show_default=False,
    ),
]
Samples = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help=".npy, .npz with `x` (and `y`, the labels), or a folder of .npy."
    ),
]
Random = Annotated[
    int | None, typer.Option(metavar="N", help="Random samples instead.", show_default="20")
]
Seed = Annotated[int, typer.Option(help="Seed of the random samples.")]
Labels = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Labels, for accuracy: .npy or .npz (`y`).")
]


@guarded
def verify_command(
    folder: Folder,
    emulator: Emulator = "",
    toolchain: Toolchain = "",
    samples: Samples = None,
    random: Random = None,
    seed: Seed = 0,
    labels: Labels = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare and count layer by layer too.")
    ] = False,
    target: Annotated[
        str, typer.Option(help="Run on another core than the folder was compiled for.")
    ] = "",
    board: Annotated[
        str,
        typer.Option(help="Check that it fits this board, and run it with the board's memory map."),
    ] = "",
    sanitize: Annotated[
        bool, typer.Option("--sanitize", help="With the host: build with ASan and UBSan.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for one emulated run.")] = 1800.0,
    device: Annotated[
        str,
        typer.Option(
            metavar="PORT",
            help="Run on the board at this serial port (/dev/ttyACM0, COM3, socket://HOST:PORT), "
            "which carries this folder's firmware (`tinyq flash`).",
        ),
    ] = "",
    baud: Annotated[int, typer.Option(help="With --device: the firmware's baud rate.")] = 115_200,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build the C, run it, and compare every output integer with onnxruntime's.

    The exit status is the verdict: 0 when all are equal, 1 when not.
    """
    from tinyq.api import verify
    from tinyq.device import DeviceOptions
    from tinyq.verification.verify import VerifyOptions

    if samples is not None and random is not None:
        raise error("TQ303", "--samples and --random exclude each other", "Give one of them.")
    if device and (emulator or toolchain):
        raise error("TQ303", "--device excludes --emulator and --toolchain", "Give one of them.")
    options = VerifyOptions(
        emulator=emulator,
        toolchain=toolchain,
        samples=samples,
        labels=labels,
        random=_DEFAULT_RANDOM if random is None else random,
        seed=seed,
        layers=layers,
        target=target,
        sanitize=sanitize,
        timeout=timeout,
        board=board,
        device=DeviceOptions(device, baud) if device else None,
    )
    with progress(quiet or as_json) as tell:
        report = verify(folder, options, tell)
    if as_json:
        show_json(report.to_json())
    elif not quiet:
        from tinyq.report.verification import verify_report

        show(verify_report(report))
    if not report.equal:
        raise typer.Exit(DIFFERENT)
