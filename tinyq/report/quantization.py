"""Tables of a post-training quantization and of a sensitivity analysis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tinyq.errors import Diagnostic
from tinyq.ptq.quality import OutputQuality, PtqReport
from tinyq.ptq.sensitivity import SearchResult, SensitivityReport
from tinyq.report.formats import shortened


def quantization_report(report: PtqReport) -> RenderableType:
    """Every layer's error, the output's, what was noticed and what could be done."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("layer", "operator", "SQNR dB", "cosine", "saturated", "unused", "weights", "dead")
    for name in columns:
        right = name not in ("layer", "operator", "weights")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for layer in report.layers:
        table.add_row(
            shortened(layer.name), layer.operator, f"{layer.sqnr_db:.1f}", f"{layer.cosine:.5f}",
            f"{100 * layer.saturation:.2f}%", f"{100 * layer.unused_range:.0f}%",
            f"int{layer.weight_bits}" if layer.weight_bits else "-",
            f"{layer.dead_channels}/{layer.channels}" if layer.dead_channels else "-",
        )  # fmt: skip
    lines = [Text(line) for line in _notices(report.notices)]
    lines += [Text(f"Advice: {line}") for line in report.advice]
    for score in report.calibrators:
        kept = ", kept" if score.chosen else ""
        correct = "" if score.accuracy is None else f", accuracy {100 * score.accuracy:.2f}%"
        lines.append(Text(f"{score.calibrator}: rms error {score.rms_error:.4g}{correct}{kept}"))
    lines.append(Text(f"Calibrated with '{report.calibrator}' on {report.samples} samples: "))
    lines.append(Text(quality_text(report.output), "bold"))
    return Group(table, *lines)


def _notices(notices: Iterable[Diagnostic]) -> Iterator[str]:
    """A line a code: where it was found, and what to do."""
    by_code: dict[str, list[Diagnostic]] = {}
    for notice in notices:
        by_code.setdefault(notice.code, []).append(notice)
    for code, found in by_code.items():
        places = [f"{d.operator} '{d.node}': {d.found}" if d.node else d.found for d in found]
        yield f"{code} {'; '.join(places)}. {found[0].remedy or found[0].info.remedy}"


def quality_text(quality: OutputQuality) -> str:
    """The output's quality in one line."""
    parts = [f"SQNR {quality.sqnr_db:.1f} dB", f"rms error {quality.rms_error:.4g}"]
    if quality.agreement is not None:
        parts.append(f"same class on {100 * quality.agreement:.2f}% of the samples")
    if quality.accuracy_float is not None and quality.accuracy_quantized is not None:
        parts.append(
            f"accuracy {100 * quality.accuracy_quantized:.2f}% "
            f"(float {100 * quality.accuracy_float:.2f}%)"
        )
    return ", ".join(parts)


def search_report(found: SearchResult) -> RenderableType:
    """What was tried to keep the accuracy, and what was kept."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("layers raised", "to", "lost"):
        table.add_column(name, justify="right" if name != "to" else "left")
    for step in found.steps:
        table.add_row(str(len(step.raised)), step.to, f"{100 * step.loss:.3f}%")
    kept = ", ".join(f"{shortened(name)} ({to})" for name, to in found.raised) or "nothing"
    verdict = "kept" if found.reached else "NOT kept, this is the best that was seen"
    return Group(
        table, Text(f"Raised: {kept}"),
        Text(f"The bound was {verdict}: {100 * found.loss:.3f}% lost", "bold"),
    )  # fmt: skip


def sensitivity_report(report: SensitivityReport) -> RenderableType:
    """Layers, the most sensitive first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("operator")
    table.add_column("only this layer quantized", overflow="fold")
    table.add_column("all but this layer", overflow="fold")
    for layer in report.layers:
        table.add_row(
            shortened(layer.name), layer.operator, quality_text(layer.only),
            quality_text(layer.all_but),
        )  # fmt: skip
    lines = [Text(f"{d.code} {d.found}") for d in report.notices]
    return Group(
        table, *lines, Text(f"All quantized: {quality_text(report.all_quantized)}", "bold")
    )
