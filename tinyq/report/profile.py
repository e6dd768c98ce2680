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
NO_CYCLES = (
    "Instructions are counted. Cycles are not given: they depend on flash wait states, caches and "
    "the mix of instructions, which an emulator does not see."
)


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
    table.add_column("share", "100%", justify="right")
    for layer in profile.layers:
        hot = layer.instructions > _HOT * profile.instructions
        table.add_row(
            str(layer.index), shortened(layer.name), layer.op, layer.kernel, count(layer.macs),
            count(layer.instructions), _ratio(layer.instructions_per_mac),
            share(layer.instructions, profile.instructions), style="bold yellow" if hot else "",
        )  # fmt: skip
    return Group(table, Text(_summary(profile)), Text(hot_spots(profile)), Text(NO_CYCLES, "dim"))


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _summary(profile: Profile) -> str:
    return (
        f"{profile.name} on {profile.target}: {count(profile.instructions)} instructions an "
        f"inference, flash {size(profile.flash_bytes)} (code {count(profile.code_bytes)}), arena "
        f"{size(profile.arena_bytes)}, stack {size(profile.stack_bytes)}"
    )


def hot_spots(profile: Profile) -> str:
    """The layers that together take most of the time, in a sentence."""
    order = sorted(profile.layers, key=lambda layer: -layer.instructions)[:3]
    named = [f"{shortened(x.name)} ({share(x.instructions, profile.instructions)})" for x in order]
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
    return Group(table, Text(sizes))


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
    return Group(table, Text(sizes), Text(NO_CYCLES, "dim"))


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
