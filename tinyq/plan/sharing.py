"""Tensors that lie within others, so that slices and joins need no code.

A slice that is one run of its input is part of the input's memory; a concatenation along the
outermost axis is written by the producers of its inputs. Each tensor can lie within one other.
"""

from __future__ import annotations

from dataclasses import replace

from tinyq.ir import Value
from tinyq.ops.base import KernelCall
from tinyq.select import Layer, Schedule

VIEW_ALIGNMENT = 4
"""Of tensors within others, in bytes: a word, so that copies and loads of words stay fast."""


def share_memory(schedule: Schedule) -> Schedule:
    """The schedule in which every layer that can do without code has none.

    The same object when there is no such layer.
    """
    parts: dict[Value, tuple[Value, int]] = {}
    layers = [_shared(layer, parts) for layer in schedule.layers]
    if all(a is b for a, b in zip(layers, schedule.layers, strict=True)):
        return schedule
    return replace(schedule, layers=tuple(layers))


def _shared(layer: Layer, parts: dict[Value, tuple[Value, int]]) -> Layer:
    """The layer without code if its tensors can share memory; ``parts`` are (whole, offset)."""
    sharing = layer.call.sharing
    if sharing is None:
        return layer
    if sharing.whole == "input":
        found = {layer.outputs[0]: (layer.inputs[0], sharing.offsets[0])}
        names = layer.inputs[0].name
    else:
        found = {v: (layer.outputs[0], at) for v, at in
                 zip(layer.inputs, sharing.offsets, strict=True)}  # fmt: skip
        names = f"its {len(layer.inputs)} inputs"
        if len(found) < len(layer.inputs) or any(v in parts for v in found):
            return layer
    wanted = [at % max(VIEW_ALIGNMENT, v.type.dtype.bytes) for v, (_, at) in found.items()]
    if any(wanted) and not layer.call.alias:
        return layer
    parts.update(found)
    if layer.call.alias:
        return layer
    return replace(layer, call=_without_code(layer.call, names))


def _without_code(call: KernelCall, shares: str) -> KernelCall:
    return replace(
        call, alias=True, constants=(), cores=(), includes=(), instructions=0, code_bytes=0,
        scratch_bytes=0, reason=f"no code: shares memory of {shares}",
    )  # fmt: skip
