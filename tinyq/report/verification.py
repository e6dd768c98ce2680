"""The report of a verification."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tinyq.report.formats import count, share, shortened, size
from tinyq.verification.compare import Comparison
from tinyq.verification.report import DeviceReport, LayerReport, VerifyReport

_WIDEST_HISTOGRAM = 12


def comparison_table(report: VerifyReport) -> Table:
    """Every pair of runs that was compared; gaps are marked as information."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("compared", "integers", "different", "largest", "samples", "differences"):
        right = name in ("integers", "different", "largest", "samples")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for comparison in report.comparisons:
        told = report.steps is not None and comparison.expected == report.oracle
        bad = not comparison.equal and not told
        prefix = "for information: " if told else ""
        table.add_row(*_row(comparison, prefix), style="bold red" if bad else "")
    for comparison in report.gaps:
        table.add_row(*_row(comparison, "for information: "), style="dim")
    return table


def _row(comparison: Comparison, prefix: str = "") -> tuple[str, ...]:
    return (
        f"{prefix}{comparison.expected} and {comparison.got}",
        count(comparison.compared),
        count(comparison.different),
        str(comparison.max_difference),
        count(comparison.samples_different),
        histogram_text(comparison) if comparison.different else "none",
    )


def histogram_text(comparison: Comparison) -> str:
    """``-1: 12, +1: 7``: how many elements differ by how much."""
    shown = comparison.histogram[:_WIDEST_HISTOGRAM]
    text = ", ".join(f"{delta:+d}: {count(number)}" for delta, number in shown)
    more = len(comparison.histogram) - len(shown)
    return f"{text}, and {more} more sizes" if more else text


def layers_table(report: VerifyReport) -> Table:
    """Layer by layer: agreement and exact instruction counts."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("layer", no_wrap=True)
    table.add_column("operator")
    table.add_column("kernel", overflow="fold")
    for name in ("elements", "C ≠ reference", "reference ≠ oracle", "instructions", "share"):
        table.add_column(name, justify="right")
    total = sum(layer.instructions or 0 for layer in report.layers)
    for layer in report.layers:
        bad = bool(layer.different or layer.oracle_different)
        table.add_row(
            str(layer.index),
            shortened(layer.name),
            layer.op,
            layer.kernel,
            count(layer.elements),
            count(layer.different),
            count(layer.oracle_different),
            count(layer.instructions),
            share(layer.instructions or 0, total) if layer.instructions is not None else "-",
            style="bold red" if bad else "",
        )
    return table


def first_difference(report: VerifyReport) -> str:
    """Where the runs first part; empty when they agree."""
    if report.steps is not None and report.equal:
        return ""
    wrong = next((c for c in report.comparisons if not c.equal), None)
    layer = next((x for x in report.layers if x.different or x.oracle_different), None)
    parts = []
    if layer is not None:
        parts.append(f"The first layer that differs is {_layer(layer)}.")
    if wrong is not None and wrong.first is not None:
        f = wrong.first
        parts.append(
            f"First difference between {wrong.expected} and {wrong.got}: output '{f.tensor}', "
            f"sample {f.sample}, element {f.element}: {f.expected} and {f.got}."
        )
    if parts and layer is None:
        parts.append("`--layers` names the first layer that differs.")
    return " ".join(parts)


def _layer(layer: LayerReport) -> str:
    return f"{layer.index}, {layer.op} '{layer.name}' ({layer.kernel})"


def figures(report: VerifyReport) -> Table:
    """Accuracy, memory and instructions, one a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column()
    if report.accuracy is not None:
        table.add_row("accuracy", _accuracy(report))
    if report.instructions_per_inference is not None:
        table.add_row("instructions", f"{_instructions(report)} an inference (counted)")
    if report.device is not None:
        table.add_row("latency", _latency(report.device))
        table.add_row("golden samples", _golden(report.device))
        table.add_row("link", _link(report.device))
    if report.flash_bytes is not None:
        parts = f"code {count(report.code_bytes)}, constants {count(report.constant_bytes)}"
        table.add_row("flash", f"{size(report.flash_bytes)}: {parts}")
    if report.ram_bytes is not None:
        parts = f"arena {count(report.arena_bytes)}, stack {count(report.stack_bytes)} (measured; "
        parts += f"{count(report.stack_bound_bytes)} at most)"
        table.add_row("RAM", f"{size(report.ram_bytes)}: {parts}")
    else:
        table.add_row("arena", size(report.arena_bytes))
    table.add_row("samples", f"{count(report.samples)} ({report.sample_source})")
    table.add_row("target", f"{report.target} on {_where(report)}; this machine: {report.host}")
    if report.compiler:
        table.add_row("compiler", report.compiler)
    for note in report.notes:
        table.add_row("note", note)
    table.add_row("time", f"{report.seconds:.1f} s")
    return table


