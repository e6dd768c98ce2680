"""Float against quantized: each layer and the end of the network, in numbers and in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from tinyq.errors import Diagnostic
from tinyq.ptq.data import CalibrationData
from tinyq.ptq.graph import FLOAT, Graph
from tinyq.ptq.observe import Histogram, Progress, batch_size, session
from tinyq.ptq.params import DTYPE_RANGE, FIXED_OUTPUT, ActivationParams
from tinyq.ptq.plan import Plan, channels_first
from tinyq.ptq.units import Unit

_PLOT_BINS = 64
_LOW_SQNR_DB = 15.0


@dataclass(frozen=True)
class LayerQuality:
    """One unit's output tensor: float values against what the quantized network has there.

    Attributes:
        name, operator, tensor: the unit, its ONNX operator, its first output.
        sqnr_db: 10 log10 of signal over error power; infinite if they are equal.
        cosine: cosine of the angle between both, 1 if both are zero.
        saturation: part of the float values beyond the integers' range, by half a step or more.
        unused_range: part of the integer levels beyond the lowest and highest level used.
        dead_channels: channels (axis 1) that are zero on every sample.
        channels: number of channels, 0 if the tensor has no axis 1.
        weight_bits: bits of its weights, 0 without weights.
        weight_sqnr_db: the same measure of its weights, None without weights.
        dead_filters: output channels whose weights are all zero once quantized, though some
            float weight is not.
        scale, zero_point, dtype: of the tensor.
        histogram: float values counted in 64 equal bins over [low, high].
        low, high: extremes of the float values.
        weight_levels: how often the weights take each integer, from the lowest, symmetric around
            zero; empty without weights.
    """

    name: str
    operator: str
    tensor: str
    sqnr_db: float
    cosine: float
    saturation: float
    unused_range: float
    dead_channels: int
    channels: int
    weight_bits: int
    weight_sqnr_db: float | None
    dead_filters: int
    scale: float
    zero_point: int
    dtype: str
    histogram: tuple[int, ...]
    low: float
    high: float
    weight_levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class OutputQuality:
    """The first output: relative error, and accuracy where labels are given.

    ``rms_error`` is in the output's unit; ``agreement`` is the part of the samples with the same
    largest element, None for outputs that are not [N, classes] or that have an input's shape, as an
    autoencoder's; accuracies are in [0, 1].
    """

    sqnr_db: float
    cosine: float
    rms_error: float
    mean_error: float
    agreement: float | None
    accuracy_float: float | None
    accuracy_quantized: float | None


@dataclass(frozen=True)
class CalibratorScore:
    """What one calibrator gave: error and accuracy at the output."""

    calibrator: str
    rms_error: float
    sqnr_db: float
    accuracy: float | None
    chosen: bool


@dataclass(frozen=True)
class PtqReport:
    """All that is known about the quality of a quantized model.

    ``calibrator`` is the one that was used; ``calibrators`` compares them where all were tried.
    """

    layers: tuple[LayerQuality, ...]
    output: OutputQuality
    calibrator: str
    calibrators: tuple[CalibratorScore, ...]
    samples: int
    source: str
    notices: tuple[Diagnostic, ...]
    advice: tuple[str, ...]

    def to_json(self) -> str:
        """The report as JSON; infinite ratios are null."""
        return json.dumps(finite(asdict(self)), indent=2, sort_keys=True)


def finite(value: object) -> object:
    """``value`` with infinite and undefined floats, which JSON lacks, as None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


