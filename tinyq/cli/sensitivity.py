"""``tinyq sensitivity``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tinyq.cli import calibration as options
from tinyq.cli.console import Json, Quiet, guarded, progress, save_file, show, show_json
from tinyq.cli.quantize import Model
from tinyq.cli.shapes import Shape, parse_shapes


@guarded
def sensitivity_command(
    model: Model,
    calib: Annotated[
        Path,
        typer.Option(metavar="DATA", help=".npy, .npz (`x`, `y`), or a folder of samples."),
    ],
    calibrator: options.Calibrator = "mse",
    weights: options.Weights = "int8",
    activations: options.Activations = "int8",
    equalize: options.Equalize = False,
    bias_correction: options.BiasCorrection = True,
    rounding: options.Rounding = "nearest",
    labels: options.Labels = "",
    layout: options.Layout = None,
    mean: options.Mean = "",
    std: options.Std = "",
    size: options.Size = "",
    shape: Shape = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the ranking (.png).")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Rank the layers by what quantizing each of them alone does to the output."""
    from tinyq.ptq import PtqConfig, sensitivity
    from tinyq.report.plots import check_plot, sensitivity_plot
    from tinyq.report.quantization import sensitivity_report

    config = PtqConfig(
        calibrator=calibrator, weights=weights, activations=activations, equalize=equalize,
        bias_correction=bias_correction, rounding=rounding,
    )  # fmt: skip
    if plot is not None:
        check_plot(plot)
    with progress(quiet or as_json) as tell:
        source = options.fixed(model, parse_shapes(shape))
        data = options.load(
            source, calib, labels=labels, layout=layout, mean=mean, std=std, size=size
        )
        assert data is not None  # --calib is required
        report = sensitivity(source, data, config, tell)
    if plot is not None:
        save_file(sensitivity_plot(report), plot)
    if as_json:
        show_json(json.loads(report.to_json()))
    elif not quiet:
        show(sensitivity_report(report))
