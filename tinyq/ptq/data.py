"""Calibration data: arrays in memory, .npy, .npz, and folders of arrays or images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyq.errors import TinyqError, error

Array = npt.NDArray[Any]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


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
    """

    inputs: Mapping[str, Array]
    labels: npt.NDArray[np.int64] | None = None
    source: str = "arrays"

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
            {name: array[:count] for name, array in self.inputs.items()}, labels, self.source
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
    return CalibrationData(fitted, None if labels is None else _labels(labels, source), source)


def load_calibration(
    path: str | Path, inputs: tuple[InputInfo, ...], options: ImageOptions | None = None
) -> CalibrationData:
    """Read samples from ``path``.

    ``.npy``: an array [N, ...]. ``.npz``: an array ``x`` (a model of one input) or one array for
    each input under its name, and class labels ``y`` if any. A folder: one sample a file, in the
    order of their names, of ``.npy``, ``.npz`` or images.

    Raises:
        TinyqError: TQ604 to TQ606, TQ609 (images without Pillow).
    """
    path, options = Path(path), options or ImageOptions()
    if not path.exists():
        raise error("TQ605", "no such file or folder", file=str(path))
    if path.is_dir():
        return _load_folder(path, inputs, options)
    if path.suffix not in (".npy", ".npz"):
        raise error("TQ605", f"'{path.suffix}' files are not samples", file=str(path))
    arrays = _read_numpy(path)
    labels = arrays.pop("y", None)
    named = _name_inputs(arrays, inputs, str(path))
    return from_arrays(inputs, named, labels, layout=options.layout, source=path.name)


def _read_numpy(path: Path) -> dict[str, Array]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError) as exc:
        raise error("TQ605", f"numpy cannot read it ({exc})", file=str(path)) from exc
    except Exception as exc:
        # zipfile and zlib raise types of their own for truncated archives.
        if type(exc).__module__ in ("zipfile", "zlib"):
            raise error("TQ605", f"the archive is damaged ({exc})", file=str(path)) from exc
        raise


def _name_inputs(
    arrays: dict[str, Array], inputs: tuple[InputInfo, ...], source: str
) -> dict[str, Array]:
    if all(info.name in arrays for info in inputs):
        return arrays
    if len(inputs) == 1 and "x" in arrays:
        return {inputs[0].name: arrays["x"]}
    wanted = "'x'" if len(inputs) == 1 else " and ".join(f"'{info.name}'" for info in inputs)
    raise error(
        "TQ605", f"it holds the arrays {', '.join(sorted(arrays)) or 'none'}, but not {wanted}",
        file=source,
    )  # fmt: skip


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
        array = _to_model_layout(array, layout, _model_layout(info))
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


def _model_layout(info: InputInfo) -> str:
    """``nchw`` or ``nhwc``, told from where a dimension of 3, 1 or 4 channels is."""
    likely = {3: 0, 1: 1, 4: 2}
    first, last = (likely.get(info.shape[i], 3) for i in (0, -1))
    return "nhwc" if last < first else "nchw"


def _to_model_layout(array: Array, layout: str, wanted: str) -> Array:
    if layout == wanted:
        return array
    return array.transpose((0, 3, 1, 2) if layout == "nhwc" else (0, 2, 3, 1))


def _load_folder(
    path: Path, inputs: tuple[InputInfo, ...], options: ImageOptions
) -> CalibrationData:
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    arrays = [p for p in files if p.suffix in (".npy", ".npz")]
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if not arrays and not images:
        raise error("TQ605", "the folder holds no .npy, .npz or image", file=str(path))
    if arrays and images:
        raise error("TQ605", f"the folder mixes {len(arrays)} arrays and {len(images)} images",
                    "Keep one kind in the folder.", file=str(path))  # fmt: skip
    if images:
        stack = _load_images(images, inputs, options, str(path))
        return from_arrays(inputs, {inputs[0].name: stack}, source=path.name)
    return _load_array_files(arrays, inputs, options, path)


def _load_array_files(
    files: list[Path], inputs: tuple[InputInfo, ...], options: ImageOptions, path: Path
) -> CalibrationData:
    columns: dict[str, list[Array]] = {info.name: [] for info in inputs}
    labels: list[Array] = []
    for file in files:
        arrays = _read_numpy(file)
        if "y" in arrays:
            labels.append(arrays.pop("y").reshape(1))
        named = _name_inputs(arrays, inputs, str(file))
        for info in inputs:
            sample = named[info.name]
            # A file may hold its sample with or without a batch dimension of one.
            keep = sample.ndim == len(info.shape) + 1 and sample.shape[0] == 1
            columns[info.name].append(sample if keep else sample[None])
    for info in inputs:
        shapes = {array.shape for array in columns[info.name]}
        if len(shapes) > 1:
            raise error(
                "TQ606", f"the files hold different shapes: {sorted(shapes)}", file=str(path)
            )
    stacked = {name: np.concatenate(parts) for name, parts in columns.items()}
    y = np.concatenate(labels) if len(labels) == len(files) else None
    if labels and y is None:
        raise error("TQ606", f"{len(labels)} of {len(files)} files have a label", file=str(path))
    return from_arrays(inputs, stacked, y, layout=options.layout, source=path.name)


def _load_images(
    files: list[Path], inputs: tuple[InputInfo, ...], options: ImageOptions, source: str
) -> Array:
    """Images as [N, ...] in the model's layout."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as exc:
        raise error("TQ609", "the folder holds images", file=source) from exc
    if len(inputs) != 1 or len(inputs[0].shape) != 3:
        raise error("TQ606", "the model does not take one image", file=source)
    shape = inputs[0].shape
    layout = options.layout or _model_layout(inputs[0])
    channels, height, width = shape if layout == "nchw" else (shape[2], shape[0], shape[1])
    if channels not in (1, 3, 4):
        raise error("TQ606", f"input of {channels} channels is not an image", file=source)
    if options.size is not None and options.size != (height, width):
        raise error("TQ606", f"size {options.size} is not the model's ({height}, {width})",
                    "Leave --size out, or give the model's.", file=source)  # fmt: skip
    _check_per_channel(options, channels, source)
    stack = np.empty((len(files), height, width, channels), np.float32)
    for i, file in enumerate(files):
        try:
            with Image.open(file) as opened:
                image = opened.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
        except (UnidentifiedImageError, OSError) as exc:
            raise error("TQ605", f"Pillow cannot read it ({exc})", file=str(file)) from exc
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.float32).reshape(height, width, channels)
        stack[i] = (
            pixels * np.float32(options.scale) - np.array(options.mean, np.float32)
        ) / np.array(options.std, np.float32)
    return stack.transpose(0, 3, 1, 2) if layout == "nchw" else stack


def _check_per_channel(options: ImageOptions, channels: int, source: str) -> None:
    for name in ("mean", "std"):
        if len(getattr(options, name)) not in (1, channels):
            raise error(
                "TQ607", f"{len(getattr(options, name))} values of {name} for {channels} channels",
                file=source,
            )  # fmt: skip


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
