"""What every option of every layer costs and does: the compiler's estimates, onnxruntime's outputs.

Evaluations run in parallel through joblib, on whatever backend ``joblib.parallel_config`` names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import onnx

from tinyq.errors import error
from tinyq.fit.problem import Layer, Option, Problem
from tinyq.frontends.onnx import import_model, opset
from tinyq.frontends.ort import IslandEvaluator
from tinyq.ir import Graph
from tinyq.ops.base import KernelCall
from tinyq.passes.pipeline import to_integer
from tinyq.plan import plan as plan_memory
from tinyq.plan import plan_shared
from tinyq.plan.price import flash_estimate, shared_code
from tinyq.ptq.emit import emit
from tinyq.ptq.observe import Progress
from tinyq.ptq.pipeline import Prepared
from tinyq.ptq.plan import Plan, Precision, make_plan
from tinyq.ptq.quality import OutputQuality
from tinyq.quant.coarse import KEPT
from tinyq.select import Goal, Schedule, select
from tinyq.target import Core

FORMS = (
    KEPT, "int5", "apot5", "lut5", "int4", "apot4", "lut4", "pot4", "int3", "pot3", "lut3",
    "int2", "lut2", "ternary", "binary",
)  # fmt: skip
"""Forms of weights, widest first: int8 and formats of :data:`tinyq.quant.coarse.FORMATS`."""

SAME = {"apot3": "pot3", "apot2": "ternary"}
"""Formats that have the levels of a form."""

GROUPS = {
    "all": FORMS,
    "int": ("int5", "int4", "int3", "int2"),
    "pot": ("pot4", "pot3"),
    "apot": ("apot5", "apot4", "apot3"),
    "lut": ("lut5", "lut4", "lut3", "lut2"),
}
"""Forms by the names of their groups."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Candidates:
    """A network at every form.

    nearest: every layer at one form, by form, rounded to nearest. tuned: the same with biases
    corrected, each layer's as if all others were int8. quality: of int8 everywhere. errors: what a
    layer at a form adds to the mean squared error at the output, by layer and form, as far as
    :func:`measure` was asked for it.
    """

    prepared: Prepared
    nearest: Mapping[str, Plan]
    tuned: Mapping[str, Plan]
    quality: OutputQuality
    errors: dict[tuple[str, str], float] = field(default_factory=dict)

    def model(self, form: str) -> onnx.ModelProto:
        """The network with every layer at a form."""
        return emit(self.prepared.graph, self.prepared.units, self.tuned[form])


