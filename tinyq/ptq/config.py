"""Options of post-training quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tinyq.errors import Diagnostic, TinyqError

Calibrator = Literal["max", "percentile", "entropy", "mse"]
ActivationType = Literal["int8", "uint8", "int16"]
CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)

_CHOICES = {
    "calibrator": (*CALIBRATORS, "all"),
    "weights": ("int8", "int4"),
    "activations": get_args(ActivationType),
    "rounding": ("nearest", "adaround"),
    "io": ("float", "integer"),
}


@dataclass(frozen=True)
class PtqConfig:
    """How a float model is quantized.

    Attributes:
        calibrator: how an activation's range follows from its histogram; ``all`` tries each and
            keeps the best by accuracy (labels given) or by output error.
        percentile: percent of the values that the percentile calibrator keeps inside.
        weights: ``int4`` keeps integers in [-7, 7], stored in int8 tensors at opsets that have no
            4-bit type; the file's metadata says so.
        activations: type of every activation; ``int16`` needs opset 21 and is symmetric.
        per_channel: one weight scale for each output channel, instead of one for the layer.
        symmetric: zero points of activations in the middle of the type's range.
        bias_correction: subtract the mean error that quantization adds to each channel; with 8-bit
            weights it lowered the output's error on every network tried (docs/quantization.md).
        equalize: cross-layer equalisation of weight ranges, and absorption of large biases
            (Nagel et al., "Data-Free Quantization", 2019).
        rounding: ``adaround`` learns whether each weight goes up or down (Nagel et al., "Up or
            Down?", 2020) on the second moments of the layer's input.
        edges_int8: with 4-bit weights, keep 8 bits in the first and the last layer.
        io: ``integer`` strips QuantizeLinear and DequantizeLinear from the graph's edges.
        input_range: lowest and highest input value, for made-up inputs without calibration data.
        seed: of the made-up inputs.
        batch_size: samples in one run of onnxruntime, where the model's batch is not fixed.
    """

    calibrator: str = "mse"
    percentile: float = 99.99
    weights: str = "int8"
    activations: str = "int8"
    per_channel: bool = True
    symmetric: bool = False
    bias_correction: bool = True
    equalize: bool = False
    rounding: str = "nearest"
    edges_int8: bool = True
    io: str = "float"
    input_range: tuple[float, float] | None = None
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        found = [
            f"{name} is {getattr(self, name)!r}; accepted: {', '.join(choices)}"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        if not 50.0 < self.percentile <= 100.0:
            found.append(f"percentile is {self.percentile}; accepted: above 50, at most 100")
        if self.batch_size < 1:
            found.append(f"batch_size is {self.batch_size}; accepted: 1 or more")
        if self.input_range is not None and not self.input_range[0] < self.input_range[1]:
            found.append(f"input_range is {self.input_range}; the first must be below the second")
        if found:
            raise TinyqError(Diagnostic("TQ607", text) for text in found)
