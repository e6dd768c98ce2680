"""Plots of a quantization by matplotlib: values against levels, and the ranking of layers."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np

from tinyq.errors import error
from tinyq.fit import FitResult
from tinyq.ptq.params import DTYPE_RANGE
from tinyq.ptq.quality import LayerQuality, PtqReport
from tinyq.ptq.sensitivity import SensitivityReport
from tinyq.report.formats import shortened

_ROW_INCHES = 1.7
_WIDTH_INCHES = 11.0
_MOST_INCHES = 300.0  # matplotlib draws at most 2^16 pixels a side
_DPI = 100
_VALUES, _LEVELS, _CLIPPED = "tab:blue", "0.45", "tab:red"


def check_plot(path: Path) -> None:
    """Raises TQ607 for a file that is no .png, TQ610 without matplotlib."""
    if path.suffix != ".png":
        raise error("TQ607", f"the plot '{path}'", "Accepted: a .png file.")
    if importlib.util.find_spec("matplotlib") is None:
        raise error("TQ610", f"the plot '{path}' cannot be drawn")


def quality_plot(report: PtqReport) -> bytes:
    """A PNG with a row a layer: its float values against its levels, and its integer weights.

    The left panel counts the values on a logarithmic scale; levels are the marks below, and what
    the integers cannot reach is shaded. The right panel counts how often the weights take each
    integer.
    """
    layers = report.layers
    figure = _figure(len(layers))
    panels = figure.subplots(len(layers), 2, squeeze=False, width_ratios=(2, 1))
    for (left, right), layer in zip(panels, layers, strict=True):
        _draw_values(left, layer)
        _draw_weights(right, layer)
    return _png(figure)


def _draw_values(axes: Any, layer: LayerQuality) -> None:
    edges = np.linspace(layer.low, layer.high, len(layer.histogram) + 1)
    if layer.high > layer.low:
        axes.stairs(layer.histogram, edges, fill=True, color=_VALUES, alpha=0.6)
    else:
        axes.vlines(layer.low, 0, max(sum(layer.histogram), 1), color=_VALUES)
    axes.set_yscale("symlog")
    qmin, qmax = DTYPE_RANGE[layer.dtype]
    low, high = ((q - layer.zero_point) * layer.scale for q in (qmin, qmax))
    step = max(1, (qmax - qmin + 1) // 256)  # 65,536 marks of int16 would be a bar
    levels = (np.arange(qmin, qmax + 1, step) - layer.zero_point) * layer.scale
    axes.plot(levels, np.full(len(levels), -0.06), "|", color=_LEVELS, markersize=4,
              transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    left, right = min(layer.low, low), max(layer.high, high)
    for start, stop in ((left, low), (high, right)):
        if stop > start:
            axes.axvspan(start, stop, color=_CLIPPED, alpha=0.15, linewidth=0)
    axes.set_xlim(left, right)
    axes.tick_params(labelsize=6, pad=9)
    axes.set_title(
        f"{layer.operator} {shortened(layer.name)}: {layer.dtype}, {layer.sqnr_db:.1f} dB, "
        f"{layer.saturation:.2%} clipped, {layer.unused_range:.0%} of the levels unused",
        fontsize=7, loc="left",
    )  # fmt: skip


def _draw_weights(axes: Any, layer: LayerQuality) -> None:
    if not layer.weight_levels:
        axes.axis("off")
        return
    most = len(layer.weight_levels) // 2
    axes.bar(np.arange(-most, most + 1), layer.weight_levels, width=1.0, color=_VALUES, alpha=0.6)
    axes.tick_params(labelsize=6)
    axes.set_title(f"weights, {layer.weight_bits} bits, {layer.weight_sqnr_db:.1f} dB",
                   fontsize=7, loc="left")  # fmt: skip


def sensitivity_plot(report: SensitivityReport) -> bytes:
    """A PNG with the layers' errors at the output, the most sensitive at the top.

    A bar is the root mean squared error when only that layer is quantized; a mark is the error
    when all layers but it are; the line is the error when all are.
    """
    layers = report.layers
    figure = _figure(len(layers), row_inches=0.25)
    axes = figure.subplots()
    places = np.arange(len(layers))
    axes.barh(places, [x.only.rms_error for x in layers], color=_VALUES, label="only this layer")
    axes.plot([x.all_but.rms_error for x in layers], places, "|", color=_CLIPPED, markersize=9,
              markeredgewidth=2, label="all but this layer")  # fmt: skip
    axes.axvline(report.all_quantized.rms_error, color=_LEVELS, label="all layers")
    axes.set_yticks(places, [f"{x.operator} {shortened(x.name)}" for x in layers], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("root mean squared error at the output")
    figure.legend(fontsize=7, loc="outside upper center", ncols=3)
    return _png(figure)


def fit_plot(result: FitResult) -> bytes:
    """A PNG with the front of error against flash: predicted, measured, and what was chosen."""
    figure = _figure(3)
    axes = figure.subplots()
    flash = [point.prediction.flash_bytes / 1024 for point, _ in result.front]
    predicted = [result.sqnr_db(point.prediction) for point, _ in result.front]
    axes.plot(flash, predicted, "o--", color=_LEVELS, label="predicted, by sums over the layers")
    axes.plot(flash, [q.sqnr_db for _, q in result.front], "o-", color=_VALUES, label="measured")
    chosen = result.chosen
    axes.plot([chosen.flash_bytes / 1024], [chosen.quality.sqnr_db], "*", color=_CLIPPED,
              markersize=14, label="chosen, compiled")  # fmt: skip
    axes.set_xlabel("flash, KiB (compiler's estimate)")
    axes.set_ylabel("signal to noise at the output, dB")
    accuracies = [q.accuracy_quantized for _, q in result.front]
    if all(a is not None for a in accuracies) and accuracies:
        right = axes.twinx()
        right.plot(flash, [100 * a for a in accuracies if a is not None], "s:", color="tab:green",
                   markersize=4, label="accuracy")  # fmt: skip
        right.set_ylabel("accuracy, %")
    figure.legend(fontsize=7, loc="outside upper center", ncols=4)
    return _png(figure)


def _figure(rows: int, row_inches: float = _ROW_INCHES) -> Any:
    from matplotlib.figure import Figure

    height = min(1.2 + row_inches * max(rows, 1), _MOST_INCHES)
    return Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without its version, which matplotlib writes by default, the same report gives the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
