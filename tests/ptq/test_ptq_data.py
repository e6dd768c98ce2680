"""Calibration data: what is read, and how bad data are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyq.errors import TinyqError
from tinyq.ptq import CalibrationData, ImageOptions, InputInfo, from_arrays, load_calibration

NCHW = (InputInfo("x", (3, 4, 5)),)
NHWC = (InputInfo("x", (4, 5, 3)),)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3, 4, 5)).astype(np.float32)


def test_npy_and_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "a.npz", x=X, y=np.arange(6))
    plain = load_calibration(tmp_path / "a.npy", NCHW)
    labelled = load_calibration(tmp_path / "a.npz", NCHW)
    assert np.array_equal(plain.inputs["x"], X)
    assert plain.labels is None
    assert labelled.labels is not None
    assert labelled.labels.tolist() == list(range(6))
    assert labelled.count == 6


def test_arrays_named_as_inputs(tmp_path: Path) -> None:
    infos = (InputInfo("left", (2,)), InputInfo("right", (3,), "int64"))
    np.savez(tmp_path / "a.npz", left=np.ones((4, 2)), right=np.ones((4, 3), np.int64))
    data = load_calibration(tmp_path / "a.npz", infos)
    assert data.inputs["left"].dtype == np.float32
    assert data.inputs["right"].dtype == np.int64


def test_folder_of_arrays(tmp_path: Path) -> None:
    for i in range(4):
        np.savez(tmp_path / f"{i}.npz", x=X[i] if i % 2 else X[i : i + 1], y=i)
    data = load_calibration(tmp_path, NCHW)
    assert np.array_equal(data.inputs["x"], X[:4])
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("infos", "axes"), [(NCHW, (2, 0, 1)), (NHWC, (0, 1, 2))])
def test_folder_of_images(tmp_path: Path, infos: tuple[InputInfo, ...], axes: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = RNG.integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    for i in range(3):
        image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
    options = ImageOptions(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25))
    data = load_calibration(tmp_path, infos, options)
    expected = (pixels / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.5, 0.25]
    found = data.inputs["x"]
    assert np.abs(found - np.stack([p.transpose(axes) for p in expected])).max() < 1e-6
    raw = load_calibration(tmp_path, infos, ImageOptions(scale=1.0))
    assert np.array_equal(raw.inputs["x"][0], pixels[0].transpose(axes))


def test_images_are_resized_and_turned_grey(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((20, 30, 3), 51, np.uint8)).save(tmp_path / "a.png")
    data = load_calibration(tmp_path, (InputInfo("x", (1, 8, 8)),))
    assert data.inputs["x"].shape == (1, 1, 8, 8)
    assert np.abs(data.inputs["x"] - 0.2).max() < 1e-6


def test_layout_of_arrays() -> None:
    data = from_arrays(NCHW, {"x": X.transpose(0, 2, 3, 1)}, layout="nhwc")
    assert np.array_equal(data.inputs["x"], X)


def _nan() -> np.ndarray:
    bad = X.copy()
    bad[3, 0, 0, 0] = np.nan
    return bad


BAD_ARRAYS = {
    # name: (samples, code, words of the message)
    "nan": (_nan(), "TQ604", "first in sample 3"),
    "infinity": (np.where(X > 2, np.inf, X), "TQ604", "infinity"),
    "empty": (X[:0], "TQ605", "no samples"),
    "shape": (X[:, :2], "TQ606", "[3, 4, 5]"),
    "layout": (X.transpose(0, 2, 3, 1), "TQ606", "--layout nhwc"),
    "no batch": (X[0], "TQ606", "leading dimension"),
    "text": (np.array(["a", "b"]), "TQ606", "dtype"),
    "complex": (X.astype(complex), "TQ606", "dtype"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(name: str) -> None:
    array, code, words = BAD_ARRAYS[name]
    with pytest.raises(TinyqError) as caught:
        from_arrays(NCHW, {"x": array})
    assert caught.value.diagnostics[0].code == code
    assert words in str(caught.value)
    assert caught.value.exit_status == 12


def test_float_samples_for_an_integer_input() -> None:
    with pytest.raises(TinyqError, match="TQ606"):
        from_arrays((InputInfo("x", (3,), "int64"),), {"x": np.ones((2, 3))})


@pytest.mark.parametrize("labels", [[1, 2], [0.5] * 6, np.zeros((6, 2))])
def test_bad_labels(labels: Any) -> None:
    with pytest.raises(TinyqError, match="TQ606"):
        from_arrays(NCHW, {"x": X}, np.asarray(labels))


def test_inputs_of_different_lengths() -> None:
    with pytest.raises(TinyqError, match="TQ606"):
        CalibrationData({"a": np.ones((2, 1)), "b": np.ones((3, 1))})


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01")
    np.savez(tmp_path / "cut.npz", x=X)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", features=X)
    (tmp_path / "empty").mkdir()
    cases = {
        "missing.npz": "no such file", "notes.txt": "not samples", "broken.npy": "",
        "cut.npz": "", "other.npz": "features", "empty": "no .npy",
    }  # fmt: skip
    for name, words in cases.items():
        with pytest.raises(TinyqError, match="TQ605") as caught:
            load_calibration(tmp_path / name, NCHW)
        assert words in str(caught.value)


def test_broken_image_and_mixed_folder(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(TinyqError, match="TQ605"):
        load_calibration(tmp_path, NCHW)
    np.save(tmp_path / "b.npy", X[0])
    with pytest.raises(TinyqError, match="mixes 1 arrays and 1 images"):
        load_calibration(tmp_path, NCHW)


def test_images_for_a_model_that_takes_none(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    for shape in ((16,), (7, 5, 6)):
        with pytest.raises(TinyqError, match="TQ606"):
            load_calibration(tmp_path, (InputInfo("x", shape),))


@pytest.mark.parametrize(
    "options", [{"layout": "chwn"}, {"std": (0.0,)}, {"std": (1.0, float("nan"), 1.0)}]
)
def test_bad_image_options(options: dict[str, Any]) -> None:
    with pytest.raises(TinyqError, match="TQ607"):
        ImageOptions(**options)
