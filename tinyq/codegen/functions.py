"""Kernel functions of a network: rendered once for each different text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tinyq.codegen.environment import render
from tinyq.ops.base import NamedParams
from tinyq.select import Layer

_PLACEHOLDER = "tinyq_fn_placeholder"


@dataclass(frozen=True)
class Function:
    """A C function: its name and its text."""

    name: str
    text: str


class _Texts:
    """Different texts of each kernel, numbered in order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {}
        self.order: list[tuple[str, int]] = []

    def add(self, kernel: str, text: str) -> tuple[str, int]:
        """Key of the function with this text."""
        variants = self._numbers.setdefault(kernel, {})
        if text not in variants:
            variants[text] = len(variants)
            self.order.append((kernel, variants[text]))
        return kernel, variants[text]

    def functions(self) -> dict[tuple[str, int], Function]:
        """The named functions: ``tinyq_<kernel>``, numbered from 1 when there are several."""
        made = {}
        for kernel, number in self.order:
            variants = self._numbers[kernel]
            name = f"tinyq_{kernel}" if len(variants) == 1 else f"tinyq_{kernel}_{number + 1}"
            text = list(variants)[number].replace(_PLACEHOLDER, name)
            made[kernel, number] = Function(name, text)
        return made


def render_functions(layers: Sequence[Layer]) -> tuple[list[Function], list[str | None]]:
    """Functions in order of definition, and the name each layer calls (None for an alias).

    Inner functions come first. A kernel that occurs with one text is called ``tinyq_<kernel>``;
    with several they are numbered from 1.
    """
    rendered: dict[object, str] = {}
    outer = _Texts()
    simple, simple_names = _cores(layers, [{} for _ in layers], rendered, calls_others=False)
    nested, nested_names = _cores(layers, simple_names, rendered, calls_others=True)
    used: list[tuple[str, int] | None] = []
    for layer, names, more in zip(layers, simple_names, nested_names, strict=True):
        call = layer.call
        if call.alias:
            used.append(None)
            continue
        roles = {**names, **more}
        used.append(outer.add(call.kernel, _render(call.template, call.params, roles, rendered)))
    functions = outer.functions()
    return (
        [*simple, *nested, *functions.values()],
        [None if key is None else functions[key].name for key in used],
    )


def _cores(
    layers: Sequence[Layer], known: Sequence[Mapping[str, str]], rendered: dict[object, str],
    *, calls_others: bool,
) -> tuple[list[Function], list[dict[str, str]]]:  # fmt: skip
    """The inner functions of one kind, and for every layer their names by role.

    ``known``: for every layer the names of those that they call.
    """
    texts = _Texts()
    keys = [
        [(c.role, texts.add(c.kernel, _render(c.template, c.params, names, rendered)))
         for c in layer.call.cores if c.calls_others is calls_others]
        for layer, names in zip(layers, known, strict=True)
    ]  # fmt: skip
    made = texts.functions()
    return list(made.values()), [{role: made[key].name for role, key in of} for of in keys]


def _render(
    template: str, params: Any, names: Mapping[str, str], rendered: dict[object, str]
) -> str:
    """Text of a function; equal templates and parameters are rendered once."""
    key: object
    try:
        key = (template, hash(params), params, tuple(sorted(names.items())))
    except TypeError:  # parameters that hold arrays
        key = object()
    if key not in rendered:
        named = {}
        if isinstance(params, NamedParams):
            named = {field.name: getattr(params, field.name) for field in fields(params)}
        text = render(template, fn=_PLACEHOLDER, p=params, **named, **names)
        rendered[key] = text.strip("\n") + "\n"
    return rendered[key]