@dataclass
class ErrorSums:
    """Running sums over pairs of arrays, for SQNR, cosine and root mean square."""

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    error: float = 0.0
    absolute: float = 0.0
    count: int = 0

    def add(self, reference: npt.NDArray[np.float32], value: npt.NDArray[np.float32]) -> None:
        """Take in two arrays of one shape."""
        a, b = reference.astype(np.float64).ravel(), value.astype(np.float64).ravel()
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.product += float(a @ b)
        difference = a - b
        self.error += float(difference @ difference)
        self.absolute += float(np.abs(difference).sum())
        self.count += a.size

    @property
    def sqnr_db(self) -> float:
        """Signal to error power in decibels."""
        if self.error == 0:
            return float("inf")
        return float(10 * np.log10(self.signal / self.error)) if self.signal else float("-inf")

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both."""
        if self.signal == 0 or self.other == 0:
            return 1.0 if self.signal == self.other else 0.0
        return float(min(1.0, self.product / np.sqrt(self.signal * self.other)))

    @property
    def rms(self) -> float:
        """Root of the mean squared error."""
        return float(np.sqrt(self.error / max(self.count, 1)))


def compare_layers(
    graph: Graph,
    units: list[Unit],
    plan: Plan,
    model: onnx.ModelProto,
    data: CalibrationData,
    histograms: dict[str, Histogram],
    size: int,
    progress: Progress | None = None,
) -> tuple[LayerQuality, ...]:
    """Quality of every unit that computes (not of those that only move values)."""
    shown = [u for u in units if u.kind in ("linear", "op", "concat")]
    tensors = [u.outputs[0] for u in shown]
    written = _dequantized_names(model, tensors)
    reference = session(graph.to_model(tensors))
    quantized = session(_expose(model, [written[t] for t in tensors]))
    sums = {t: ErrorSums() for t in tensors}
    outside = dict.fromkeys(tensors, 0)
    extremes: dict[str, tuple[int, int]] = {}
    done, size = 0, batch_size(model, size)
    for feed in data.batches(size):
        truth = reference.run(tensors, feed)
        found = quantized.run([written[t] for t in tensors], feed)
        for tensor, a, b in zip(tensors, truth, found, strict=True):
            params = plan.activations[tensor]
            sums[tensor].add(a, b)
            outside[tensor] += _saturated(a, params)
            extremes[tensor] = _levels(b, params, extremes.get(tensor))
        done += size
        if progress is not None:
            progress("compare", min(done, data.count), data.count)
    return tuple(
        _layer(graph, u, plan, sums[t], outside[t], extremes[t], histograms[t])
        for u, t in zip(shown, tensors, strict=True)
    )


def _dequantized_names(model: onnx.ModelProto, tensors: list[str]) -> dict[str, str]:
    """Float tensor to the quantized model's tensor that stands for it."""
    present = {name for node in model.graph.node for name in node.output}
    return {t: n if (n := f"{t}_dequantized") in present else t for t in tensors}


def _expose(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, FLOAT, None) for name in dict.fromkeys(names)
    )
    return copy


def _saturated(x: npt.NDArray[np.float32], params: ActivationParams) -> int:
    low, high = params.real_range
    half = params.scale / 2
    return int(np.count_nonzero((x < low - half) | (x > high + half)))


def _levels(
    values: npt.NDArray[np.float32], params: ActivationParams, before: tuple[int, int] | None
) -> tuple[int, int]:
    low = int(np.rint(float(values.min()) / params.scale)) + params.zero_point
    high = int(np.rint(float(values.max()) / params.scale)) + params.zero_point
    return (low, high) if before is None else (min(low, before[0]), max(high, before[1]))


def _layer(
    graph: Graph,
    unit: Unit,
    plan: Plan,
    sums: ErrorSums,
    outside: int,
    levels: tuple[int, int],
    histogram: Histogram,
) -> LayerQuality:
    tensor = unit.outputs[0]
    params = plan.activations[tensor]
    qmin, qmax = DTYPE_RANGE[params.dtype]
    alive = histogram.alive
    bits, weight_sqnr, dead_filters = _weight_quality(graph, unit, plan)
    return LayerQuality(
        unit.name, unit.operator, tensor, sums.sqnr_db, sums.cosine,
        outside / max(sums.count, 1), 1 - (levels[1] - levels[0] + 1) / (qmax - qmin + 1),
        0 if alive is None else int((~alive).sum()), 0 if alive is None else len(alive),
        bits, weight_sqnr, dead_filters,
        params.scale, params.zero_point, params.dtype,
        _plot_counts(histogram), histogram.low, histogram.high, _weight_levels(unit, plan),
    )  # fmt: skip


def _weight_quality(graph: Graph, unit: Unit, plan: Plan) -> tuple[int, float | None, int]:
    if unit.kind != "linear" or unit.name in plan.precision.float_units:
        return 0, None, 0
    weights = plan.weights[unit.name]
    float_weight = graph.initializers[unit.weight]
    sums = ErrorSums()
    sums.add(float_weight, weights.dequantized)
    rows = channels_first(weights.integers, weights.axis).reshape(len(weights.scales), -1)
    float_rows = channels_first(float_weight, weights.axis).reshape(len(weights.scales), -1)
    dead = ~rows.any(axis=1) & float_rows.any(axis=1)
    return weights.bits, sums.sqnr_db, int(dead.sum())


