"""``tinyq quantize``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyq.cli import calibration as options
from tinyq.cli.console import Json, Quiet, guarded, progress, save_file, show, show_json
from tinyq.cli.shapes import Shape, parse_shapes
from tinyq.errors import error

if TYPE_CHECKING:
    from onnx import ModelProto
    from rich.console import RenderableType

    from tinyq.ptq import CalibrationData, PtqConfig, PtqResult
    from tinyq.ptq.observe import Progress

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A float32 ONNX file.")]


@guarded
def quantize_command(
    model: Model,
    calib: options.Calib = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="By default MODEL.int8.onnx."),
    ] = None,
    calibrator: options.Calibrator = "mse",
    weights: options.Weights = "int8",
    activations: options.Activations = "int8",
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="Find scales of activations at run time; the samples give the input's range.",
        ),
    ] = False,
    per_tensor: options.PerTensor = False,
    equalize: options.Equalize = False,
    bias_correction: options.BiasCorrection = True,
    rounding: options.Rounding = "nearest",
    keep_accuracy: Annotated[
        str,
        typer.Option(
            metavar="0.5%",
            help="Give sensitive layers 8-bit weights, then int16 activations, until no more than "
            "this is lost (accuracy; without --labels, samples whose class changes).",
        ),
    ] = "",
    allow_float: Annotated[
        bool,
        typer.Option(
            "--allow-float",
            help="With --keep-accuracy: leave layers float, if --target has an FPU.",
        ),
    ] = False,
    target: Annotated[str, typer.Option("--target", "-t", help="Core, for --allow-float.")] = "",
    labels: options.Labels = "",
    layout: options.Layout = None,
    mean: options.Mean = "",
    std: options.Std = "",
    size: options.Size = "",
    shape: Shape = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also write the report: .json, or .png (histograms and levels); repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of made-up inputs.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Quantize a float ONNX model with typical samples, and report what it costs in accuracy."""
    from tinyq.ptq import PtqConfig, quantize
    from tinyq.report.quantization import quantization_report

    config = PtqConfig(
        calibrator=calibrator, weights=weights, activations=activations,
        per_channel=not per_tensor, equalize=equalize, bias_correction=bias_correction,
        rounding=rounding, seed=seed,
    )  # fmt: skip
    if dynamic:
        others = keep_accuracy or allow_float or report
        if others or config != PtqConfig(per_channel=not per_tensor, seed=seed):
            raise error("TQ607", "--dynamic with options of static quantization",
                        "With --dynamic: --calib, --output, --per-tensor, and how samples are "
                        "read.")  # fmt: skip
        destination = output or model.with_name(f"{model.stem}.dynamic.onnx")
        data = options.load(
            model, calib, labels=labels, layout=layout, mean=mean, std=std, size=size
        )
        _quantize_dynamic(model, data, destination, per_tensor, quiet, as_json)
        return
    reports = _report_files(report or [])
    bound = options.fraction("keep-accuracy", keep_accuracy) if keep_accuracy else None
    _check_float(allow_float, target, bound)
    destination = output or model.with_name(f"{model.stem}.{weights}.onnx")
    found: dict[str, Any] = {"output": str(destination)}
    searched: RenderableType | None = None
    with progress(quiet or as_json) as tell:
        source = options.fixed(model, parse_shapes(shape))
        data = options.load(
            source, calib, labels=labels, layout=layout, mean=mean, std=std, size=size
        )
        if bound is None:
            result = quantize(source, data, config, tell)
        else:
            result, found["search"], searched = _search(
                source, data, config, bound, allow_float, tell
            )
    save_file(result.model.SerializeToString(deterministic=True), destination)
    _write_reports(result, reports)
    if as_json:
        show_json({**found, **json.loads(result.report.to_json())})
    elif not quiet:
        show(quantization_report(result.report))
        if searched is not None:
            show(searched)
        typer.echo(f"Written to {destination}. Next: tinyq compile {destination} -t cortex-m4")


def _quantize_dynamic(
    model: Path, data: CalibrationData | None, destination: Path, per_tensor: bool, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a model whose scales are found at run time; say how far its output is from float."""
    from tinyq.ptq.dynamic import quantize_dynamic
    from tinyq.report.quantization import quality_text

    with progress(quiet or as_json) as tell:
        result, quality = quantize_dynamic(model, data, per_channel=not per_tensor, progress=tell)
    save_file(result.SerializeToString(deterministic=True), destination)
    if as_json:
        show_json({"output": str(destination), "quality": dataclasses.asdict(quality)})
    elif not quiet:
        typer.echo(quality_text(quality))
        typer.echo(f"Written to {destination}. Next: tinyq compile {destination} -t cortex-m4")


def _search(
    model: Path | ModelProto,
    data: CalibrationData | None,
    config: PtqConfig,
    bound: float,
    allow_float: bool,
    tell: Progress,
) -> tuple[PtqResult, dict[str, Any], RenderableType]:
    from tinyq.ptq import search
    from tinyq.report.quantization import search_report

    if data is None:
        raise error("TQ605", "--keep-accuracy needs samples", "Add --calib DATA.")
    found = search(model, data, config, keep_accuracy=bound, allow_float=allow_float, progress=tell)
    return found.result, found.to_json(), search_report(found)


def _check_float(allow_float: bool, target: str, bound: float | None) -> None:
    """Layers may only stay float on a core that computes in float. Raises TQ301, TQ607."""
    from tinyq.target import load_core

    if not allow_float:
        if target:
            raise error("TQ607", "--target without --allow-float", "A model fits every core.")
        return
    if bound is None:
        raise error("TQ607", "--allow-float without --keep-accuracy", "Say how much may be lost.")
    if not target:
        raise error("TQ607", "--allow-float without --target", "Name a core with an FPU.")
    core = load_core(target)
    if core.fpu == "none":
        raise error("TQ607", f"--allow-float: the {core.title} has no FPU", "Leave it out.")


def _report_files(paths: list[Path]) -> list[Path]:
    """The files to write, checked before any work is done for them. Raises TQ607, TQ610."""
    from tinyq.report.plots import check_plot

    for path in paths:
        if path.suffix != ".json":
            check_plot(path)
    return paths


def _write_reports(result: PtqResult, paths: list[Path]) -> None:
    for path in paths:
        if path.suffix == ".json":
            save_file(result.report.to_json().encode(), path)
        else:
            from tinyq.report.plots import quality_plot

            save_file(quality_plot(result.report), path)
