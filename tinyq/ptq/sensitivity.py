"""Which layers suffer most from quantization, and how many of them need more bits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from tinyq.errors import Diagnostic, error
from tinyq.ptq.calibrate import Range
from tinyq.ptq.config import PtqConfig
from tinyq.ptq.data import CalibrationData
from tinyq.ptq.emit import emit
from tinyq.ptq.graph import INT16_OPSET
from tinyq.ptq.observe import Progress
from tinyq.ptq.pipeline import Prepared, PtqResult, make_report, prepare_model
from tinyq.ptq.plan import Plan, Precision, default_bits, make_plan, with_bias
from tinyq.ptq.quality import OutputQuality, finite


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer: the output's quality when only it is quantized, and when all others are."""

    name: str
    operator: str
    only: OutputQuality
    all_but: OutputQuality


@dataclass(frozen=True)
class SensitivityReport:
    """Layers, the most sensitive first, and the quality with every layer quantized."""

    layers: tuple[LayerSensitivity, ...]
    all_quantized: OutputQuality
    samples: int
    notices: tuple[Diagnostic, ...]

    def to_json(self) -> str:
        """The report as JSON; infinite ratios are null."""
        return json.dumps(finite(asdict(self)), indent=2, sort_keys=True)


@dataclass(frozen=True)
class SearchStep:
    """One tried assignment: layers with more bits, what they got, and the output's quality.

    ``loss`` is what ``keep_accuracy`` bounds; see :func:`search`.
    """

    raised: tuple[str, ...]
    to: str
    loss: float
    quality: OutputQuality


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What :func:`search` found. ``raised`` maps a layer to its extra precision."""

    result: PtqResult
    raised: tuple[tuple[str, str], ...]
    steps: tuple[SearchStep, ...]
    reached: bool
    loss: float

    def to_json(self) -> dict[str, object]:
        """What was tried and kept, as JSON has it; infinite ratios are null."""
        steps = [finite(asdict(step)) for step in self.steps]
        return {
            "raised": [list(pair) for pair in self.raised],
            "reached": self.reached,
            "loss": self.loss,
            "steps": steps,
        }


def sensitivity(
    model: str | Path | onnx.ModelProto,
    calibration: CalibrationData,
    config: PtqConfig | None = None,
    progress: Progress | None = None,
) -> SensitivityReport:
    """Rank the layers by the error that each causes at the output on its own.

    A layer is quantized with its inputs, weights and outputs; layers that only move values follow
    their neighbours.

    Raises:
        TinyqError: as :func:`tinyq.ptq.quantize`.
    """
    prepared = prepare_model(model, calibration, _single(config), progress)
    plan = prepared.plan(prepared.ranges(prepared.config.calibrator), progress=progress)
    return SensitivityReport(
        _rank(prepared, plan, progress),
        prepared.evaluate(plan),
        prepared.data.count,
        tuple(prepared.notices),
    )


def _single(config: PtqConfig | None) -> PtqConfig:
    config = config or PtqConfig()
    if config.calibrator == "all":
        raise error("TQ607", "a sensitivity analysis takes one calibrator, not 'all'")
    return config


def _layers(prepared: Prepared) -> list[tuple[str, str]]:
    kinds = ("linear", "op")
    return [(u.name, u.operator) for u in prepared.units if u.kind in kinds]


def _rank(
    prepared: Prepared, plan: Plan, progress: Progress | None
) -> tuple[LayerSensitivity, ...]:
    layers = _layers(prepared)
    everything = frozenset(name for name, _ in layers)
    found = []
    for i, (name, operator) in enumerate(layers):
        only = prepared.evaluate(_with_float(plan, everything - {name}))
        all_but = prepared.evaluate(_with_float(plan, frozenset({name})))
        found.append(LayerSensitivity(name, operator, only, all_but))
        if progress is not None:
            progress("sensitivity", i + 1, len(layers))
    return tuple(sorted(found, key=lambda layer: -layer.only.rms_error))


def _with_float(plan: Plan, units: frozenset[str]) -> Plan:
    return replace(plan, precision=replace(plan.precision, float_units=units))


def search(
    model: str | Path | onnx.ModelProto,
    calibration: CalibrationData,
    config: PtqConfig | None = None,
    *,
    keep_accuracy: float = 0.005,
    allow_wide: bool = True,
    allow_float: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Give the most sensitive layers more bits until the network keeps its accuracy.

    Stages, each on top of the best before: 4-bit weights become 8-bit; activations become int16
    (``allow_wide``); layers stay float (``allow_float``). In a stage the layers are raised one
    after another in the order of their sensitivity; the quality does not rise evenly, so the best
    seen is kept, and layers that turn out not to be needed are lowered again.

    The loss that ``keep_accuracy`` bounds is: with labels, the accuracy lost against float (0.005
    is half a point); with classes but no labels, the part of samples whose class changes; else
    the root mean squared error over that of the output.

    Raises:
        TinyqError: as :func:`tinyq.ptq.quantize`; TQ607 for a bound outside 0 to 1.
    """
    if not 0 <= keep_accuracy < 1:
        raise error("TQ607", f"keep_accuracy is {keep_accuracy}; accepted: 0 to below 1")
    config = _single(config)
    run = _Search(prepare_model(model, calibration, config, progress), keep_accuracy, progress)
    run.stage("int8 weights")
    if allow_wide and not run.reached and config.activations != "int16":
        wide = prepare_model(model, calibration, config, progress, lowest_opset=INT16_OPSET)
        run.restart(wide)
        run.stage("int16 activations")
    if allow_float and not run.reached:
        run.stage("float")
    return run.result()


