"""``tinyq demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyq.cli.console import Json, Quiet, guarded, progress, show, show_json
from tinyq.cli.verify import DIFFERENT, Emulator, Toolchain


@guarded
def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the C code.")
    ] = Path("digits"),
    target: Annotated[str, typer.Option("--target", "-t", help="Core.")] = "cortex-m4",
    emulator: Emulator = "",
    toolchain: Toolchain = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compile a network of handwritten digits that comes with tinyq, and prove the C right.

    The network runs on an emulated core over 100 digits that it was not trained on, and every
    output integer is compared with onnxruntime's.
    """
    import tinyq
    from tinyq.demo import MODEL, SAMPLES
    from tinyq.emulate import choose
    from tinyq.report.verification import verify_report
    from tinyq.target import load_core
    from tinyq.verification.verify import VerifyOptions

    options = VerifyOptions(emulator=emulator, toolchain=toolchain, samples=SAMPLES)
    # What is missing is said before anything is written.
    choose(emulator, toolchain, load_core(target).name)
    with progress(quiet or as_json) as tell:
        tell("compiling", 0, 1)
        tinyq.compile(MODEL, output=output, target=target, name="digits")
        report = tinyq.verify(output, options, tell)
    if as_json:
        show_json({"directory": str(output), **report.to_json()})
    elif not quiet:
        show(verify_report(report))
        typer.echo(
            f"The C code is in {output}. Next: tinyq profile {output}, or compile a network of "
            f"yours: tinyq compile model.onnx --target {target}"
        )
    if not report.equal:
        raise typer.Exit(DIFFERENT)
