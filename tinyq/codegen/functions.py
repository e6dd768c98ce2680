"""Kernel functions of a network: rendered once for each different text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyq.codegen.environment import render
from tinyq.ops.base import KernelCall
from tinyq.select import Layer

_PLACEHOLDER = "tinyq_fn_placeholder"


@dataclass(frozen=True)
class Function:
    """A C function: its name and its text."""

    name: str
    text: str


def render_functions(layers: Sequence[Layer]) -> tuple[list[Function], list[str | None]]:
    """Functions in order of first use, and the name each layer calls (None for an alias).

    A kernel that occurs with one text is called ``tinyq_<kernel>``; with several they are numbered
    from 1.
    """
    texts: dict[str, list[str]] = {}
    order: list[tuple[str, int]] = []
    used: list[tuple[str, int] | None] = []
    rendered: dict[object, str] = {}
    for layer in layers:
        if layer.call.alias:
            used.append(None)
            continue
        text = _render(layer.call, rendered)
        variants = texts.setdefault(layer.call.kernel, [])
        if text not in variants:
            variants.append(text)
            order.append((layer.call.kernel, len(variants) - 1))
        used.append((layer.call.kernel, variants.index(text)))
    names = {key: _name(key[0], key[1], len(texts[key[0]])) for key in order}
    functions = [
        Function(names[key], texts[key[0]][key[1]].replace(_PLACEHOLDER, names[key]))
        for key in order
    ]
    return functions, [None if key is None else names[key] for key in used]


def _render(call: KernelCall, rendered: dict[object, str]) -> str:
    """Text of a call's function; calls with equal parameters are rendered once."""
    key: object
    try:
        key = (call.template, hash(call.params), call.params)
    except TypeError:  # parameters that hold arrays
        key = object()
    if key not in rendered:
        text = render(call.template, fn=_PLACEHOLDER, p=call.params)
        rendered[key] = text.strip("\n") + "\n"
    return rendered[key]


def _name(kernel: str, number: int, count: int) -> str:
    return f"tinyq_{kernel}" if count == 1 else f"tinyq_{kernel}_{number + 1}"
