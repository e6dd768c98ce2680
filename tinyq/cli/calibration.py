"""Options that say how a float model is quantized, shared by the verbs that do it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tinyq.errors import error

if TYPE_CHECKING:
    from onnx import ModelProto

    from tinyq.ptq import CalibrationData, ImageOptions

Calib = Annotated[
    Path | None,
    typer.Option(metavar="DATA", help=".npy, .npz (`x`, `y`), or a folder of samples or images."),
]
Calibrator = Annotated[
    Literal["max", "percentile", "entropy", "mse", "all"],
    typer.Option(help="How ranges of activations are found; all tries each and keeps the best."),
]
Weights = Annotated[Literal["int8", "int4"], typer.Option(help="Type of the weights.")]
Activations = Annotated[
    Literal["int8", "uint8", "int16"], typer.Option(help="Type of the activations.")
]
Rounding = Annotated[
    Literal["nearest", "adaround"],
    typer.Option("--round", help="How weights are rounded; adaround learns it from the samples."),
]
BiasCorrection = Annotated[
    bool,
    typer.Option(
        "--bias-correction/--no-bias-correction", help="Correct the mean error of every channel."
    ),
]
PerTensor = Annotated[
    bool, typer.Option("--per-tensor", help="One weight scale a layer, not one a channel.")
]
Equalize = Annotated[bool, typer.Option("--equalize", help="Equalise ranges between layers.")]
Labels = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="Classes of the samples: .npy, .npz (`y`), .csv (`file,class`), or `subfolders`.",
    ),
]
Layout = Annotated[
    Literal["nchw", "nhwc"] | None,
    typer.Option(help="Layout of the samples' arrays, or of the model's input for images."),
]
Mean = Annotated[
    str, typer.Option(metavar="0.5,0.5,0.5", help="Images: subtracted from pixels in 0 to 1.")
]
Std = Annotated[str, typer.Option(metavar="0.5,0.5,0.5", help="Images: divided by, after --mean.")]
Size = Annotated[
    str, typer.Option(metavar="96x96", help="Images: height and width, where the model has any.")
]


def fixed(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path | ModelProto:
    """The model with these shapes of its inputs; the file itself where none is given."""
    from tinyq.ptq import with_shapes

    return with_shapes(model, shapes) if shapes else model


def load(
    model: Path | ModelProto,
    calib: Path | None,
    *,
    labels: str = "",
    layout: str | None = None,
    mean: str = "",
    std: str = "",
    size: str = "",
) -> CalibrationData | None:
    """The samples that the options name; None without ``calib``. Raises TQ604 to TQ609."""
    from tinyq.ptq import inputs_of, load_calibration

    images = _images(layout, mean, std, size)
    if calib is None:
        given = {"--labels": labels, "--layout": layout, "--mean": mean, "--std": std,
                 "--size": size}  # fmt: skip
        lonely = [option for option, value in given.items() if value]
        if lonely:
            raise error("TQ607", f"{', '.join(lonely)} without --calib", "Add --calib DATA.")
        return None
    return load_calibration(calib, inputs_of(model), images, labels or None)


def _images(layout: str | None, mean: str, std: str, size: str) -> ImageOptions:
    from tinyq.ptq import ImageOptions

    plain = ImageOptions()
    return ImageOptions(
        mean=_numbers("mean", mean) or plain.mean,
        std=_numbers("std", std) or plain.std,
        size=_size(size) if size else None,
        layout=layout,
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise error("TQ607", f"--{option} {text}", "Write it as 0.5 or 0.5,0.5,0.5.") from None


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise error("TQ607", f"--size {text}", "Write height and width as 96x96.")
    return int(parts[0]), int(parts[1])


def fraction(option: str, text: str) -> float:
    """A share of 1 from ``0.5%`` or ``0.005``. Raises TQ607."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise error("TQ607", f"--{option} {text}", "Write it as 0.5% or 0.005.")
    return value
