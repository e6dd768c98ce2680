"""The demo that `make demo` runs: trained, quantized, compiled, verified on held-out digits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.qemu, pytest.mark.torch]


def test_digits_demo(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits" / "demo.py"), "--out", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5,400 of 5,400 output integers equal" in done.stdout
    accuracies = [float(x) for x in re.findall(r"accuracy, .*?([\d.]+)%", done.stdout)]
    float_accuracy, oracle, c = accuracies
    assert oracle == c > 95
    assert abs(float_accuracy - c) < 1
    manifest = json.loads((tmp_path / "firmware" / "manifest.json").read_text())
    assert manifest["target"] == "cortex-m4"
    assert not any(layer["op"] == "transpose" for layer in manifest["layers"])
