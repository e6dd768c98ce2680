"""``tinyq compile``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from tinyq.cli import calibration as quantizing
from tinyq.cli.console import Json, Quiet, guarded, progress, show, show_json
from tinyq.cli.shapes import Shape, parse_shapes
from tinyq.errors import error

Target = Annotated[
    str,
    typer.Option("--target", "-t", help="Core: cortex-m4, cortex-m0+mul32, … (`tinyq targets`)."),
]


Board = Annotated[
    str, typer.Option(help="Board: implies the core, and limits the memory (`tinyq boards`).")
]
Format = Annotated[
    Literal[
        "", "make", "cmake", "arduino", "platformio", "zephyr", "cmsis-pack", "esp-idf", "bare"
    ],
    typer.Option(
        "--format",
        help="Write a package instead: make, cmake, arduino, platformio, zephyr, cmsis-pack, "
        "esp-idf, bare (`tinyq export`).",
        metavar="FORMAT",
    ),
]


@guarded
def compile_command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A quantized ONNX or TFLite file, or float ONNX."),
    ],
    target: Target = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder; by default the model's name."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Prefix of all C symbols; by default the file's name.")
    ] = "",
    optimize: Annotated[
        Literal["speed", "size", "balanced"], typer.Option(help="What kernels are chosen for.")
    ] = "balanced",
    oracle: Annotated[
        Literal["ort", "tflite", "cmsis-nn"],
        typer.Option(help="Whose arithmetic the integers follow."),
    ] = "ort",
    kernels: Annotated[
        Literal["tinyq", "packed", "shift", "cmsis-nn", "auto"],
        typer.Option(
            help="tinyq's own, those that read packed weights, those that never multiply, "
            "CMSIS-NN's wherever they fit, or whichever of all costs less."
        ),
    ] = "tinyq",
    cmsis_nn: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="CMSIS-NN's folder, for --kernels.", envvar="CMSIS_NN_DIR"
        ),
    ] = "",
    io: Annotated[
        Literal["int8", "float"],
        typer.Option(help="float adds C functions that quantize inputs and dequantize outputs."),
    ] = "int8",
    pack_activations: Annotated[
        Literal["auto", "never", "always"],
        typer.Option(
            help="Store activations of at most 16 values with 1, 2 or 4 bits: for --optimize size "
            "and to meet --ram, never, or always where it makes the arena smaller."
        ),
    ] = "auto",
    ram: Annotated[str, typer.Option(metavar="32K", help="Most RAM for the arena.")] = "",
    flash: Annotated[
        str, typer.Option(metavar="128K", help="Most flash for constants and code.")
    ] = "",
    board: Board = "",
    weights: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Round the weights to few levels: binary, ternary, int2 to int5, pot3, pot4, "
            "apot2 to apot5, lut2 to lut5. The first and the last layer stay. With --calib int4 "
            "is how the float model is quantized.",
        ),
    ] = "",
    weights_all: Annotated[
        bool, typer.Option("--weights-all", help="The first and the last layer too.")
    ] = False,
    weights_layer: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER=FORMAT", help="Another format for one layer; repeatable."),
    ] = None,
    weights_samples: Annotated[
        str,
        typer.Option(metavar="FILE", help="Samples by which the change of the outputs is measured"),
    ] = "",
    form: Format = "",
    shape: Shape = None,
    input_scale: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=0.05,-3",
            help="Scale and zero point (int8) of a float input, for models whose other scales are "
            "found at run time; INPUT= may be left out where there is one; repeatable.",
        ),
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Quantize a float model first, with these samples: .npy, .npz (`x`, `y`) or a "
            "folder. `tinyq quantize` has more options.",
        ),
    ] = None,
    calibrator: quantizing.Calibrator = "mse",
    per_tensor: quantizing.PerTensor = False,
    rounding: quantizing.Rounding = "nearest",
    bias_correction: quantizing.BiasCorrection = True,
    labels: quantizing.Labels = "",
    layout: quantizing.Layout = None,
    mean: quantizing.Mean = "",
    std: quantizing.Std = "",
    size: quantizing.Size = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compile a quantized ONNX model to a folder of C99, and report on it.

    With --calib a float model is quantized first; the folder keeps the quantized model.
    """
    from tinyq.api import CompileOptions, compile_model, export_compiled
    from tinyq.codegen import write_program
    from tinyq.ptq import PtqConfig

    if not target and not board:
        raise typer.BadParameter("Missing option '--target' / '-t' (or '--board').")
    quantized_to = weights if calib is not None and weights == "int4" else "int8"
    config = PtqConfig(
        calibrator=calibrator, weights=quantized_to, per_channel=not per_tensor, rounding=rounding,
        bias_correction=bias_correction,
    )  # fmt: skip
    if calib is None and config != PtqConfig():
        raise error("TQ607", "options of a quantization without --calib", "Add --calib DATA.")
    shapes = parse_shapes(shape)
    data = quantizing.load(
        quantizing.fixed(model, shapes if calib else {}),
        calib,
        labels=labels,
        layout=layout,
        mean=mean,
        std=std,
        size=size,
    )
    options = CompileOptions(
        target=target,
        name=name,
        optimize=optimize,
        oracle=oracle,
        io=io,
        shapes=shapes,
        kernels=kernels,
        cmsis_nn=cmsis_nn,
        ram=ram,
        flash=flash,
        board=board,
        calib=data,
        quantization=config if data else None,
        weights="" if weights == quantized_to else weights,
        weights_all=weights_all,
        weights_layers=parse_formats(weights_layer or ()),
        weights_samples=weights_samples,
        pack_activations=pack_activations,
        input_scales=parse_scales(input_scale or ()),
    )
    with progress(quiet or as_json) as tell:
        compiled = compile_model(model, options, tell)
    folder = output or Path(compiled.program.name)
    if form:
        export_compiled(compiled, form, folder, board)
    else:
        write_program(compiled.program, folder)
    manifest, report = compiled.program.manifest, compiled.quantization
    if as_json:
        quantized = {"quantization": json.loads(report.to_json())} if report else {}
        show_json({"directory": str(folder), **manifest, **quantized})
    elif not quiet:
        from tinyq.report.network import network_report

        if report:
            from tinyq.report.quantization import quantization_report

            show(quantization_report(report))
        show(network_report(manifest))
        if board:
            from tinyq.api import board_room

            typer.echo(board_room(compiled, board))
        following = f"see {folder / 'README.md'}" if form else f"tinyq verify {folder}"
        typer.echo(f"Written to {folder}. Next: {following}")


def parse_formats(texts: list[str] | tuple[()]) -> dict[str, str]:
    """Formats of weights by layer from ``LAYER=FORMAT``; raises TQ303."""
    formats = {}
    for text in texts:
        layer, _, form = text.rpartition("=")
        if not layer or not form:
            raise error("TQ303", f"--weights-layer {text}", "Write it as LAYER=pot4.")
        formats[layer] = form
    return formats


def parse_scales(texts: list[str] | tuple[()]) -> dict[str, tuple[float, int]]:
    """Scale and zero point by input from ``NAME=0.05,-3`` or ``0.05,-3``; raises TQ303."""
    scales = {}
    for text in texts:
        name, _, numbers = text.rpartition("=")
        scale, _, zero_point = numbers.partition(",")
        try:
            scales[name] = float(scale), int(zero_point or 0)
        except ValueError:
            raise error("TQ303", f"--input-scale {text}", "Write it as INPUT=0.05,-3.") from None
    return scales