class _Search:
    """State of a search: the best precision so far, and everything that was tried."""

    def __init__(self, prepared: Prepared, bound: float, progress: Progress | None) -> None:
        self.prepared, self.bound, self.progress = prepared, bound, progress
        self.ranges = prepared.ranges(prepared.config.calibrator)
        self.base = prepared.plan(self.ranges, progress=progress)
        self.best = self.base
        self.steps: list[SearchStep] = []
        self.quality = prepared.evaluate(self.base)
        self.loss = _loss(self.quality, prepared)
        self.order = [layer.name for layer in _rank(prepared, self.base, progress)]
        self.steps.append(SearchStep((), "none", self.loss, self.quality))

    @property
    def reached(self) -> bool:
        """Whether the best seen is within the bound."""
        return self.loss <= self.bound

    def restart(self, prepared: Prepared) -> None:
        """Go on with the same network at another opset."""
        self.prepared = prepared
        self.ranges = prepared.ranges(prepared.config.calibrator)

    def stage(self, to: str) -> None:
        """Raise layers one after another, then lower those that are not needed."""
        candidates = [name for name in self.order if self._can(name, to)]
        before, raised = self.best.precision, []
        chosen: tuple[str, ...] = ()
        for name in candidates:
            if self.reached:
                break
            raised.append(name)
            if self._try(before, tuple(raised), to):
                chosen = tuple(raised)
        for name in reversed(chosen[:-1]):
            fewer = tuple(n for n in chosen if n != name)
            if self.reached and self._try(before, fewer, to, needed=self.bound):
                chosen = fewer

    def _can(self, name: str, to: str) -> bool:
        if to == "int8 weights":
            return self.base.precision.weight_bits.get(name, 8) < 8
        return True

    def _try(
        self, before: Precision, raised: tuple[str, ...], to: str, needed: float | None = None
    ) -> bool:
        """Evaluate an assignment; keep it if it is the best, or good enough (``needed``)."""
        precision = _raise(before, raised, to)
        plan = replan(self.prepared, self.base, self.ranges, precision)
        quality = self.prepared.evaluate(plan)
        loss = _loss(quality, self.prepared)
        self.steps.append(SearchStep(raised, to, loss, quality))
        if self.progress is not None:
            self.progress(to, len(raised), len(self.order))
        if loss < self.loss or (needed is not None and loss <= needed):
            self.best, self.loss, self.quality = plan, loss, quality
            return True
        return False

    def result(self) -> SearchResult:
        """The best network, with its report."""
        prepared, plan = self.prepared, self.best
        model = emit(prepared.graph, prepared.units, plan)
        report = make_report(prepared, plan, model, prepared.config.calibrator)
        if prepared.config.io == "integer":
            model = emit(prepared.graph, prepared.units, plan, integer_io=True)
        quantized = PtqResult(
            model, prepared.graph.to_model(), report, prepared.config.calibrator, prepared.config
        )
        raised = tuple(_differences(prepared, plan.precision))
        return SearchResult(quantized, raised, tuple(self.steps), self.reached, self.loss)


def _loss(quality: OutputQuality, prepared: Prepared) -> float:
    if quality.accuracy_float is not None and quality.accuracy_quantized is not None:
        return quality.accuracy_float - quality.accuracy_quantized
    if quality.agreement is not None:
        return 1 - quality.agreement
    # SQNR is the ratio of powers, so the ratio of root mean squares has half its exponent.
    return float(10 ** (-quality.sqnr_db / 20))


def _raise(before: Precision, raised: Iterable[str], to: str) -> Precision:
    if to == "int8 weights":
        return replace(before, weight_bits={**before.weight_bits, **dict.fromkeys(raised, 8)})
    if to == "int16 activations":
        return replace(before, wide_activations=before.wide_activations | frozenset(raised))
    return replace(before, float_units=before.float_units | frozenset(raised))


def _differences(prepared: Prepared, precision: Precision) -> Iterable[tuple[str, str]]:
    usual = default_bits(prepared.units, prepared.config)
    for unit in prepared.units:
        if precision.weight_bits.get(unit.name, 8) > usual.get(unit.name, 8):
            yield unit.name, "int8 weights"
        if unit.name in precision.wide_activations:
            yield unit.name, "int16 activations"
        if unit.name in precision.float_units:
            yield unit.name, "float"


def replan(prepared: Prepared, base: Plan, ranges: dict[str, Range], precision: Precision) -> Plan:
    """A plan of another precision that keeps what was learned for the layers it leaves alone."""
    plan = make_plan(prepared.graph, prepared.units, ranges, prepared.config, precision)
    for unit in prepared.units:
        learned = base.weights.get(unit.name)
        if learned is None or learned.bits != precision.weight_bits[unit.name]:
            continue
        bias = None if learned.bias is None else learned.bias * learned.bias_scales
        scale = plan.activations[unit.inputs[0]].scale
        plan = plan.with_weights(unit.name, with_bias(learned, bias, scale))
    return plan
