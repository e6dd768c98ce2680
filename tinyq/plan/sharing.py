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
    parts: dict[Value, Value] = {}
    layers = list(schedule.layers)
    # A slice that a concatenation reads is copied into it: less than the concatenation would copy.
    for turn in (_has_no_code, _joins, _slices):
        for k, layer in enumerate(layers):
            if turn(layer):
                layers[k] = _shared(layer, parts)
    if all(a is b for a, b in zip(layers, schedule.layers, strict=True)):
        return schedule
    return replace(schedule, layers=tuple(layers))


def _has_no_code(layer: Layer) -> bool:
    return layer.call.alias


def _joins(layer: Layer) -> bool:
    sharing = layer.call.sharing
    return not layer.call.alias and sharing is not None and sharing.whole == "output"


def _slices(layer: Layer) -> bool:
    sharing = layer.call.sharing
    return not layer.call.alias and sharing is not None and sharing.whole == "input"


def _shared(layer: Layer, parts: dict[Value, Value]) -> Layer:
    """The layer without code if its tensors can share memory; ``parts`` are within which others."""
    sharing = layer.call.sharing
    assert sharing is not None
    if sharing.whole == "input":
        inside, whole, names = layer.outputs[:1], layer.inputs[0], layer.inputs[0].name
    else:
        inside, whole = layer.inputs, layer.outputs[0]
        names = f"its {len(inside)} inputs"
    if not layer.call.alias:
        steps = [max(VIEW_ALIGNMENT, v.type.dtype.bytes) for v in inside]
        if any(at % step for at, step in zip(sharing.offsets, steps, strict=True)):
            return layer
        if len(set(inside)) < len(inside) or any(v in parts for v in inside):
            return layer
    parts.update(dict.fromkeys(inside, whole))
    if layer.call.alias:
        return layer
    return replace(layer, call=_without_code(layer.call, names))


def _without_code(call: KernelCall, shares: str) -> KernelCall:
    return replace(
        call, alias=True, constants=(), cores=(), includes=(), instructions=0, code_bytes=0,
        scratch_bytes=0, reason=f"no code: shares memory of {shares}",
    )  # fmt: skip
