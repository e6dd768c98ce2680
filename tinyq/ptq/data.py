"""Calibration data: arrays [N, ...] for every input of a model, checked against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyq.errors import Diagnostic, TinyqError, error

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InputInfo:
    """One input of a model: ``shape`` without the batch dimension, numpy ``dtype`` name.

    ``batch`` is the fixed batch size, or None where any size can be run.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    batch: int | None = None


@dataclass(frozen=True)
class ImageOptions:
    """How samples become the model's input.

    An image's value is ``(pixel * scale - mean) / std``, with one mean and std for all channels or
    one for each. ``size`` is (height, width). ``layout`` is ``nchw`` or ``nhwc``: for arrays that
    of the samples in the file, for images that of the model's input (told from its shape if None).
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    size: tuple[int, int] | None = None
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in (None, "nchw", "nhwc"):
            raise error("TQ607", f"layout is {self.layout!r}; accepted: nchw, nhwc")
        if not all(np.isfinite(s) and s > 0 for s in self.std):
            raise error("TQ607", f"std is {self.std}; every value must be above 0")


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Samples for every input of a model.

    Attributes:
        inputs: input name to array [N, ...], float32 unless the model's input is an integer.
        labels: class of each sample [N], or None.
        source: where the samples come from, for reports.
        notices: what was chosen when they were read.
    """

    inputs: Mapping[str, Array]
    labels: npt.NDArray[np.int64] | None = None
    source: str = "arrays"
    notices: tuple[Diagnostic, ...] = ()

    def __post_init__(self) -> None:
        counts = {name: len(array) for name, array in self.inputs.items()}
        if not counts or 0 in counts.values():
            raise error("TQ605", "there are no samples", file=self.source)
        if len(set(counts.values())) > 1:
            raise error(
                "TQ606", f"the inputs have different numbers of samples: {counts}", file=self.source
            )
        if self.labels is not None and len(self.labels) != self.count:
            raise error(
                "TQ606", f"{len(self.labels)} labels for {self.count} samples", file=self.source
            )
        for name, array in self.inputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = int(
                    np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0]
                )
                raise error(
                    "TQ604", f"input '{name}' holds NaN or infinity, first in sample {bad}",
                    file=self.source,
                )  # fmt: skip

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of at most ``size`` samples, in order."""
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}

    def take(self, count: int) -> CalibrationData:
        """The first ``count`` samples."""
        labels = None if self.labels is None else self.labels[:count]
        return CalibrationData(
            {name: array[:count] for name, array in self.inputs.items()},
            labels,
            self.source,
            self.notices,
        )


def from_arrays(
    inputs: tuple[InputInfo, ...],
    arrays: Mapping[str, Array],
    labels: Array | None = None,
    *,
    layout: str | None = None,
    source: str = "arrays",
) -> CalibrationData:
    """Check arrays [N, ...] against the model's inputs and convert their dtype.

    Raises:
        TinyqError: TQ604 NaN or infinity, TQ605 no samples, TQ606 shape, layout or dtype.
    """
    missing = [info.name for info in inputs if info.name not in arrays]
    if missing:
        raise error(
            "TQ606", f"no samples for input {', '.join(missing)}; given: {', '.join(arrays)}",
            file=source,
        )  # fmt: skip
    fitted = {
        info.name: _fit(info, np.asarray(arrays[info.name]), layout, source) for info in inputs
    }
    converted = [
        Diagnostic("TQ626", f"input '{info.name}': {np.asarray(arrays[info.name]).dtype} samples",
                   file=source)
        for info in inputs
        if info.dtype == "float32" and np.asarray(arrays[info.name]).dtype.kind in "iu"
    ]  # fmt: skip
    classes = None if labels is None else _labels(labels, source)
    return CalibrationData(fitted, classes, source, tuple(converted))


def _labels(labels: Array, source: str) -> npt.NDArray[np.int64]:
    labels = np.asarray(labels).squeeze()
    if labels.ndim == 0:
        labels = labels.reshape(1)
    if labels.ndim != 1 or not np.array_equal(labels, labels.astype(np.int64)):
        raise error("TQ606", f"labels have shape {labels.shape}, dtype {labels.dtype}",
                    "Give one integer class a sample.", file=source)  # fmt: skip
    return labels.astype(np.int64)


def _fit(info: InputInfo, array: Array, layout: str | None, source: str) -> Array:
    """``array`` as [N, *info.shape] of the input's dtype, or TQ606."""
    if array.dtype.kind not in "fiub":
        raise error("TQ606", f"input '{info.name}': samples of dtype {array.dtype}", file=source)
    if array.ndim and len(array) == 0:
        raise error("TQ605", f"input '{info.name}': there are no samples", file=source)
    if layout is not None and array.ndim == 4 and len(info.shape) == 3:
        array = _tomodel_layout(array, layout, model_layout(info))
    if array.shape[1:] != info.shape:
        raise _shape_error(info, array, source)
    wanted = np.dtype(info.dtype)
    if wanted.kind in "iu" and array.dtype.kind == "f":
        raise error(
            "TQ606", f"input '{info.name}' is {info.dtype}, the samples are {array.dtype}",
            file=source,
        )  # fmt: skip
    return np.ascontiguousarray(array, dtype=wanted)


def _shape_error(info: InputInfo, array: Array, source: str) -> TinyqError:
    found = (
        f"input '{info.name}' takes samples of shape {list(info.shape)}, "
        f"the array has shape {list(array.shape)} ([N, ...])"
    )
    if array.shape == info.shape:
        return error("TQ606", found, "Add the leading dimension of the samples.", file=source)
    for layout, axes in (("nhwc", (0, 3, 1, 2)), ("nchw", (0, 2, 3, 1))):
        if array.ndim == 4 and array.transpose(axes).shape[1:] == info.shape:
            return error(
                "TQ606", found, f"The samples seem to be {layout.upper()}: --layout {layout}",
                file=source,
            )  # fmt: skip
    return error("TQ606", found, file=source)


def model_layout(info: InputInfo) -> str:
    """``nchw`` or ``nhwc``, told from where a dimension of 3, 1 or 4 channels is."""
    likely = {3: 0, 1: 1, 4: 2}
    first, last = (likely.get(info.shape[i], 3) for i in (0, -1))
    return "nhwc" if last < first else "nchw"


def _tomodel_layout(array: Array, layout: str, wanted: str) -> Array:
    if layout == wanted:
        return array
    return array.transpose((0, 3, 1, 2) if layout == "nhwc" else (0, 2, 3, 1))


def synthetic(
    inputs: tuple[InputInfo, ...],
    count: int,
    seed: int,
    input_range: tuple[float, float] | None,
) -> CalibrationData:
    """Made-up samples: uniform in ``input_range``, or standard normal if it is not known."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for info in inputs:
        shape = (count, *info.shape)
        if input_range is None:
            arrays[info.name] = rng.standard_normal(shape).astype(info.dtype)
        else:
            arrays[info.name] = rng.uniform(*input_range, shape).astype(info.dtype)
    return CalibrationData(arrays, None, f"synthetic inputs (seed {seed})")
