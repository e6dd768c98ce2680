"""Bad input: one clear message, a status of its own, and no half-written folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cli_models
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from tinyq.cli import app
from tinyq.errors import CATALOG

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def saved(make: Callable[[], onnx.ModelProto]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        onnx.save(make(), path)
        return path

    return write


def contents(data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(data)
        return path

    return write


def truncated(folder: Path) -> Path:
    data = cli_models.good().SerializeToString()
    return contents(data[: len(data) // 2])(folder)


BAD_MODELS = {
    "missing": (lambda folder: folder / "nothing.onnx", "TQ101", "no such file"),
    "folder": (lambda folder: folder, "TQ101", "it is a folder"),
    "text": (contents(b"This is not a model."), "TQ102", "20 bytes"),
    "empty": (contents(b""), "TQ102", "no ONNX graph"),
    "truncated": (truncated, "TQ102", "do not parse"),
    "old opset": (saved(cli_models.old_opset), "TQ104", "opset 11"),
    "external data missing": (cli_models.write_external, "TQ105", "w.bin"),
    "dynamic shape": (saved(cli_models.dynamic_shape), "TQ106", "[1,3,?,?]"),
    "float": (saved(cli_models.float_model), "TQ202", "not quantized"),
    "partly quantized": (saved(cli_models.partly_quantized), "TQ202", "Quantize"),
    "unknown operators": (saved(cli_models.unknown_operators), "TQ201", "NonZeroish"),
}


@pytest.mark.parametrize(("make", "code", "said"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_models(make: Callable[[Path], Path], code: str, said: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["compile", str(make(tmp_path)), "--target", "cortex-m4", "-o", str(out)]
    before = sorted(tmp_path.rglob("*"))
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == CATALOG[code].exit_status
    assert code in result.stderr
    assert said in " ".join(result.stderr.split())
    assert not result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_every_refused_node_is_listed_at_once(tmp_path: Path) -> None:
    path = saved(cli_models.unknown_operators)(tmp_path)
    result = RUNNER.invoke(app, ["compile", str(path), "--target", "cortex-m4", "--json"])
    errors = json.loads(result.stdout)["errors"]
    assert {e["operator"] for e in errors} >= {"my.domain.NonZeroish", "Hardmax"}
    assert all(e["node"] and e["found"] and e["remedy"] for e in errors)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(cli_models.good)(tmp_path)


BAD_OPTIONS = {
    "unknown target": (["--target", "cortex-m9"], 5, "TQ301"),
    "unknown instruction set": (["--target", "cortex-m0+dsp"], 5, "TQ301"),
    "no target": ([], 2, "--target"),
    "unknown goal": (["--target", "cortex-m4", "--optimize", "beauty"], 2, "beauty"),
    "unknown oracle": (["--target", "cortex-m4", "--oracle", "delphi"], 2, "delphi"),
    "shape without name": (["--target", "cortex-m4", "--shape", "1,2"], 5, "TQ303"),
    "shape of no input": (["--target", "cortex-m4", "--shape", "sound=1,2"], 3, "TQ107"),
    "shape with letters": (["--target", "cortex-m4", "--shape", "image=1,a"], 5, "TQ303"),
    "name with a dash": (["--target", "cortex-m4", "--name", "my-net"], 9, "TQ702"),
}


@pytest.mark.parametrize(("options", "status", "said"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(
    options: list[str], status: int, said: str, model: Path, tmp_path: Path
) -> None:
    result = RUNNER.invoke(app, ["compile", str(model), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == status
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def compiled(model: Path, folder: Path) -> Path:
    out = folder / "net"
    result = RUNNER.invoke(app, ["compile", str(model), "-t", "cortex-m4", "-o", str(out), "-q"])
    assert (result.exit_code, result.output) == (0, "")
    return out


def test_foreign_folder_is_left_alone(model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    result = RUNNER.invoke(app, ["compile", str(model), "-t", "cortex-m4", "-o", str(mine)])
    assert result.exit_code == 9
    assert "TQ701" in result.stderr
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


def test_full_disk_keeps_what_was_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = compiled(model, tmp_path)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".h":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    arguments = ["compile", str(model), "-t", "cortex-m0", "-o", str(out)]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 9
    assert "No space left" in result.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "net"]


def test_a_defect_has_a_status_and_json_of_its_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OverflowError("Python integer -144 out of bounds for int8")

    monkeypatch.setattr("tinyq.api.compile_model", broken)
    arguments = ["compile", str(model), "--target", "cortex-m4", "-o", str(tmp_path / "out")]
    result = RUNNER.invoke(app, [*arguments, "--json"])
    assert result.exit_code == CATALOG["TQ999"].exit_status == 13
    (found,) = json.loads(result.stdout)["errors"]
    assert found["code"] == "TQ999"
    assert "OverflowError: Python integer -144" in found["found"]
    assert "Traceback" in result.stderr
    assert not (tmp_path / "out").exists()


def test_disk_fills_while_verifying(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = compiled(model, tmp_path)

    def full(path: Path, text: str, **options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    result = RUNNER.invoke(app, ["verify", str(out), "--emulator", "host", "--json"])
    assert result.exit_code == CATALOG["TQ703"].exit_status
    assert json.loads(result.stdout)["errors"][0]["code"] == "TQ703"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 KiB: enough for the sources around the network, not for its objects."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_really_full_disk(model: Path, tmp_path: Path, full_disk: Path) -> None:
    out = compiled(model, tmp_path)
    (full_disk / "filler").write_bytes(bytes(36 * 1024))
    done = run(["verify", str(out), "--emulator", "host"], TMPDIR=str(full_disk))
    assert done.returncode == 9
    assert "TQ703" in done.stderr
    assert "No space left on device" in " ".join(done.stderr.split())
    done = run(["compile", str(model), "-t", "cortex-m4", "-o", str(full_disk / "net")])
    assert done.returncode == 9
    assert "TQ701" in done.stderr
    assert not (full_disk / "net").exists()
    assert not list(full_disk.glob(".net*"))


def test_interrupt_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tinyq.api.lower_model", interrupt)
    result = RUNNER.invoke(app, ["compile", str(model), "-t", "cortex-m4"])
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr


def test_our_own_mistakes_are_not_hidden(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("tinyq.api.lower_model", broken)
    result = RUNNER.invoke(app, ["compile", str(model), "-t", "cortex-m4"])
    assert result.exit_code == 13
    assert "ZeroDivisionError: ours" in result.stderr
    assert "Traceback" in result.stderr
    assert not result.stdout


def write_samples(folder: Path, **arrays: np.ndarray) -> str:
    path = folder / "samples.npz"
    np.savez(path, **arrays)
    return str(path)


GOOD_SHAPE = (2, 3, 6, 5)
BAD_SAMPLES = {
    "missing": (lambda folder: str(folder / "no.npy"), "TQ501"),
    "no x": (lambda folder: write_samples(folder, z=np.zeros(GOOD_SHAPE, np.int8)), "TQ501"),
    "shape": (lambda folder: write_samples(folder, x=np.zeros((2, 3, 6, 4), np.int8)), "TQ502"),
    "range": (lambda folder: write_samples(folder, x=np.full(GOOD_SHAPE, 200)), "TQ502"),
    "NaN": (
        lambda folder: write_samples(folder, x=np.full(GOOD_SHAPE, np.nan, np.float32)), "TQ502",
    ),
    "none": (lambda folder: write_samples(folder, x=np.zeros((0, 3, 6, 5), np.int8)), "TQ502"),
    "labels": (
        lambda folder: write_samples(folder, x=np.zeros(GOOD_SHAPE, np.int8), y=np.zeros(3)),
        "TQ504",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "code"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_bad_samples(make: Callable[[Path], str], code: str, model: Path, tmp_path: Path) -> None:
    arguments = ["verify", str(compiled(model, tmp_path)), "--samples", make(tmp_path)]
    result = RUNNER.invoke(app, [*arguments, "--emulator", "host"])
    assert code in result.stderr
    assert result.exit_code == 8


BAD_VERIFICATIONS = {
    "not a folder": (["nowhere"], 3, "TQ503"),
    "unknown emulator": (["net", "--emulator", "simics"], 5, "TQ303"),
    "samples twice": (["net", "--samples", "a.npy", "--random", "3"], 5, "TQ303"),
    "no samples": (["net", "--random", "0"], 5, "TQ303"),
    "unknown target": (["net", "--target", "z80"], 5, "TQ301"),
}


@pytest.mark.parametrize(
    ("arguments", "status", "code"), BAD_VERIFICATIONS.values(), ids=BAD_VERIFICATIONS
)
def test_bad_verifications(
    arguments: list[str], status: int, code: str, model: Path, tmp_path: Path
) -> None:
    compiled(model, tmp_path)
    folder = str(tmp_path / arguments[0])
    result = RUNNER.invoke(app, ["verify", folder, *arguments[1:]])
    assert result.exit_code == status
    assert code in result.stderr


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The program itself, with some of the environment replaced."""
    return subprocess.run(
        [sys.executable, "-m", "tinyq", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "code"),
    [
        (["--toolchain", "gcc"], {"PATH": "/nowhere"}, 6, "TQ401"),
        (["--emulator", "host"], {"PATH": "/nowhere"}, 6, "TQ401"),
        ([], {"TINYQ_QEMU": "no-such-qemu"}, 7, "TQ403"),
        (["--emulator", "bochs"], {}, 5, "TQ303"),
        (["--emulator", "unicorn", "--target", "cortex-m55"], {}, 7, "TQ409"),
        (["--emulator", "qemu,renode"], {"RENODE": "no-such-renode"}, 7, "TQ403"),
        (["--emulator", "renode", "--target", "cortex-m55"], {}, 7, "TQ409"),
    ],
)
def test_missing_or_unknown_programs(
    arguments: list[str],
    variables: dict[str, str],
    status: int,
    code: str,
    model: Path,
    tmp_path: Path,
) -> None:
    folder = compiled(model, tmp_path)
    done = run(["verify", str(folder), *arguments, "--random", "1"], **variables)
    assert done.returncode == status
    assert code in done.stderr
    assert any(word in done.stderr for word in ("nstall", "Accepted"))
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(model: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    result = RUNNER.invoke(
        app, ["compile", str(model), "-t", "cortex-m4", "-o", str(locked / "net")]
    )
    assert result.exit_code == 9
    assert "TQ701" in result.stderr


def test_output_below_a_file(model: Path) -> None:
    result = RUNNER.invoke(app, ["compile", str(model), "-t", "cortex-m4", "-o", f"{model}/net"])
    assert result.exit_code == 9
    assert "TQ701" in result.stderr
