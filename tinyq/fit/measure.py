"""What every option of every layer costs and does: the compiler's estimates, onnxruntime's outputs.

Evaluations run in parallel through joblib, on whatever backend ``joblib.parallel_config`` names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from tinyq.ptq.plan import Plan, Precision
from tinyq.ptq.quality import OutputQuality
from tinyq.select import Goal, Schedule, select
from tinyq.target import Core

FORMS = ("int8", "int5", "int4", "int3", "int2")
"""Forms of weights, widest first. ``int2`` is ternary: -1, 0 and 1."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Candidates:
    """A network at every form, and what each layer's forms do to the output.

    plans: every layer at one form, by form, biases corrected. added: what a layer at a form adds
    to the mean squared error at the output, by layer and form. quality: of int8 everywhere.
    """

    prepared: Prepared
    plans: Mapping[str, Plan]
    added: Mapping[str, Mapping[str, float]]
    quality: OutputQuality


def forms_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Forms in the order of :data:`FORMS`, int8 always among them. Raises TQ303."""
    for text in texts:
        if text not in FORMS:
            raise error("TQ303", f"--forms {text}", f"Accepted: {', '.join(FORMS)}.")
    return tuple(form for form in FORMS if form == "int8" or form in texts)


def measure(
    prepared: Prepared,
    forms: Sequence[str] = FORMS,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Candidates:
    """Quantize to every form, and evaluate every layer at every form, the others at int8.

    ``jobs`` processes, where joblib's configuration does not say otherwise. Raises TQ613 without
    joblib.
    """
    names = [unit.name for unit in prepared.units if unit.kind == "linear"]
    ways = [dict.fromkeys(names, form) for form in forms]
    plans = dict(zip(forms, _all(assigned, prepared, ways, jobs, "forms", progress), strict=True))
    base = plans["int8"]
    pairs = [(name, form) for name in names for form in forms if form != "int8"]
    singles = [base.with_weights(n, plans[f].weights[n]) for n, f in pairs]
    found = _all(Prepared.evaluate, prepared, [base, *singles], jobs, "layers", progress)
    before = found[0].rms_error ** 2
    added: dict[str, dict[str, float]] = {name: {"int8": 0.0} for name in names}
    for (name, form), quality in zip(pairs, found[1:], strict=True):
        added[name][form] = max(0.0, quality.rms_error**2 - before)
    return Candidates(prepared, plans, added, found[0])


def assigned(prepared: Prepared, forms: Mapping[str, str]) -> Plan:
    """A plan in which every layer has its form, with biases corrected for it."""
    bits = {name: int(form.removeprefix("int")) for name, form in forms.items()}
    ranges = prepared.ranges(prepared.config.calibrator)
    return prepared.plan(ranges, Precision(weight_bits=bits))


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
        prepared, graphs = candidates.prepared, {}
        for form, plan in candidates.plans.items():
            graphs[form] = integer_graph(emit(prepared.graph, prepared.units, plan))
            if progress is not None:
                progress("lowering", len(graphs), len(candidates.plans))
        return Lowered(candidates, graphs)

    def problem(self, core: Core, goal: Goal) -> Problem:
        """The problem of choosing, with the kernels that selection takes for a goal."""
        schedules = {
            form: plan_shared(select(graph, core, goal))[0] for form, graph in self.graphs.items()
        }
        base = schedules["int8"]
        rows = {
            form: {layer.node.name: layer.index for layer in schedule.layers}
            for form, schedule in schedules.items()
        }
        layers, code = [], {}
        for layer in base.layers:
            added = self.candidates.added.get(layer.node.name)
            if added is None:
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
                        form, added[form], call.constant_bytes, _name(key),
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