def forms_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Forms, of which some are given as groups, in the order of :data:`FORMS`, int8 among them.

    Raises TQ303.
    """
    asked = {KEPT}
    for text in texts:
        if text not in (*GROUPS, *FORMS, *SAME):
            accepted = ", ".join((*GROUPS, *FORMS, *SAME))
            raise error("TQ303", f"--forms {text}", f"Accepted: {accepted}.")
        asked |= {SAME.get(form, form) for form in GROUPS.get(text, (text,))}
    return tuple(form for form in FORMS if form in asked)


def quantize_forms(
    prepared: Prepared,
    forms: Sequence[str] = FORMS,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Candidates:
    """Quantize every layer to every form; int8 is the first.

    ``jobs`` processes, where joblib's configuration does not say otherwise. Raises TQ613 without
    joblib.
    """
    nearest = dict(
        zip(forms, _all(_rounded, prepared, forms, jobs, "forms", progress), strict=True)
    )
    base = prepared.tuned(nearest[KEPT], progress)
    names = list(base.weights)
    others = {name: {f: nearest[f].weights[name] for f in forms if f != KEPT} for name in names}
    found = prepared.tuned_alternatives(base, others, progress)
    tuned = {
        form: replace(base, weights={name: found[name][form] for name in names})
        for form in forms if form != KEPT
    }  # fmt: skip
    return Candidates(prepared, nearest, {KEPT: base, **tuned}, prepared.evaluate(base))


def _rounded(prepared: Prepared, form: str) -> Plan:
    """Every layer at a form."""
    names = [unit.name for unit in prepared.units if unit.kind == "linear"]
    formats = {} if form == KEPT else dict.fromkeys(names, form)
    ranges, bits = prepared.ranges(prepared.config.calibrator), dict.fromkeys(names, 8)
    return make_plan(
        prepared.graph, prepared.units, ranges, prepared.config,
        Precision(weight_bits=bits, weight_formats=formats),
    )  # fmt: skip


def measure(
    candidates: Candidates,
    costs: Problem,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Problem:
    """The problem with the errors of its options: every layer at every form, the others at int8."""
    base, errors = candidates.tuned[KEPT], candidates.errors
    pairs = [(la.name, o.form) for la in costs.layers for o in la.options if o.form != KEPT]
    missing = [pair for pair in pairs if pair not in errors]
    singles = [base.with_weights(n, candidates.tuned[f].weights[n]) for n, f in missing]
    found = _all(Prepared.evaluate, candidates.prepared, singles, jobs, "layers", progress)
    before = candidates.quality.rms_error**2
    for pair, quality in zip(missing, found, strict=True):
        errors[pair] = max(0.0, quality.rms_error**2 - before)
    layers = [
        replace(layer, options=tuple(
            replace(o, error=errors.get((layer.name, o.form), 0.0)) for o in layer.options
        ))
        for layer in costs.layers
    ]  # fmt: skip
    return replace(costs, layers=tuple(layers))


def assigned(candidates: Candidates, forms: Mapping[str, str]) -> Plan:
    """A plan in which every layer has its form, with biases corrected for all of them."""
    nearest = candidates.nearest
    weights = {name: nearest[form].weights[name] for name, form in forms.items()}
    base = nearest[KEPT]
    return candidates.prepared.tuned(replace(base, weights={**base.weights, **weights}))


def _all(
    function: Callable[[Prepared, Any], T],
    prepared: Prepared,
    arguments: Sequence[Any],
    jobs: int,
    what: str,
    progress: Progress | None,
) -> list[T]:
    """``function`` of every argument, in order."""
    try:
        import joblib
    except ImportError:
        raise error("TQ613", "joblib is not installed") from None
    tasks = (joblib.delayed(function)(prepared, argument) for argument in arguments)
    results: Iterable[T] = joblib.Parallel(n_jobs=jobs, return_as="generator")(tasks)
    found = []
    for result in results:
        found.append(result)
        if progress is not None:
            progress(what, len(found), len(arguments))
    return found


def integer_graph(model: onnx.ModelProto) -> Graph:
    """The integer graph of a quantized model."""
    evaluate = IslandEvaluator(opset(model))
    return to_integer(import_model(model), evaluate, "ort").graph


@dataclass(frozen=True, eq=False)
class Lowered:
    """The integer graphs of a network at every form."""

    candidates: Candidates
    graphs: Mapping[str, Graph]

    @staticmethod
    def of(candidates: Candidates, progress: Progress | None = None) -> Lowered:
        """Lower the model of every form."""
        graphs: dict[str, Graph] = {}
        for form in candidates.tuned:
            graphs[form] = integer_graph(candidates.model(form))
            if progress is not None:
                progress("lowering", len(graphs), len(candidates.tuned))
        return Lowered(candidates, graphs)

    def costs(self, core: Core, goal: Goal) -> Problem:
        """The problem of choosing, with the kernels that selection takes for a goal.

        Errors are not measured yet, and 0.
        """
        schedules = {
            form: plan_shared(select(graph, core, goal))[0] for form, graph in self.graphs.items()
        }
        base = schedules[KEPT]
        rows = {
            form: {layer.node.name: layer.index for layer in schedule.layers}
            for form, schedule in schedules.items()
        }
        layers, code = [], {}
        for layer in base.layers:
            if layer.node.name not in self.candidates.tuned[KEPT].weights:
                continue
            options = []
            for form, schedule in schedules.items():
                index = rows[form].get(layer.node.name)
                if index is None:  # all of its channels were dead, and the layer is gone
                    continue
                call = schedule.layers[index].call
                key, size = shared_code(call)
                code[_name(key)] = size
                mixed = _with_call(base, layer.index, call)
                options.append(
                    Option(
                        form, 0.0, call.constant_bytes, _name(key),
                        _cycles(schedule, index), plan_memory(mixed).arena_bytes,
                    )
                )  # fmt: skip
            layers.append(Layer(layer.node.name, layer.node.op, tuple(options)))
        chosen = {layer.name for layer in layers}
        others = tuple(la for la in base.layers if la.node.name not in chosen)
        return Problem(
            tuple(layers),
            code,
            other_flash=flash_estimate(replace(base, layers=others)),
            other_cycles=sum(_cycles(base, la.index) for la in others),
            other_codes=frozenset(_name(shared_code(la.call)[0]) for la in others),
        )


def _name(key: tuple[str, str]) -> str:
    return f"{key[0]} {hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"


def _with_call(base: Schedule, index: int, call: KernelCall) -> Schedule:
    layers = list(base.layers)
    layers[index] = replace(layers[index], call=call)
    return replace(base, layers=tuple(layers))


def _cycles(schedule: Schedule, index: int) -> int:
    """Instructions of a layer, and the waiting of a slow multiplier."""
    layer = schedule.layers[index]
    waiting = (schedule.core.mul_cycles - 1) * layer.macs if layer.call.multiplies else 0
    return layer.call.instructions + waiting


def cycles(schedule: Schedule) -> int:
    """Instructions of one inference, and the waiting of a slow multiplier."""
    return sum(_cycles(schedule, layer.index) for layer in schedule.layers)