def _latency(device: DeviceReport) -> str:
    if device.cycles is None:
        return "the core has no cycle counter that moves"
    text = f"{count(device.cycles)} cycles ({device.counter}"
    if device.least_cycles != device.cycles:
        text += f"; fewest {count(device.least_cycles)}"
    text += ")"
    if device.milliseconds is None:
        text += "; the firmware does not know the core's clock"
    else:
        text += f", {device.milliseconds:.3f} ms at {device.core_hz / 1e6:g} MHz, its clock here"
    if device.board_hz:
        # Not a promise: at a higher clock flash makes the core wait.
        best = 1e3 * device.cycles / device.board_hz
        text += f"; at {device.board_hz / 1e6:g} MHz at least {best:.3f} ms"
    return text


def _golden(device: DeviceReport) -> str:
    verdict = "equal" if device.golden_passed else "DIFFERENT"
    return f"{device.golden_samples} on the board, crc 0x{device.golden_crc}: {verdict}"


def _link(device: DeviceReport) -> str:
    return (
        f"{device.port}, {device.baud} baud; {count(device.retries)} requests repeated, "
        f"{count(device.reconnects)} reconnects"
    )


def _where(report: VerifyReport) -> str:
    return report.emulator.replace(",", " and ")


def _instructions(report: VerifyReport) -> str:
    """The count, or each emulator's beside the others'."""
    if len(report.runs) < 2:
        return count(report.instructions_per_inference)
    counts = [f"{r.emulator} {count(r.instructions_per_inference)}" for r in report.runs]
    return ", ".join(counts)


def _accuracy(report: VerifyReport) -> str:
    text = f"{100 * (report.accuracy or 0):.2f}%"
    if report.oracle_accuracy is not None:
        text += f" ({report.oracle}: {100 * report.oracle_accuracy:.2f}%)"
    return text


def steps_text(report: VerifyReport) -> str:
    """What the layers gave on the oracle's own inputs; empty where outputs were compared."""
    steps = report.steps
    if steps is None:
        return ""
    text = (
        f"{report.oracle} computes layers with int16 tensors in float32. On its own inputs, "
        f"{count(steps.different)} of {count(steps.compared)} integers of {steps.layers} layers "
        f"differ from the exact result, by {steps.largest} at most"
    )
    if steps.unexplained:
        names = ", ".join(steps.unexplained_layers[:3])
        return f"{text}; {count(steps.unexplained)} beyond float32's error, in {names}."
    return f"{text}, all within float32's error of a rounding boundary."


def verdict(report: VerifyReport) -> Text:
    """The one line that matters."""
    place = report.device.port if report.device is not None else _where(report)
    if report.equal and report.steps is not None:
        return Text(
            f"EQUAL: the integer reference and the C on {place} agree on all "
            f"{count(report.outputs_compared)} output integers, and with {report.oracle} to its "
            "rounding on every layer.",
            "bold green",
        )
    if report.equal:
        return Text(
            f"EQUAL: {report.oracle}, the integer reference and the C on {place} agree "
            f"on all {count(report.outputs_compared)} output integers.",
            "bold green",
        )
    if report.device is not None and not report.device.golden_passed:
        return Text("DIFFERENT: the board fails its own golden samples.", "bold red")
    return Text(
        f"DIFFERENT: {count(report.outputs_different)} of {count(report.outputs_compared)} output "
        f"integers differ from {report.oracle}'s, by {report.max_difference} at most.",
        "bold red",
    )


def verify_report(report: VerifyReport) -> RenderableType:
    """The whole report of a verification, the verdict last."""
    parts: list[RenderableType] = [layers_table(report)] if report.layers else []
    parts += [comparison_table(report), figures(report)]
    if report.steps is not None:
        parts.append(Text(steps_text(report)))
    where = first_difference(report)
    if where:
        parts.append(Text(where, "red"))
    return Group(*parts, verdict(report))
