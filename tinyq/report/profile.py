"""Tables of a profile, alone or beside another."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tinyq.report.formats import count, share, shortened, size
from tinyq.verification.profile import LayerProfile, Profile

_HOT = 0.2


def profile_report(profile: Profile) -> RenderableType:
    """Every layer with its share; layers above a fifth of the time are hot."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("operator")
    table.add_column("kernel", overflow="fold")
    table.add_column("MACs", count(profile.macs), justify="right")
    table.add_column("instructions", count(profile.instructions), justify="right")
    table.add_column("per MAC", _ratio(profile.instructions_per_mac), justify="right")
    table.add_column("cycles", count(profile.cycles), justify="right")
    table.add_column("MACs/cycle", _ratio(profile.macs_per_cycle), justify="right")
    table.add_column("share", "100%", justify="right")
    whole = profile.cycles or profile.instructions
    for layer in profile.layers:
        taken = _weight(layer)
        table.add_row(
            str(layer.index), shortened(layer.name), layer.op, layer.kernel, count(layer.macs),
            count(layer.instructions), _ratio(layer.instructions_per_mac), count(layer.cycles),
            _ratio(layer.macs_per_cycle), share(taken, whole),
            style="bold yellow" if taken > _HOT * whole else "",
        )  # fmt: skip
    lines = [Text(line) for line in (_summary(profile), _speed(profile), hot_spots(profile))]
    lines += [Text(f"Note: {note}.") for note in profile.notes]
    return Group(table, *lines, Text(cycles_text(profile), "dim"))


def function_report(profile: Profile) -> RenderableType:
    """What every function costs over one inference, most cycles first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("function", overflow="fold")
    table.add_column("instructions", justify="right")
    table.add_column("cycles", justify="right")
    table.add_column("share", justify="right")
    for function in profile.functions:
        part = share(function.cycles, profile.cycles or 0)
        table.add_row(function.name, count(function.instructions), count(function.cycles), part)
    return table


def cycles_text(profile: Profile) -> str:
    """What the cycles are, and how far they have been from boards."""
    if profile.cycles is None:
        return profile.cycles_note
    core = profile.core
    timing, model = core.timing, core.pipeline or core.timing
    text = f"Instructions are counted, cycles estimated from them ({model.source})."
    if timing.boards:
        text += f" On boards: {timing.boards}"
    return text


def _weight(layer: LayerProfile) -> int:
    return layer.instructions if layer.cycles is None else layer.cycles


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _summary(profile: Profile) -> str:
    return (
        f"{profile.name} on {profile.target}: {count(profile.instructions)} instructions an "
        f"inference, flash {size(profile.flash_bytes)} (code {count(profile.code_bytes)}), arena "
        f"{size(profile.arena_bytes)}, stack {size(profile.stack_bytes)}"
    )


def _speed(profile: Profile) -> str:
    if profile.cycles is None:
        return ""
    text = f"About {count(profile.cycles)} cycles"
    if profile.milliseconds is not None:
        text += f", {profile.milliseconds:.3g} ms at {profile.clock_hz / 1e6:g} MHz"
    if profile.mac_efficiency is not None:
        text += (
            f"; {profile.macs_per_cycle:.2f} MACs a cycle, {100 * profile.mac_efficiency:.0f}% of "
            "what the core's instructions allow"
        )
    return text


def hot_spots(profile: Profile) -> str:
    """The layers that together take most of the time, in a sentence."""
    order = sorted(profile.layers, key=_weight, reverse=True)[:3]
    whole = profile.cycles or profile.instructions
    named = [f"{shortened(x.name)} ({share(_weight(x), whole)})" for x in order]
    return f"Most time is spent in {', '.join(named)}." if named else ""


def comparison_report(first: Profile, second: Profile) -> RenderableType:
    """Two profiles side by side; layers are paired by name."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    change = _change(first.instructions, second.instructions)
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("kernel", overflow="fold")
    table.add_column(_title(first), count(first.instructions), justify="right")
    table.add_column(_title(second), count(second.instructions), justify="right")
    table.add_column("change", change, justify="right")
    others = {layer.name: layer for layer in second.layers}
    for layer in first.layers:
        table.add_row(*_pair(layer, others.pop(layer.name, None)))
    for layer in others.values():
        table.add_row(shortened(layer.name), layer.kernel, "-", count(layer.instructions), "new")
    flash = _change(first.flash_bytes, second.flash_bytes)
    arena = _change(first.arena_bytes, second.arena_bytes)
    sizes = (
        f"flash {count(first.flash_bytes)} -> {count(second.flash_bytes)} bytes ({flash}), "
        f"arena {count(first.arena_bytes)} -> {count(second.arena_bytes)} bytes ({arena})"
    )
    cycles = ""
    if first.cycles and second.cycles:
        change = _change(first.cycles, second.cycles)
        cycles = f"cycles (estimates) {count(first.cycles)} -> {count(second.cycles)} ({change})"
    return Group(table, Text(sizes), Text(cycles))


def kernels_report(profiles: Mapping[str, Profile]) -> RenderableType:
    """Instructions of every layer for each choice of kernels, the fewest in bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("operator")
    table.add_column("MACs", justify="right")
    for choice, profile in profiles.items():
        table.add_column(choice, count(profile.instructions), justify="right")
    table.add_column("kernels", overflow="fold")
    for layers in zip(*(profile.layers for profile in profiles.values()), strict=True):
        fewest = min(layer.instructions for layer in layers)
        counts = [
            Text(count(x.instructions), "bold" if x.instructions == fewest else "") for x in layers
        ]
        kernels = ", ".join(dict.fromkeys(layer.kernel for layer in layers))
        first = layers[0]
        table.add_row(shortened(first.name), first.op, count(first.macs), *counts, kernels)
    sizes = "; ".join(
        f"{choice}: flash {size(p.flash_bytes)}, arena {size(p.arena_bytes)}, stack "
        f"{size(p.stack_bytes)}"
        for choice, p in profiles.items()
    )
    return Group(table, Text(sizes))


def _title(profile: Profile) -> str:
    return f"{profile.name} {profile.target}"


def _pair(layer: LayerProfile, other: LayerProfile | None) -> tuple[str, ...]:
    name = shortened(layer.name)
    if other is None:
        return name, layer.kernel, count(layer.instructions), "-", "gone"
    kernel = layer.kernel
    if other.kernel != kernel:
        kernel = f"{kernel} -> {other.kernel}"
    change = _change(layer.instructions, other.instructions)
    return name, kernel, count(layer.instructions), count(other.instructions), change


def _change(before: int, after: int) -> str:
    return f"{100 * (after - before) / before:+.1f}%" if before else "-"
