"""Refusals of the export, and the verbs of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import export_models
import onnx
import pytest
from typer.testing import CliRunner

import tinyq
from tinyq.api import export
from tinyq.cli import app
from tinyq.errors import TinyqError
from tinyq.export import FORMATS, Package
from tinyq.target import board_names, load_board

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("network")
    onnx.save(export_models.small(), place / "small.onnx")
    tinyq.compile(place / "small.onnx", output=place / "net", target="cortex-m4")
    return place / "net"


# what is wrong, options, code, what the message says
WRONG = [
    ("unknown format", {"form": "rpm"}, "TQ303", "cmsis-pack"),
    ("bare without board", {"form": "bare"}, "TQ303", "--board"),
    ("unknown board", {"form": "bare", "board": "nucleo-x"}, "TQ301", "nucleo-x"),
    ("board of another core", {"form": "bare", "board": "microbit-v1"}, "TQ304", "cortex-m0"),
    ("no samples", {"form": "make", "samples": 0}, "TQ303", "at least one"),
    ("version", {"form": "make", "package": Package(version="one")}, "TQ303", "1.2.3"),
]


@pytest.mark.parametrize(("what", "options", "code", "says"), WRONG, ids=[w[0] for w in WRONG])
def test_wrong_use_is_refused(
    network: Path, tmp_path: Path, what: str, options: dict, code: str, says: str
) -> None:
    del what
    with pytest.raises(TinyqError, match=code) as caught:
        export(network, output=tmp_path / "out", **options)
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_tinyqs_folders_are_replaced(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(network, "make", out)
    export(network, "cmake", out)
    assert not (out / "Makefile").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(TinyqError, match="TQ701"):
        export(network, "make", other)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TinyqError, match="TQ503"):
        export(tmp_path, "make", tmp_path / "out")


def test_an_export_is_no_compiled_folder(network: Path, tmp_path: Path) -> None:
    export(network, "make", tmp_path / "out")
    with pytest.raises(TinyqError, match="TQ503"):
        export(tmp_path / "out", "cmake", tmp_path / "again")


def test_a_library_has_no_place_but_in_cmake(network: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "net"
    shutil.copytree(network, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["libraries"] = [
        {"name": "CMSIS-NN", "version": "7.0.0", "sources": [], "includes": [], "defines": []}
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for form in sorted(set(FORMATS) - {"cmake"}):
        with pytest.raises(TinyqError, match="TQ704"):
            export(folder, form, tmp_path / "out", board="nrf52840-dk")
    export(folder, "cmake", tmp_path / "out")


def test_few_large_samples_are_kept(tmp_path: Path) -> None:
    onnx.save(export_models.large(), tmp_path / "large.onnx")
    tinyq.compile(tmp_path / "large.onnx", output=tmp_path / "net", target="cortex-m4")
    export(tmp_path / "net", "make", tmp_path / "out", samples=5)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"] == 1


def invoke(*arguments: str | Path, status: int = 0) -> str:
    result = RUNNER.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_export_verb(network: Path, tmp_path: Path) -> None:
    text = invoke("export", network, "--format", "arduino", "-o", tmp_path / "lib",
                  "--author", "A. Person", "--package-version", "2.0.1")  # fmt: skip
    assert str(tmp_path / "lib" / "README.md") in text
    properties = (tmp_path / "lib" / "library.properties").read_text()
    assert "author=A. Person\n" in properties
    assert "version=2.0.1\n" in properties


@pytest.mark.qemu
def test_export_verb_checks_the_board(network: Path, tmp_path: Path) -> None:
    said = json.loads(
        invoke("export", network, "--format", "bare", "--board", "nucleo-f446re", "-o",
               tmp_path / "fw", "--json")
    )  # fmt: skip
    assert said["board"] == "nucleo-f446re"
    assert 0 < said["flash_bytes"] < load_board("nucleo-f446re").flash.size
    assert invoke("export", network, "--format", "bare", "--board", "microbit-v1", status=5)


def test_compile_verb_writes_a_package(network: Path, tmp_path: Path) -> None:
    model = network.with_name("small.onnx")
    invoke("compile", model, "--board", "nrf52840-dk", "--format", "cmake", "-o", tmp_path / "out")
    marked = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (marked["export"], marked["target"]) == ("cmake", "cortex-m4")
    assert marked["board"] == "nrf52840-dk"
    assert "--board" in invoke("compile", model, status=2)


@pytest.mark.qemu
def test_verify_verb_takes_a_board(network: Path) -> None:
    said = json.loads(invoke("verify", network, "--board", "nucleo-h743zi", "--json", status=5))
    assert "TQ304" in json.dumps(said)
    assert invoke("verify", network, "--board", "nucleo-f446re", "--random", "2")


def test_boards_verb() -> None:
    listed = json.loads(invoke("boards", "--json"))["boards"]
    assert [board["name"] for board in listed] == list(board_names())
    found = {board["name"]: board for board in listed}["arduino-nano-33-ble"]
    assert found["flash_bytes"] == (1024 - 64) * 1024
    assert "nucleo-h743zi" in invoke("boards")
