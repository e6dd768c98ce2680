"""One pass of onnxruntime over the calibration data: a streaming histogram of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from tinyq.errors import error
from tinyq.ptq.data import CalibrationData

HALF_BINS = 4096  # on each side of zero; 16 or more for a step of 8 bits
Progress = Callable[[str, int, int], None]


def session(model: onnx.ModelProto, exact: bool = False) -> ort.InferenceSession:
    """A CPU session; ``exact`` runs the nodes as they are written, without fusions.

    No sum of quantized layers saturates, as on x86 without VNNI it would.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def batch_size(model: onnx.ModelProto, wanted: int) -> int:
    """``wanted``, or the batch that the model's inputs fix."""
    fixed = [v.type.tensor_type.shape.dim[0].dim_value for v in model.graph.input]
    return next((n for n in fixed if n > 0), wanted)


def run_batches(
    model: onnx.ModelProto,
    data: CalibrationData,
    size: int,
    *,
    exact: bool = False,
    progress: Progress | None = None,
    stage: str = "",
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Outputs of the model by name, a batch at a time.

    Samples that do not fill the batch of a model with a fixed one are an error (TQ606).
    """
    size = batch_size(model, size)
    if batch_size(model, 0) and data.count % size:
        raise error("TQ606", f"the model's batch is fixed to {size}, which does not divide "
                    f"{data.count} samples")  # fmt: skip
    runner = session(model, exact)
    names = [output.name for output in runner.get_outputs()]
    done = 0
    for feed in data.batches(size):
        yield dict(zip(names, runner.run(names, feed), strict=True))
        done += size
        if progress is not None:
            progress(stage, min(done, data.count), data.count)


def run_all(
    model: onnx.ModelProto, data: CalibrationData, size: int, *, exact: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """Outputs of the model on all samples, concatenated."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for outputs in run_batches(model, data, size, exact=exact):
        for name, value in outputs.items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}


@dataclass
class Histogram:
    """Counts of one tensor's values over [-limit, limit], exact extremes, and exact zeros.

    The limit is the first batch's largest magnitude and doubles, two bins into one, when a later
    value exceeds it. Zeros are counted apart: they cost nothing at any scale, as zero is always
    representable.
    """

    limit: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * HALF_BINS, np.int64))
    zeros: int = 0
    low: float = 0.0
    high: float = 0.0
    total: int = 0
    alive: npt.NDArray[np.bool_] | None = None

    def add(self, values: npt.NDArray[np.float32], name: str = "") -> None:
        """Count ``values`` (TQ604 if one is not finite)."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise error("TQ604", f"tensor '{name}' becomes NaN or infinite in the float model")
        first = self.total == 0
        self.low = low if first else min(self.low, low)
        self.high = high if first else max(self.high, high)
        self.total += values.size
        self._mark_alive(values)
        flat = values.ravel()
        nonzero = flat[flat != 0]
        self.zeros += flat.size - nonzero.size
        if nonzero.size:
            self._grow(max(-low, high))
            self._count(nonzero)

    def _mark_alive(self, values: npt.NDArray[np.float32]) -> None:
        """Remember which channels (axis 1) have ever been other than zero."""
        if values.ndim < 2:
            return
        alive = np.any(values != 0, axis=tuple(i for i in range(values.ndim) if i != 1))
        same = self.alive is not None and self.alive.shape == alive.shape
        self.alive = (self.alive | alive) if same and self.alive is not None else alive

    def _grow(self, largest: float) -> None:
        if self.limit == 0.0:
            self.limit = largest
        while largest > self.limit:
            paired = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[HALF_BINS // 2 : HALF_BINS // 2 + HALF_BINS] = paired
            self.limit *= 2

    def _count(self, values: npt.NDArray[np.float32]) -> None:
        scale = HALF_BINS / self.limit
        index = np.floor(values.astype(np.float64) * scale).astype(np.int64) + HALF_BINS
        # The largest value lies on the last edge, and belongs to the last bin.
        np.minimum(index, 2 * HALF_BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=2 * HALF_BINS)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Edges of the bins, [2 * HALF_BINS + 1]."""
        return np.linspace(-self.limit, self.limit, 2 * HALF_BINS + 1)

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middles of the bins, [2 * HALF_BINS]."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2


def observe(
    model: onnx.ModelProto,
    data: CalibrationData,
    size: int,
    progress: Progress | None = None,
) -> dict[str, Histogram]:
    """Histograms of all outputs of ``model``, and of its float inputs."""
    found: dict[str, Histogram] = {}
    for name, array in data.inputs.items():
        if array.dtype == np.float32:
            histogram = found.setdefault(name, Histogram())
            for start in range(0, data.count, 256):
                histogram.add(array[start : start + 256], name)
    for outputs in run_batches(model, data, size, progress=progress, stage="calibrate"):
        for name, value in outputs.items():
            found.setdefault(name, Histogram()).add(value, name)
    return found
