"""The verbs on good input: what they print, and the same as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cli_models
import numpy as np
import onnx
import pytest
from rich.table import Table
from typer.testing import CliRunner

import tinyq
from tinyq.cli import app
from tinyq.cli.console import progress, show
from tinyq.errors import CATALOG
from tinyq.ops import REGISTRY
from tinyq.target import core_names

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
PROMISED = (
    "equal", "samples", "outputs_compared", "outputs_different", "max_difference", "accuracy",
    "emulator", "target", "instructions_per_inference", "flash_bytes", "arena_bytes",
    "stack_bytes", "ram_bytes", "layers",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled folder, and the model beside it."""
    place = tmp_path_factory.mktemp("cli")
    onnx.save(cli_models.good(), place / "model.onnx")
    tinyq.compile(place / "model.onnx", output=place / "net", target="cortex-m4")
    return place / "net"


def invoke(*arguments: str | Path) -> str:
    result = RUNNER.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return result.stdout


def test_compile_reports_and_writes(folder: Path, tmp_path: Path) -> None:
    model = folder.with_name("model.onnx")
    text = invoke("compile", model, "--target", "cortex-m4", "-o", tmp_path / "net")
    for said in ("conv2d", "dense", "proved", "all exact", "arena", f"verify {tmp_path / 'net'}"):
        assert said in text
    names = {p.name for p in (tmp_path / "net").iterdir()}
    assert {"model.c", "model.h", "model_data.c", "manifest.json", "model.onnx"} <= names


def test_compile_json_is_the_manifest(folder: Path, tmp_path: Path) -> None:
    model = folder.with_name("model.onnx")
    found = json.loads(invoke("compile", model, "-t", "cortex-m4", "-o", tmp_path / "n", "--json"))
    assert found["directory"] == str(tmp_path / "n")
    written = json.loads((tmp_path / "n" / "manifest.json").read_text())
    assert {k: v for k, v in found.items() if k != "directory"} == written
    assert written["macs"] == 4 * 6 * 5 * 27 + 4 * 5


def test_default_folder_is_the_models_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("compile", folder.with_name("model.onnx"), "-t", "cortex-m3", "--quiet")
    assert (tmp_path / "model" / "model.h").is_file()


def test_verify_json_keeps_its_promise(folder: Path) -> None:
    found = json.loads(
        invoke("verify", folder, "--random", "3", "--seed", "5", "--layers", "--json")
    )
    assert set(PROMISED) <= set(found)
    assert found["equal"] is True
    assert (found["samples"], found["outputs_compared"]) == (3, 15)
    assert (found["outputs_different"], found["max_difference"]) == (0, 0)
    assert (found["emulator"], found["target"]) == ("qemu", "cortex-m4")
    assert found["ram_bytes"] == found["arena_bytes"] + found["stack_bytes"]
    # Layers are counted in a build of their own, whose code differs a little around the hooks.
    layers = sum(x["instructions"] for x in found["layers"])
    assert abs(found["instructions_per_inference"] - layers) < 0.01 * layers
    assert all(layer["different"] == 0 for layer in found["layers"])


def test_verify_prints_the_verdict_last(folder: Path) -> None:
    text = invoke("verify", folder, "--emulator", "host", "--layers", "--random", "2")
    assert text.rstrip().splitlines()[-1].startswith("EQUAL: onnxruntime")
    assert "reference and host" in text
    assert "conv2d_s8" in text


def test_labels_give_accuracy(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(-128, 128, (4, 3, 6, 5)).astype(np.int8))
    np.save(tmp_path / "y.npy", np.arange(4) % 5)
    arguments = ["verify", folder, "--samples", tmp_path / "x.npy", "--labels", tmp_path / "y.npy"]
    found = json.loads(invoke(*arguments, "--emulator", "host", "--json"))
    assert found["accuracy"] == found["oracle_accuracy"] in (0, 0.25, 0.5, 0.75, 1)


def test_a_wrong_network_is_caught(folder: Path, tmp_path: Path) -> None:
    """C with one weight changed differs; the status says so and the first layer is named."""
    invoke("compile", folder.with_name("model.onnx"), "-t", "cortex-m4", "-o", tmp_path / "n", "-q")
    data = tmp_path / "n" / "model_data.c"
    at = (text := data.read_text()).index("{", text.index("weights"))
    first = re.search(r"-?\d+", text[at:])
    assert first
    start, end = at + first.start(), at + first.end()
    data.write_text(f"{text[:start]}{-int(first[0])}{text[end:]}")
    result = RUNNER.invoke(app, ["verify", str(tmp_path / "n"), "--emulator", "host", "--layers"])
    assert result.exit_code == 1
    assert "DIFFERENT" in result.stdout
    assert "The first layer that differs is 1, conv2d" in result.stdout
    quiet = RUNNER.invoke(app, ["verify", str(tmp_path / "n"), "--emulator", "host", "--quiet"])
    assert (quiet.exit_code, quiet.output) == (1, "")


