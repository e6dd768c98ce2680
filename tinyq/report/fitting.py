"""Tables of a fit under limits: the layers' forms, the front, and what was reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tinyq.fit import FORMS, FitResult
from tinyq.ptq.quality import OutputQuality
from tinyq.report.formats import count, shortened, size
from tinyq.report.quantization import quality_text


def fit_report(result: FitResult) -> RenderableType:
    """The chosen form of every layer, the front, and the compiler's figures of the choice."""
    chosen = result.chosen
    return Group(
        _layers(result),
        _front(result),
        Text(f"int8 everywhere: {quality_text(result.before)}"),
        Text(
            f"Chosen, kernels for {result.goal.value}: flash {size(chosen.flash_bytes)} (predicted "
            f"{count(chosen.predicted.flash_bytes)}), arena {size(chosen.arena_bytes)}, "
            f"{count(chosen.cycles)} cycles (predicted {count(chosen.predicted.cycles)})"
        ),
        Text(f"On {result.samples} samples: {quality_text(chosen.quality)}", "bold"),
    )


def _layers(result: FitResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("operator")
    table.add_column("weights")
    table.add_column("constants", justify="right")
    table.add_column("error added", justify="right")
    for layer in result.problem.layers:
        form = result.chosen.forms[layer.name]
        option = next(o for o in layer.options if o.form == form)
        table.add_row(
            shortened(layer.name), layer.operator, form, count(option.constant_bytes),
            f"{option.error:.3g}",
        )  # fmt: skip
    return table


def _front(result: FitResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="error against flash")
    for name in ("flash", "predicted dB", "measured dB", _score_name(result.before)):
        table.add_column(name, justify="right")
    table.add_column("weights", overflow="fold")
    for point, quality in result.front:
        table.add_row(
            count(point.prediction.flash_bytes),
            f"{result.sqnr_db(point.prediction):.1f}",
            f"{quality.sqnr_db:.1f}",
            _score(quality),
            _summary(result.problem.forms(point.choice)),
        )
    return table


def _score_name(quality: OutputQuality) -> str:
    if quality.accuracy_quantized is not None:
        return "accuracy"
    return "rms error" if quality.agreement is None else "same class"


def _score(quality: OutputQuality) -> str:
    if quality.accuracy_quantized is not None:
        return f"{100 * quality.accuracy_quantized:.2f}%"
    if quality.agreement is not None:
        return f"{100 * quality.agreement:.2f}%"
    return f"{quality.rms_error:.4g}"


def _summary(forms: Mapping[str, str]) -> str:
    """``4 int8, 2 int4``, widest first."""
    found = Counter(forms.values())
    return ", ".join(f"{found[form]} {form}" for form in FORMS if found[form])
