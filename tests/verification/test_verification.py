"""Verification must say yes to right code and no, with the place, to wrong code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from small_network import save_small_model

import tinyq
from tinyq.api import open_folder
from tinyq.errors import TinyqError
from tinyq.verification.compare import compare
from tinyq.verification.samples import load_samples, random_samples
from tinyq.verification.verify import VerifyOptions

HOST = VerifyOptions(emulator="host", random=50, seed=3, layers=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("net")
    tinyq.compile(save_small_model(place), output=place / "small", target="cortex-m4")
    return place / "small"


def test_right_code_is_equal_on_every_level(folder: Path) -> None:
    report = tinyq.verify(folder, HOST)
    assert report.equal
    assert report.outputs_compared == 50 * 4
    assert [c.different for c in report.comparisons] == [0, 0, 0]
    checked = [layer for layer in report.layers if layer.oracle_different is not None]
    assert len(checked) >= 6
    assert all(layer.different == 0 and layer.oracle_different == 0 for layer in checked)


def test_the_same_on_the_emulated_core_with_counts(folder: Path) -> None:
    report = tinyq.verify(folder, VerifyOptions(random=4, layers=True))
    assert report.equal
    counts = [layer.instructions for layer in report.layers if layer.instructions]
    assert report.instructions_per_inference is not None
    # The layers are counted in a profiled build, whose code differs a little from the plain one.
    total = report.instructions_per_inference
    # Calls and hooks between the layers are in the total alone.
    assert 0.95 * total <= sum(counts) <= 1.01 * total
    assert report.ram_bytes == report.arena_bytes + (report.stack_bytes or 0)
    assert report.flash_bytes == (report.code_bytes or 0) + (report.constant_bytes or 0)


def _corrupted(folder: Path, place: Path, name: str) -> Path:
    """A copy whose first weight of the array matching ``name`` is another."""
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    data = place / "small_data.c"
    text = data.read_text()
    array = re.search(rf"(\w*{name}\w*\[\d+\][^=]*=\s*\{{\s*)(-?\d+)", text)
    assert array is not None, text[:500]
    wrong = "17" if int(array[2]) != 17 else "-17"
    data.write_text(text[: array.start(2)] + wrong + text[array.end(2) :])
    return place


def test_one_wrong_weight_is_found_with_its_layer(folder: Path, tmp_path: Path) -> None:
    report = tinyq.verify(_corrupted(folder, tmp_path / "bad", "weights"), HOST)
    assert not report.equal
    oracle_reference, reference_c, _ = report.comparisons
    assert oracle_reference.equal
    assert not reference_c.equal
    assert reference_c.first is not None
    wrong = [layer for layer in report.layers if layer.different]
    assert wrong[0].op in ("conv2d", "dense")


def test_a_reference_that_errs_is_told_from_code_that_errs(folder: Path, monkeypatch) -> None:
    from tinyq.ops.softmax import Softmax

    right = Softmax.reference
    monkeypatch.setattr(
        Softmax, "reference", lambda self, node, inputs: (-right(self, node, inputs)[0],)
    )
    report = tinyq.verify(folder, HOST)
    assert not report.equal
    assert not report.comparisons[0].equal
    assert report.comparisons[2].equal


def test_report_is_json(folder: Path) -> None:
    report = tinyq.verify(folder, HOST)
    loaded = json.loads(json.dumps(report.to_json()))
    assert loaded["equal"] is True
    assert loaded["layers"][0]["op"] == report.layers[0].op


def test_accuracy_is_the_share_of_right_labels(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (30, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(30, np.int64))
    first = tinyq.verify(folder, VerifyOptions(emulator="host", samples=tmp_path / "x.npz"))
    assert first.accuracy == first.oracle_accuracy
    subject = open_folder(folder)
    quant = subject.graph.inputs[0].type.quant
    samples = load_samples(
        tmp_path / "x.npz", subject.network.inputs, ((quant.scale, quant.zero_point),)
    )
    best = [subject.oracle.run({"x": row[None]})[0].argmax() for row in samples.inputs[0]]
    assert first.accuracy == np.mean(np.asarray(best) == 0)


def bad_shape(path: Path) -> None:
    np.save(path / "s.npy", np.zeros((4, 5), np.int8))


def bad_type(path: Path) -> None:
    np.save(path / "s.npy", np.full((4, 3, 8, 8), 300))


def bad_nan(path: Path) -> None:
    np.save(path / "s.npy", np.full((4, 3, 8, 8), np.nan, np.float32))


def not_numpy(path: Path) -> None:
    (path / "s.npy").write_text("hello")


def no_x(path: Path) -> None:
    np.savez(path / "s.npz", z=np.zeros(3))


def labels_of_another_length(path: Path) -> None:
    np.savez(path / "s.npz", x=np.zeros((4, 3, 8, 8), np.int8), y=np.zeros(3))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (bad_shape, "TQ502"),
        (bad_type, "TQ502"),
        (bad_nan, "TQ502"),
        (not_numpy, "TQ501"),
        (no_x, "TQ501"),
        (labels_of_another_length, "TQ504"),
        (lambda path: None, "TQ501"),
    ],
)
def test_bad_samples_are_refused(folder: Path, tmp_path: Path, make, code: str) -> None:
    make(tmp_path)
    found = next((p for p in tmp_path.iterdir()), tmp_path / "missing.npy")
    with pytest.raises(TinyqError) as caught:
        tinyq.verify(folder, VerifyOptions(emulator="host", samples=found))
    assert caught.value.diagnostics[0].code == code


def test_a_folder_of_samples_is_read_in_order(folder: Path, tmp_path: Path) -> None:
    rows = np.arange(3 * 192, dtype=np.int64).reshape(3, 3, 8, 8) % 100
    for k, row in enumerate(rows):
        np.save(tmp_path / f"{k}.npy", row.astype(np.int8))
    inputs = open_folder(folder).network.inputs
    loaded = load_samples(tmp_path, inputs, (None,))
    assert np.array_equal(loaded.inputs[0], rows)


def test_random_samples_depend_on_the_seed_alone(folder: Path) -> None:
    inputs = open_folder(folder).network.inputs
    first, second, other = (random_samples(inputs, 5, s).inputs[0] for s in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TinyqError) as caught:
        tinyq.verify(tmp_path)
    assert caught.value.diagnostics[0].code == "TQ503"


def test_comparison_counts_and_places_differences() -> None:
    a = np.zeros((3, 4), np.int8)
    b = a.copy()
    b[1, 2], b[2, 0] = 5, -5
    result = compare(("left", [a]), ("right", [b]), ["y"])
    assert (result.compared, result.different, result.samples_different) == (12, 2, 2)
    assert result.histogram == ((-5, 1), (5, 1))
    assert result.first is not None
    assert (result.first.sample, result.first.element, result.first.got) == (1, 2, 5)
    assert not result.equal


def test_comparing_nothing_is_not_equal() -> None:
    empty = np.zeros((0, 4), np.int8)
    assert not compare(("left", [empty]), ("right", [empty]), ["y"]).equal
