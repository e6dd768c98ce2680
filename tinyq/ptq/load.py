"""Reads calibration data: .npy, .npz, folders of arrays or images, and class labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tinyq.errors import error
from tinyq.ptq.data import (
    Array,
    CalibrationData,
    ImageOptions,
    InputInfo,
    from_arrays,
    model_layout,
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
SUBFOLDERS = "subfolders"
"""In place of a file with labels: the class of an image is the place of its folder among all."""


def load_calibration(
    path: str | Path,
    inputs: tuple[InputInfo, ...],
    options: ImageOptions | None = None,
    labels: str | Path | None = None,
) -> CalibrationData:
    """Read samples from ``path``.

    ``.npy``: an array [N, ...]. ``.npz``: an array ``x`` (a model of one input) or one array for
    each input under its name, and class labels ``y`` if any. A folder: one sample a file, in the
    order of their names, of ``.npy``, ``.npz`` or images.

    ``labels`` gives the classes, before any ``y``: a ``.npy`` or ``.npz`` (``y``) with one integer
    a sample; for a folder also a ``.csv`` of ``file,class`` rows, the files named relative to the
    folder, or ``subfolders``: the classes 0, 1, ... are the folder's subfolders by name.

    Raises:
        TinyqError: TQ604 to TQ606, TQ609 (images without Pillow).
    """
    path, options = Path(path), options or ImageOptions()
    if not path.exists():
        raise error("TQ605", "no such file or folder", file=str(path))
    if path.is_dir():
        return _load_folder(path, inputs, options, labels)
    if path.suffix not in (".npy", ".npz"):
        raise error("TQ605", f"'{path.suffix}' files are not samples", file=str(path))
    arrays = _read_numpy(path)
    own = arrays.pop("y", None)
    classes = own if labels is None else _label_array(labels)
    named = _name_inputs(arrays, inputs, str(path))
    return from_arrays(inputs, named, classes, layout=options.layout, source=path.name)


def _label_array(labels: str | Path) -> Array:
    path = Path(labels)
    if path.suffix not in (".npy", ".npz"):
        raise error("TQ605", f"labels '{labels}' do not go with an array of samples",
                    "Give a .npy or .npz (`y`) with one integer class a sample.")  # fmt: skip
    if not path.is_file():
        raise error("TQ605", "no such file", file=str(path))
    arrays = _read_numpy(path)
    for name in ("y", "x"):  # a plain .npy is read as `x`
        if name in arrays and (name == "y" or path.suffix == ".npy"):
            return arrays[name]
    raise error("TQ605", f"it holds the arrays {', '.join(sorted(arrays)) or 'none'}, but not 'y'",
                file=str(path))  # fmt: skip


def _labels_of_files(labels: str | Path, files: list[Path], root: Path) -> Array:
    """Class of each of a folder's files."""
    if str(labels) == SUBFOLDERS:
        return _by_subfolder(files, root)
    if Path(labels).suffix != ".csv":
        return _label_array(labels)
    rows = _read_csv(Path(labels))
    names = [file.relative_to(root).as_posix() for file in files]
    missing = [name for name in names if name not in rows]
    if missing:
        raise error(
            "TQ606", f"{len(missing)} of {len(files)} files have no label, first '{missing[0]}'",
            "Give one row `file,class` a file, named relative to the folder.", file=str(labels),
        )  # fmt: skip
    return np.array([rows[name] for name in names], np.int64)


def _by_subfolder(files: list[Path], root: Path) -> Array:
    folders = [file.relative_to(root).parts[0] for file in files]
    loose = [file for file in files if file.parent == root]
    if loose:
        raise error("TQ606", f"{len(loose)} files are in no subfolder, first '{loose[0].name}'",
                    "Make a subfolder for each class.", file=str(root))  # fmt: skip
    classes = sorted(set(folders))
    return np.array([classes.index(folder) for folder in folders], np.int64)


def _read_csv(path: Path) -> dict[str, int]:
    """Class by file name; a first row without a number is a heading."""
    try:
        rows = [row for row in csv.reader(path.read_text(encoding="utf-8").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise error("TQ605", f"it cannot be read ({exc})", file=str(path)) from exc
    found: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if len(row) == 2 and row[1].strip().isdecimal():
            found[row[0].strip()] = int(row[1])
        elif number > 1 or len(row) != 2:
            raise error("TQ605", f"row {number} is not `file,class`: {','.join(row)[:60]}",
                        "The class is an integer from 0.", file=str(path))  # fmt: skip
    return found


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


def _load_folder(
    path: Path, inputs: tuple[InputInfo, ...], options: ImageOptions, labels: str | Path | None
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
        stacked, own = {inputs[0].name: stack}, None
    else:
        stacked, own = _load_array_files(arrays, inputs, path)
    classes = own if labels is None else _labels_of_files(labels, images or arrays, path)
    # --layout says how arrays lie in their files; images are made in the model's.
    layout = None if images else options.layout
    return from_arrays(inputs, stacked, classes, layout=layout, source=path.name)


def _load_array_files(
    files: list[Path], inputs: tuple[InputInfo, ...], path: Path
) -> tuple[dict[str, Array], Array | None]:
    """Samples of every input, and the labels that the files hold, if any."""
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
    return stacked, y


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
    layout = options.layout or model_layout(inputs[0])
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
