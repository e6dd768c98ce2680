"""``tinyq quantize`` and ``tinyq sensitivity``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tinyq.cli.console import Json, Quiet, guarded, progress, show, show_json
from tinyq.errors import error

if TYPE_CHECKING:
    from tinyq.ptq import CalibrationData, PtqConfig

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A float32 ONNX file.")]
Calibrator = Annotated[
    Literal["max", "percentile", "entropy", "mse", "all"],
    typer.Option(help="How ranges of activations are found; all tries each and keeps the best."),
]
Weights = Annotated[Literal["int8", "int4"], typer.Option(help="Type of the weights.")]
Activations = Annotated[
    Literal["int8", "uint8", "int16"], typer.Option(help="Type of the activations.")
]
Layout = Annotated[
    Literal["nchw", "nhwc"] | None, typer.Option(help="Layout of the samples, where it differs.")
]
Equalize = Annotated[bool, typer.Option("--equalize", help="Equalise ranges between layers.")]


@guarded
def quantize_command(
    model: Model,
    calib: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help=".npy, .npz (`x`, `y`) or a folder of typical samples."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="By default MODEL.int8.onnx."),
    ] = None,
    calibrator: Calibrator = "max",
    weights: Weights = "int8",
    activations: Activations = "int8",
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One weight scale a layer, not one a channel.")
    ] = False,
    equalize: Equalize = False,
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction", help="Correct the mean error of every channel.")
    ] = False,
    rounding: Annotated[
        Literal["nearest", "adaround"], typer.Option(help="How weights are rounded.")
    ] = "nearest",
    layout: Layout = None,
    seed: Annotated[int, typer.Option(help="Seed of made-up inputs.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Quantize a float ONNX model with typical samples, and report what it costs in accuracy."""
    from tinyq.ptq import PtqConfig, quantize

    config = PtqConfig(
        calibrator=calibrator, weights=weights, activations=activations,
        per_channel=not per_tensor, equalize=equalize, bias_correction=bias_correction,
        rounding=rounding, seed=seed,
    )  # fmt: skip
    target = output or model.with_name(f"{model.stem}.{weights}.onnx")
    with progress(quiet or as_json) as tell:
        result = quantize(model, _calibration(model, calib, layout), config, tell)
    _save(result.model.SerializeToString(deterministic=True), target)
    if as_json:
        show_json({"output": str(target), **json.loads(result.report.to_json())})
    elif not quiet:
        from tinyq.report.quantization import quantization_report

        show(quantization_report(result.report, result.calibrator))
        typer.echo(f"Written to {target}. Next: tinyq compile {target} --target cortex-m4")


@guarded
def sensitivity_command(
    model: Model,
    calib: Annotated[
        Path, typer.Option(metavar="DATA", help=".npy, .npz (`x`, `y`) or a folder of samples.")
    ],
    calibrator: Calibrator = "max",
    weights: Weights = "int8",
    activations: Activations = "int8",
    layout: Layout = None,
    equalize: Equalize = False,
    as_json: Json = False,
) -> None:
    """Rank the layers by what quantizing each of them alone does to the output."""
    from tinyq.ptq import PtqConfig, sensitivity
    from tinyq.report.quantization import sensitivity_report

    config: PtqConfig = PtqConfig(
        calibrator=calibrator, weights=weights, activations=activations, equalize=equalize
    )
    data = _calibration(model, calib, layout)
    if data is None:
        raise error("TQ605", "a sensitivity analysis needs samples")
    with progress(as_json) as tell:
        report = sensitivity(model, data, config, tell)
    if as_json:
        show_json(json.loads(report.to_json()))
    else:
        show(sensitivity_report(report))


def _calibration(model: Path, calib: Path | None, layout: str | None) -> CalibrationData | None:
    from tinyq.ptq import ImageOptions, inputs_of, load_calibration

    if calib is None:
        return None
    options = dataclasses.replace(ImageOptions(), layout=layout)
    return load_calibration(calib, inputs_of(model), options)


def _save(contents: bytes, path: Path) -> None:
    """Write a file whole or not at all; raises TQ703."""
    staging = path.with_name(f".{path.name}.part")
    try:
        staging.write_bytes(contents)
        staging.replace(path)
    except OSError as problem:
        raise error("TQ703", problem.strerror or str(problem), file=str(path)) from None
    finally:
        staging.unlink(missing_ok=True)
