"""A wheel in a clean environment: it holds templates and targets, and compiles and verifies.

The environment borrows the packages of this one; with TINYQ_PIP=1 pip installs the wheel with its
extras `emulator` and `plot` and nothing else, from the index that pip is set up for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import onnx
import pytest
from qdq import Qdq

from tinyq.demo import MODEL, SAMPLES

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | variables
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `python -m build --wheel` does, with the build backend that is installed here."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with tinyq from the wheel."""
    place = tmp_path_factory.mktemp("env")
    if os.environ.get("TINYQ_PIP"):
        run(sys.executable, "-m", "venv", place / "venv", cwd=place)
        found = place / "venv" / "bin" / "python"
        run(found, "-m", "pip", "install", "--quiet", f"{wheel}[emulator,plot]", cwd=place)
        return found
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    found = place / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", found, "install", "--quiet"]
    run(*pip, "--no-index", "--no-deps", wheel, cwd=place)
    packages = run(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place)
    # Paths in a .pth file come last, and a checkout's own .pth in there is not followed.
    borrowed = sysconfig.get_path("purelib")
    (Path(packages.strip()) / "borrowed.pth").write_text(borrowed + "\n")
    return found


def test_wheel_holds_what_it_needs_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("templates", "targets"):
        files = {p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob("*") if p.is_file()}
        assert files
        assert {f"tinyq/_data/{folder}/{p.as_posix()}" for p in files} <= names
    assert {"tinyq/py.typed", "tinyq/demo/digits.onnx", "tinyq/demo/digits.npz"} <= names
    assert sum(p.stat().st_size for p in (MODEL, SAMPLES)) < 30_000
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tinyq"}


def test_dependencies_are_few(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    lines = archive.read(metadata).decode().splitlines()
    needed = {
        line.split(": ")[1].split(">")[0] for line in lines
        if line.startswith("Requires-Dist") and "extra ==" not in line
    }  # fmt: skip
    assert needed == {"numpy", "onnx", "onnxruntime", "jinja2", "typer", "rich", "pyelftools"}


def test_installed_wheel_compiles_and_verifies(python: Path, tmp_path: Path) -> None:
    g = Qdq()
    model = g.end(g.op("Relu", g.op("Add", g.x((1, 4)), g.x((1, 4), 0.1)))).model()
    onnx.save(model, tmp_path / "sum.onnx")
    where = run(python, "-c", "import tinyq; print(tinyq.__file__)", cwd=tmp_path).strip()
    assert ROOT not in Path(where).parents
    program = python.with_name("tinyq")
    run(program, "compile", "sum.onnx", "--target", "cortex-m0", cwd=tmp_path)
    text = run(program, "verify", "sum", "--json", "--random", "4", cwd=tmp_path)
    found = json.loads(text)
    assert found["equal"] is True
    assert found["outputs_compared"] == 16
    assert "cortex-m55" in run(program, "targets", cwd=tmp_path)


def test_first_minute_with_pip_alone(python: Path, tmp_path: Path) -> None:
    """What a newcomer does, on a machine without QEMU and without any compiler on the PATH."""

    def tinyq(*arguments: str) -> str:
        return run(
            python.with_name("tinyq"), *arguments, cwd=tmp_path, PATH="/nowhere", COLUMNS="200"
        )

    shown = " ".join(tinyq("demo").split())
    assert (
        "EQUAL: onnxruntime, the integer reference and the C on unicorn agree on all 1,000" in shown
    )
    assert "note qemu-system-arm is not installed: unicorn ran the code" in shown
    assert "note arm-none-eabi-gcc is not installed: zig compiled the code" in shown
    proof = json.loads(tinyq("verify", "digits", "--random", "3", "--layers", "--json"))
    assert proof["equal"] is True
    assert (proof["emulator"], proof["compiler"].split()[0]) == ("unicorn", "zig")
    assert len(proof["notes"]) == 2
    assert proof["instructions_per_inference"] > 100_000
    tinyq("compile", str(MODEL), "--target", "cortex-m0", "-o", "small")
    assert json.loads(tinyq("verify", "small", "--random", "3", "--json"))["equal"] is True
    (profile,) = json.loads(tinyq("profile", "digits", "--json"))["profiles"]
    counted = sum(layer["instructions"] for layer in profile["layers"])
    assert counted == pytest.approx(profile["instructions"], rel=0.01)  # the hooks alone differ
    assert profile["cycles"] > counted > 0
    assert "Written to report.html: EQUAL" in tinyq("report", "digits", "--random", "2")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "unicorn" in page
    assert page.count("<svg") > 3
    assert "proved" in tinyq("inspect", "digits")
    installed = {t["name"]: t["found"] for t in json.loads(tinyq("targets", "--json"))["tools"]}
    assert installed["unicorn"]
    assert installed["zig"]
    assert not installed["qemu"]
    assert not installed["gcc"]
