"""Samples to verify with: files, folders, or seeded random integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyq.build import Port
from tinyq.errors import error
from tinyq.ir import AnyArray


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Integers for every input, [n, *shape without the batch], and labels [n] where known."""

    inputs: tuple[AnyArray, ...]
    labels: AnyArray | None
    source: str

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.inputs[0])


def random_samples(inputs: tuple[Port, ...], count: int, seed: int) -> SampleSet:
    """``count`` samples, every integer of the input's type equally likely."""
    if count < 1:
        raise error("TQ303", f"{count} random samples", "Ask for at least one.")
    rng = np.random.default_rng(seed)
    arrays = []
    for port in inputs:
        info = np.iinfo(port.dtype)
        shape = (count, *port.shape[1:]) if port.shape else (count,)
        arrays.append(rng.integers(info.min, info.max + 1, shape).astype(port.dtype))
    return SampleSet(tuple(arrays), None, f"{count} random, seed {seed}")


def load_samples(
    path: Path, inputs: tuple[Port, ...], quant: tuple[tuple[float, int] | None, ...]
) -> SampleSet:
    """Samples of a .npy, a .npz (``x`` or one array an input, and ``y``), or a folder of .npy.

    Float samples are quantized with ``quant`` (scale and zero point of every input). Raises TQ501
    and TQ502.
    """
    arrays, labels = _read(path, inputs)
    fitted = tuple(
        _fit(array, port, q, path) for array, port, q in zip(arrays, inputs, quant, strict=True)
    )
    counts = {len(a) for a in fitted}
    if len(counts) != 1 or 0 in counts:
        raise error("TQ502", f"the inputs have {sorted(counts)} samples", file=str(path))
    if labels is not None and len(labels) != len(fitted[0]):
        raise error("TQ504", f"{len(labels)} labels for {len(fitted[0])} samples", file=str(path))
    return SampleSet(fitted, labels, path.name)


def load_labels(path: Path) -> AnyArray:
    """Labels of a .npy, or ``y`` of a .npz."""
    loaded = _load(path)
    array = loaded.get("y") if isinstance(loaded, dict) else loaded
    if array is None:
        raise error("TQ504", "the file has no array `y`", file=str(path))
    return np.asarray(array).reshape(-1)


def _load(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return {k: loaded[k] for k in loaded.files} if hasattr(loaded, "files") else loaded
    except (OSError, ValueError, EOFError, KeyError) as reason:
        text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
        raise error("TQ501", text, file=str(path)) from None
    except Exception as reason:  # zipfile.BadZipFile and its kin have no common base
        raise error("TQ501", f"not a numpy file: {reason}", file=str(path)) from None


def _read(path: Path, inputs: tuple[Port, ...]) -> tuple[list[AnyArray], AnyArray | None]:
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise error("TQ501", "the folder has no .npy files", file=str(path))
        loaded = [np.asarray(_load(file)) for file in files]
        shapes = {a.shape for a in loaded}
        if len(shapes) != 1:
            raise error("TQ502", f"its files differ in shape: {sorted(shapes)}", file=str(path))
        return [np.stack([_without_batch(a, inputs[0]) for a in loaded])], None
    contents = _load(path)
    if not isinstance(contents, dict):
        return [np.asarray(contents)], None
    labels = contents.get("y")
    names = [port.name for port in inputs]
    if all(name in contents for name in names):
        arrays = [contents[name] for name in names]
    elif len(inputs) == 1 and "x" in contents:
        arrays = [contents["x"]]
    else:
        wanted = "`x`" if len(inputs) == 1 else ", ".join(f"`{n}`" for n in names)
        raise error("TQ501", f"it has {sorted(contents)}, not {wanted}", file=str(path))
    return arrays, None if labels is None else np.asarray(labels).reshape(-1)


def _without_batch(array: AnyArray, port: Port) -> AnyArray:
    return array[0] if array.shape == port.shape and port.shape[:1] == (1,) else array


def _fit(array: AnyArray, port: Port, quant: tuple[float, int] | None, path: Path) -> AnyArray:
    wanted = port.shape[1:]
    elements = int(np.prod(wanted, dtype=np.int64))
    if array.ndim > 0 and not len(array):
        raise error("TQ502", "the file holds no samples", file=str(path))
    if array.ndim == 0 or array[0].size != elements or elements == 0:
        raise error(
            "TQ502", f"samples of shape {array.shape[1:]}, the input '{port.name}' takes {wanted}",
            file=str(path),
        )  # fmt: skip
    if array.shape[1:] != wanted and _squeezed(array.shape[1:]) != _squeezed(wanted):
        raise error(
            "TQ502", f"samples of shape {array.shape[1:]}, the input '{port.name}' takes {wanted}",
            file=str(path),
        )  # fmt: skip
    array = array.reshape(len(array), *wanted)
    info = np.iinfo(port.dtype)
    if array.dtype.kind == "f":
        if quant is None:
            raise error("TQ502", "float samples for an input without scale", file=str(path))
        if not np.isfinite(array).all():
            raise error("TQ502", "the samples contain NaN or infinity", file=str(path))
        levels = np.rint(array.astype(np.float32) / np.float32(quant[0])) + quant[1]
        return np.asarray(np.clip(levels, info.min, info.max).astype(port.dtype))
    if array.dtype.kind not in "iu" or array.min() < info.min or array.max() > info.max:
        raise error(
            "TQ502", f"{array.dtype} samples from {array.min()} to {array.max()}, the input takes "
            f"{port.dtype}", file=str(path),
        )  # fmt: skip
    return array.astype(port.dtype)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
