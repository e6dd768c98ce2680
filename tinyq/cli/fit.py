"""``tinyq fit``."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tinyq.cli import calibration as options
from tinyq.cli.compile import Board, Target
from tinyq.cli.console import Json, Quiet, guarded, progress, save_file, show, show_json
from tinyq.cli.profile import clock_of
from tinyq.cli.quantize import Model
from tinyq.errors import error

if TYPE_CHECKING:
    from tinyq.fit import FitResult

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@guarded
def fit_command(
    model: Model,
    calib: Annotated[
        Path,
        typer.Option(metavar="DATA", help=".npy, .npz (`x`, `y`), or a folder of samples."),
    ],
    target: Target = "",
    board: Board = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder; by default the model's name."),
    ] = None,
    flash: Annotated[
        str, typer.Option(metavar="64K", help="Most flash for constants and code.")
    ] = "",
    ram: Annotated[str, typer.Option(metavar="20K", help="Most RAM for the arena.")] = "",
    latency: Annotated[
        str,
        typer.Option(
            metavar="50ms", help="Longest inference, from cycles estimated of emulated runs."
        ),
    ] = "",
    clock: Annotated[
        str, typer.Option(metavar="MHZ", help="Clock for --latency, by default the board's.")
    ] = "",
    optimize: Annotated[
        Literal["speed", "size", "balanced"],
        typer.Option(help="What kernels are chosen for, where that keeps the limits."),
    ] = "balanced",
    forms: Annotated[
        str,
        typer.Option(
            metavar="int,pot4", help="Weights to choose from, or groups: int, pot, apot, lut, all."
        ),
    ] = "",
    points: Annotated[int, typer.Option(min=2, help="Most points of the front.")] = 10,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Processes that evaluate; -1 is one a processor.")
    ] = 1,
    backend: Annotated[
        str, typer.Option(help="joblib's backend: loky, threading, … (by default joblib's own).")
    ] = "",
    calibrator: options.Calibrator = "mse",
    bias_correction: options.BiasCorrection = True,
    labels: options.Labels = "",
    layout: options.Layout = None,
    mean: options.Mean = "",
    std: options.Std = "",
    size: options.Size = "",
    report: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Also write the front: .json, or .png (a plot); repeatable."
        ),
    ] = None,
    run: Annotated[
        bool,
        typer.Option("--run/--no-run", help="Build the firmware, run it in QEMU, and measure."),
    ] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Choose bits and encoding of every layer's weights under limits; quantize and compile.

    The choice has the least output error that flash, RAM and time allow.
    """
    from tinyq.api import CompileOptions, fit_model
    from tinyq.codegen import write_program
    from tinyq.ptq import PtqConfig

    if not target and not board:
        raise typer.BadParameter("Missing option '--target' / '-t' (or '--board').")
    _check_reports(report or [])
    chosen = CompileOptions(target=target, board=board, optimize=optimize, flash=flash, ram=ram)
    seconds, clock_hz = parse_seconds(latency) if latency else 0.0, clock_of(board, clock)
    with progress(quiet or as_json) as tell, _parallel(backend):
        data = options.load(
            model, calib, labels=labels, layout=layout, mean=mean, std=std, size=size
        )
        assert data is not None  # --calib is required
        fitted = fit_model(
            model, data, chosen, latency=seconds, clock_hz=clock_hz,
            forms=tuple(forms.split(",")) if forms else (),
            config=PtqConfig(calibrator=calibrator, bias_correction=bias_correction),
            points=points, jobs=jobs, progress=tell,
        )  # fmt: skip
        folder = output or Path(fitted.compiled.program.name)
        write_program(fitted.compiled.program, folder)
        measured = _measured(folder, clock_hz) if run else None
    _write_reports(fitted.result, report or [])
    if as_json:
        show_json({"directory": str(folder), **fitted.result.to_json(), "firmware": measured})
    elif not quiet:
        from tinyq.report.fitting import fit_report

        show(fit_report(fitted.result))
        if measured:
            show(_measured_text(measured))
        typer.echo(f"Written to {folder}. Next: tinyq verify {folder}")


def parse_seconds(text: str) -> float:
    """Seconds from ``50ms``, ``1.5s`` or ``800us``. Raises TQ303."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms|us)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise error("TQ303", f"--latency {text}", "Write it as 50ms, 0.5s or 800us.")
    return float(found[1]) * _SECONDS[found[2]]


def _parallel(backend: str) -> Any:
    """A context with the backend of parallel evaluations. Raises TQ303 for an unknown one."""
    if not backend:
        return nullcontext()
    import joblib

    try:
        return joblib.parallel_config(backend=backend)
    except (ValueError, ImportError) as problem:
        raise error("TQ303", f"--backend {backend}: {problem}") from None


def _measured(folder: Path, clock_hz: int) -> dict[str, Any]:
    """What the firmware takes and gives in QEMU: a verification and a profile."""
    from tinyq.api import verify
    from tinyq.verification.profile import profile
    from tinyq.verification.verify import VerifyOptions

    checked = verify(folder, VerifyOptions(random=3))
    found = profile(folder, clock_hz=clock_hz)
    return {
        "equal": checked.equal,
        "outputs_compared": checked.outputs_compared,
        "flash_bytes": checked.flash_bytes,
        "ram_bytes": checked.ram_bytes,
        "instructions": found.instructions,
        "cycles": found.cycles,
        "milliseconds": found.milliseconds,
    }


def _measured_text(measured: dict[str, Any]) -> str:
    from tinyq.report.formats import count, size

    verdict = "every integer equal to onnxruntime's" if measured["equal"] else "integers DIFFER"
    time = measured["milliseconds"]
    at = f" ({time:.1f} ms)" if time else ""
    return (
        f"Firmware in QEMU: {verdict} ({count(measured['outputs_compared'])} compared), flash "
        f"{size(measured['flash_bytes'])}, RAM with stack {size(measured['ram_bytes'])}, "
        f"{count(measured['instructions'])} instructions, about {count(measured['cycles'])} "
        f"cycles{at}"
    )


def _check_reports(paths: list[Path]) -> None:
    """Refuse files that could not be written, before any work is done for them."""
    from tinyq.report.plots import check_plot

    for path in paths:
        if path.suffix != ".json":
            check_plot(path)


def _write_reports(result: FitResult, paths: list[Path]) -> None:
    for path in paths:
        if path.suffix == ".json":
            save_file(json.dumps(result.to_json(), indent=2).encode(), path)
        else:
            from tinyq.report.plots import fit_plot

            save_file(fit_plot(result), path)
