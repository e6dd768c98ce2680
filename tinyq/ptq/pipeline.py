"""From a float model and samples to a quantized model and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from tinyq.errors import Diagnostic
from tinyq.ptq import datafree
from tinyq.ptq.calibrate import Range, tensor_range
from tinyq.ptq.config import CALIBRATORS, PtqConfig
from tinyq.ptq.data import CalibrationData, InputInfo, from_arrays, synthetic
from tinyq.ptq.emit import emit
from tinyq.ptq.equalize import equalize
from tinyq.ptq.graph import (
    INT16_OPSET,
    MIN_OPSET,
    Graph,
    at_opset,
    graph_of,
    model_inputs,
    read_model,
)
from tinyq.ptq.observe import Histogram, Progress, observe, run_batches
from tinyq.ptq.plan import Plan, Precision, WeightPlan, make_plan
from tinyq.ptq.prepare import prepare
from tinyq.ptq.quality import (
    CalibratorScore,
    OutputQuality,
    PtqReport,
    advise,
    compare_layers,
    compare_outputs,
)
from tinyq.ptq.reconstruct import reconstruct, tune_alternatives
from tinyq.ptq.units import Unit, find_units, float_tensors

_FEW_SAMPLES = 32
_SYNTHETIC_SAMPLES = 64


@dataclass(frozen=True, eq=False)
class PtqResult:
    """What :func:`quantize` returns.

    ``model`` is the QDQ model; ``float_model`` the prepared float model that it was compared
    with; ``calibrator`` the one that was used, of interest after ``all``.
    """

    model: onnx.ModelProto
    float_model: onnx.ModelProto
    report: PtqReport
    calibrator: str
    config: PtqConfig

    def save(self, path: str | Path) -> None:
        """Write the quantized model."""
        onnx.save(self.model, path)


@dataclass(eq=False)
class Prepared:
    """A float graph split into units, with its calibration data, ready for any plan."""

    graph: Graph
    units: list[Unit]
    data: CalibrationData
    config: PtqConfig
    notices: list[Diagnostic]
    histograms: dict[str, Histogram]
    real_data: bool
    reference: npt.NDArray[np.float32]

    def ranges(self, calibrator: str) -> dict[str, Range]:
        """Range of every tensor by one calibrator."""
        config = self.config
        found = {
            name: tensor_range(
                h, calibrator, config.percentile, config.activations, config.symmetric
            )
            for name, h in self.histograms.items()
        }
        if not self.real_data:
            found.update(datafree.batchnorm_ranges(self.graph, self.units))
        return found

    def plan(
        self,
        ranges: Mapping[str, Range],
        precision: Precision | None = None,
        progress: Progress | None = None,
    ) -> Plan:
        """A plan with rounding and biases tuned as the configuration asks."""
        plan = make_plan(self.graph, self.units, ranges, self.config, precision)
        return self.tuned(plan, progress)

    def tuned(self, plan: Plan, progress: Progress | None = None) -> Plan:
        """A plan's rounding and biases tuned as the configuration asks."""
        config = self.config
        if not self.real_data:
            # Made-up inputs say nothing about means, so the biases are corrected from BatchNorm.
            if config.bias_correction:
                plan = datafree.correct_biases(self.graph, self.units, plan, self.notices)
            return plan
        if config.bias_correction or config.rounding == "adaround":
            plan = reconstruct(
                self.graph, self.units, plan, self.data, config, self.notices, progress
            )
        return plan

    def tuned_alternatives(
        self,
        plan: Plan,
        alternatives: Mapping[str, Mapping[str, WeightPlan]],
        progress: Progress | None = None,
    ) -> Mapping[str, Mapping[str, WeightPlan]]:
        """Other weights of single units, by unit and key, each tuned behind the units of a plan.

        Calibration data must have been given.
        """
        config = self.config
        if not config.bias_correction and config.rounding != "adaround":
            return alternatives
        return tune_alternatives(
            self.graph, self.units, plan, alternatives, self.data, config, progress
        )

    def output_of(self, model: onnx.ModelProto) -> npt.NDArray[np.float32]:
        """First output of ``model`` on the calibration data, [N, ...]."""
        return first_output(model, self.data, self.config.batch_size)

    def evaluate(self, plan: Plan) -> OutputQuality:
        """Quality at the output of the model that ``plan`` gives."""
        model = emit(self.graph, self.units, plan)
        return self.compare(model)

    def compare(self, model: onnx.ModelProto) -> OutputQuality:
        """Quality at the output of a model with float edges."""
        shapes = [array.shape for array in self.data.inputs.values()]
        return compare_outputs(
            self.reference, self.output_of(model), self.data.labels, self.reference.shape in shapes
        )


def first_output(
    model: onnx.ModelProto, data: CalibrationData, size: int
) -> npt.NDArray[np.float32]:
    """First output of a model on all samples, [N, ...]."""
    parts = [next(iter(out.values())) for out in run_batches(model, data, size)]
    return np.concatenate(parts)


def inputs_of(model: str | Path | onnx.ModelProto) -> tuple[InputInfo, ...]:
    """Name, shape and dtype of a model's inputs, for :func:`load_calibration`.

    Raises:
        TinyqError: TQ101 to TQ106.
    """
    return model_inputs(graph_of(read_model(model)))