def _weight_levels(unit: Unit, plan: Plan) -> tuple[int, ...]:
    if unit.kind != "linear" or unit.name in plan.precision.float_units:
        return ()
    weights = plan.weights[unit.name]
    most = max(-weights.levels[0], weights.levels[-1])
    counts = np.bincount(weights.integers.astype(np.int64).ravel() + most, minlength=2 * most + 1)
    return tuple(int(c) for c in counts)


def _plot_counts(histogram: Histogram) -> tuple[int, ...]:
    """The histogram in 64 equal bins over [low, high]."""
    counts = np.zeros(_PLOT_BINS, np.int64)
    if histogram.high <= histogram.low:
        return (histogram.total, *counts[1:].tolist())
    width = (histogram.high - histogram.low) / _PLOT_BINS
    index = np.floor((histogram.centers - histogram.low) / width).astype(np.int64)
    np.add.at(counts, np.clip(index, 0, _PLOT_BINS - 1), histogram.counts)
    counts[int(np.clip(-histogram.low // width, 0, _PLOT_BINS - 1))] += histogram.zeros
    return tuple(int(c) for c in counts)


def compare_outputs(
    reference: npt.NDArray[np.float32],
    quantized: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64] | None,
    is_input: bool = False,
) -> OutputQuality:
    """Quality of the first output on the same samples [N, ...].

    ``is_input``: it has an input's shape, as an autoencoder's: its elements are no classes.
    """
    sums = ErrorSums()
    sums.add(reference, quantized)
    classes = reference.ndim == 2 and reference.shape[1] > 1 and not is_input
    agreement = None
    if classes:
        agreement = float(np.mean(reference.argmax(axis=1) == quantized.argmax(axis=1)))
    return OutputQuality(
        sums.sqnr_db, sums.cosine, sums.rms, sums.absolute / max(sums.count, 1), agreement,
        accuracy(reference, labels), accuracy(quantized, labels),
    )  # fmt: skip


def accuracy(
    outputs: npt.NDArray[np.float32], labels: npt.NDArray[np.int64] | None
) -> float | None:
    """Part of the samples whose largest output is their label; None without labels or classes."""
    if labels is None or outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    return float(np.mean(outputs.argmax(axis=1) == labels))


def advise(layers: tuple[LayerQuality, ...], output: OutputQuality, calibrator: str) -> list[str]:
    """What the figures suggest, in words; empty if nothing stands out."""
    advice = []
    for layer in layers:
        if layer.saturation > 0.01 and layer.operator not in FIXED_OUTPUT:
            wider = "max" if calibrator != "max" else "more samples"
            advice.append(
                f"{layer.operator} '{layer.name}' clips {layer.saturation:.1%} of its output: "
                f"try {wider}"
            )
        if layer.unused_range > 0.5 and layer.dtype != "int16" and layer.channels:
            advice.append(
                f"{layer.operator} '{layer.name}' leaves {layer.unused_range:.0%} of its levels "
                "unused: try the percentile or mse calibrator"
            )
        if layer.dead_filters:
            advice.append(
                f"{layer.operator} '{layer.name}': all weights of {layer.dead_filters} output "
                f"channels round to zero at {layer.weight_bits} bits: give it more bits, or "
                "equalize"
            )
    worst = [layer for layer in layers if layer.sqnr_db < _LOW_SQNR_DB]
    if worst:
        first = min(worst, key=lambda layer: layer.sqnr_db)
        advice.append(
            f"{len(worst)} layers have a signal to noise ratio below {_LOW_SQNR_DB:.0f} dB, the "
            f"lowest {first.sqnr_db:.1f} dB at {first.operator} '{first.name}': see "
            "`tinyq sensitivity`, or try bias correction and learned rounding"
        )
    return advice + _accuracy_advice(output)


def _accuracy_advice(output: OutputQuality) -> list[str]:
    if output.accuracy_float is None or output.accuracy_quantized is None:
        return []
    lost = output.accuracy_float - output.accuracy_quantized
    if lost <= 0.01:
        return []
    return [
        f"accuracy falls by {lost:.1%}: try --calibrator all, --bias-correction, "
        "--round adaround, more bits for the most sensitive layers, or training with quantization"
    ]