def test_profile_counts_every_layer(folder: Path) -> None:
    (found,) = json.loads(invoke("profile", folder, "--json"))["profiles"]
    # The layers are counted in a profiled build, whose code differs a little from the plain one.
    counted = sum(x["instructions"] for x in found["layers"])
    assert abs(found["instructions"] - counted) <= found["instructions"] / 100
    conv = next(x for x in found["layers"] if x["op"] == "conv2d")
    assert conv["instructions_per_mac"] == conv["instructions"] / (4 * 6 * 5 * 27)
    assert found["cycles"] > found["instructions"]
    assert sum(x["cycles"] for x in found["functions"]) == pytest.approx(found["cycles"], rel=0.01)
    text = invoke("profile", folder, "--board", "nucleo-l4r5zi", "--functions")
    assert "Most time is spent in" in text
    assert f"{found['cycles'] / 120e3:.3g} ms at 120 MHz" in text
    assert "1.4 times the estimate" in text
    assert "net_invoke" in text or "model_invoke" in text
    other = RUNNER.invoke(app, ["profile", str(folder), "--board", "raspberry-pi-pico"])
    assert other.exit_code == 5
    assert "TQ304" in other.stderr


def test_profile_compares(folder: Path, tmp_path: Path) -> None:
    model = folder.with_name("model.onnx")
    invoke("compile", model, "-t", "cortex-m0", "-o", tmp_path / "m0", "-q")
    text = invoke("profile", folder, "--compare", tmp_path / "m0")
    assert "cortex-m4" in text
    assert "cortex-m0" in text
    assert "change" in text


def test_inspect_prints_both_stages_and_folders(folder: Path) -> None:
    model = folder.with_name("model.onnx")
    assert "conv2d" in invoke("inspect", model)
    assert "QuantizeLinear" in invoke("inspect", model, "--stage", "qdq")
    assert "all exact" in invoke("inspect", folder)
    assert json.loads(invoke("inspect", folder, "--json"))["name"] == "model"


def test_listings_are_complete() -> None:
    targets = json.loads(invoke("targets", "--json"))["targets"]
    assert [t["name"] for t in targets] == list(core_names())
    assert {"cortex-m0", "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33",
            "cortex-m55"} <= {t["name"] for t in targets}  # fmt: skip
    operators = json.loads(invoke("ops", "--json"))["operators"]
    assert [o["name"] for o in operators] == list(REGISTRY.operators)
    assert "cortex-m0plus" in invoke("targets")
    assert "QLinearConv" in invoke("ops")


def test_every_code_is_explained() -> None:
    codes = json.loads(invoke("explain", "--json"))["codes"]
    assert [c["code"] for c in codes] == sorted(CATALOG)
    for code, info in CATALOG.items():
        assert info.remedy in invoke("explain", code.lower())


def test_quantize_then_compile(tmp_path: Path) -> None:
    model = tmp_path / "float.onnx"
    onnx.save(cli_models.float_model(), model)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "c.npz", x=rng.normal(size=(40, 3, 6, 6)).astype(np.float32))
    text = invoke("quantize", model, "--calib", tmp_path / "c.npz")
    assert "SQNR" in text
    invoke("compile", tmp_path / "float.int8.onnx", "-t", "cortex-m4", "-o", tmp_path / "n", "-q")
    invoke("verify", tmp_path / "n", "--emulator", "host", "--random", "3", "-q")
    assert "conv" in invoke("sensitivity", model, "--calib", tmp_path / "c.npz")


def python(*code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code], env=os.environ | environment, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("start", ["import tinyq", "import tinyq.cli; tinyq.cli.app(['--help'])"])
def test_nothing_heavy_is_imported_at_start(start: str) -> None:
    """Half a second is lost to each of these; the help text needs none."""
    code = (
        f"import sys\ntry:\n {start}\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    )
    done = python("-c", code)
    heavy = {"numpy", "onnx", "onnxruntime", "torch", "jinja2", "elftools", "sklearn"}
    assert done.returncode == 0
    assert not heavy & set(done.stderr.split())


def test_help_names_every_verb() -> None:
    text = python("-m", "tinyq", "--help").stdout
    for verb in ("compile", "verify", "inspect", "targets", "ops", "explain", "profile"):
        assert verb in text
    assert python("-m", "tinyq", "--version").stdout == f"tinyq {tinyq.__version__}\n"


def test_no_colour_codes_where_nobody_sees_them(folder: Path) -> None:
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": ""}):
        done = python("-m", "tinyq", "inspect", str(folder), **environment)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m tinyq explain --json | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert "Traceback" not in done.stderr


def test_completion_is_offered() -> None:
    done = python(
        "-m", "tinyq", "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert done.returncode == 0
    assert "complete" in done.stdout


def test_names_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("layer")
    table.add_row("block[bold]/conv:snake:[0]")
    show(table)
    assert "block[bold]/conv:snake:[0]" in capsys.readouterr().out


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(False) as tell:
        tell("working", 1, 2)
    assert capsys.readouterr().err == ""