def prepare_model(
    model: str | Path | onnx.ModelProto,
    calibration: CalibrationData | None,
    config: PtqConfig,
    progress: Progress | None = None,
    *,
    lowest_opset: int = MIN_OPSET,
) -> Prepared:
    """Rewrite, equalise and observe a float model.

    Raises:
        TinyqError: TQ1xx for the model file, TQ601 to TQ608.
    """
    wide = config.activations == "int16"
    opset = INT16_OPSET if wide else lowest_opset
    graph = graph_of(at_opset(read_model(model), opset))
    infos = model_inputs(graph)
    notices: list[Diagnostic] = []
    prepare(graph)
    units = find_units(graph)
    data = _data(infos, calibration, config, notices)
    if config.equalize:
        equalize(graph, units, notices)
    computed = [t for t in float_tensors(graph, units) if t not in {i.name for i in infos}]
    histograms = observe(graph.to_model(computed), data, config.batch_size, progress)
    reference = first_output(graph.to_model(), data, config.batch_size)
    return Prepared(
        graph, units, data, config, notices, histograms, calibration is not None, reference
    )


def _data(
    infos: tuple[InputInfo, ...],
    calibration: CalibrationData | None,
    config: PtqConfig,
    notices: list[Diagnostic],
) -> CalibrationData:
    if calibration is None:
        notices.append(Diagnostic("TQ620", "no samples were given: ranges are guesses"))
        if config.rounding == "adaround":
            notices.append(
                Diagnostic("TQ625", "learned rounding needs samples: rounded to nearest")
            )
        count = next((i.batch for i in infos if i.batch), 1)
        count *= -(-_SYNTHETIC_SAMPLES // count)
        return synthetic(infos, count, config.seed, config.input_range)
    if calibration.count < _FEW_SAMPLES:
        notices.append(Diagnostic("TQ623", f"{calibration.count} samples", file=calibration.source))
    notices.extend(calibration.notices)
    # Arrays that the caller put together have not met this model's inputs yet.
    return from_arrays(infos, calibration.inputs, calibration.labels, source=calibration.source)


def quantize(
    model: str | Path | onnx.ModelProto,
    calibration: CalibrationData | None,
    config: PtqConfig | None = None,
    progress: Progress | None = None,
) -> PtqResult:
    """Quantize a float ONNX model to a QDQ model.

    Args:
        model: path or model, float32, opset 13 or newer (older ones are converted).
        calibration: typical samples; None estimates ranges without any, which the report warns of.
        config: what to do; defaults are int8, per channel, affine, ``mse``.
        progress: called with (stage, done, total).

    Raises:
        TinyqError: TQ1xx for the model file, TQ601 to TQ609 for the rest.
    """
    config = config or PtqConfig()
    prepared = prepare_model(model, calibration, config, progress)
    plan, calibrator, scores = _choose(prepared, progress)
    quantized = emit(prepared.graph, prepared.units, plan)
    report = make_report(prepared, plan, quantized, calibrator, scores, progress)
    if config.io == "integer":
        quantized = emit(prepared.graph, prepared.units, plan, integer_io=True)
    return PtqResult(quantized, prepared.graph.to_model(), report, calibrator, config)


def _choose(
    prepared: Prepared, progress: Progress | None
) -> tuple[Plan, str, tuple[CalibratorScore, ...]]:
    """The plan of the configured calibrator, or of the best one."""
    wanted = prepared.config.calibrator
    if wanted != "all":
        plan = prepared.plan(prepared.ranges(wanted), progress=progress)
        return plan, wanted, ()
    results = []
    for calibrator in CALIBRATORS:
        plan = prepared.plan(prepared.ranges(calibrator), progress=progress)
        results.append((calibrator, plan, prepared.evaluate(plan)))
    # Equal accuracies are told apart by the error, then by the order of the table.
    best = min(results, key=lambda r: (-(r[2].accuracy_quantized or 0.0), r[2].rms_error))
    scores = tuple(
        CalibratorScore(name, q.rms_error, q.sqnr_db, q.accuracy_quantized, name == best[0])
        for name, _, q in results
    )
    return best[1], best[0], scores


def make_report(
    prepared: Prepared,
    plan: Plan,
    model: onnx.ModelProto,
    calibrator: str,
    scores: tuple[CalibratorScore, ...] = (),
    progress: Progress | None = None,
) -> PtqReport:
    """Compare a plan's model (with float edges) with the float one on the calibration data."""
    layers = compare_layers(
        prepared.graph, prepared.units, plan, model, prepared.data, prepared.histograms,
        prepared.config.batch_size, progress,
    )  # fmt: skip
    output = prepared.compare(model)
    dead = [
        Diagnostic(
            "TQ622",
            f"{layer.dead_channels} of {layer.channels} channels are always zero",
            node=layer.name,
            operator=layer.operator,
        )
        for layer in layers
        if layer.dead_channels and prepared.real_data
    ]
    return PtqReport(
        layers, output, calibrator, scores, prepared.data.count, prepared.data.source,
        (*prepared.notices, *plan.notices, *dead), tuple(advise(layers, output, calibrator)),
    )  # fmt: skip


def with_config(prepared: Prepared, config: PtqConfig) -> Prepared:
    """The same graph and data under other options (not equalisation: that changes the graph)."""
    return replace(prepared, config=config)
