"""``tinyq demo``: the network that comes with tinyq, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tinyq.cli import app
from tinyq.demo import SAMPLES

pytestmark = pytest.mark.qemu
RUNNER = CliRunner()


def test_demo_proves_the_network_on_both_emulators(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    done = RUNNER.invoke(app, ["demo", "-o", str(out), "--emulator", "qemu,unicorn", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    labels = np.load(SAMPLES)["y"]
    assert found["equal"] is True
    assert found["samples"] == len(labels) == 100
    assert found["outputs_compared"] == 2 * 100 * 10
    assert found["accuracy"] == found["oracle_accuracy"] > 0.95
    qemu, unicorn = found["runs"]
    assert qemu["instructions_per_inference"] == unicorn["instructions_per_inference"] > 0
    assert (out / "digits.h").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["--target", "cortex-m99"], "TQ301", 5),
        (["--emulator", "bochs"], "TQ303", 5),
        (["--emulator", "unicorn", "--target", "cortex-m55"], "TQ409", 7),
    ],
)
def test_unknown_names_write_nothing(
    arguments: list[str], code: str, status: int, tmp_path: Path
) -> None:
    out = tmp_path / "digits"
    done = RUNNER.invoke(app, ["demo", "-o", str(out), *arguments])
    assert done.exit_code == status
    assert code in done.stderr
    assert not out.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        done = RUNNER.invoke(app, ["demo", "-o", str(out)])
        assert done.exit_code == 9
        assert "TQ70" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
