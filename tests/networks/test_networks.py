"""Real networks, from the file to the emulated core: every output integer equals onnxruntime's.

The models are not part of the project. They are looked for in the folder that TINYQ_MODELS names,
else in ../shared/models beside the checkout, and the data in TINYQ_DATA or ../shared/data.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import tinyq
from tinyq.target import core_names
from tinyq.verification.verify import VerifyOptions, VerifyReport

_SHARED = Path(__file__).resolve().parents[2].parent / "shared"
MODELS = Path(os.environ.get("TINYQ_MODELS", _SHARED / "models")) / "mlperf-tiny"
DATA = Path(os.environ.get("TINYQ_DATA", _SHARED / "data"))

# The most accumulators that may need a correction, with room for nothing worse than was measured.
MOST_FIXES = {"kws": 14, "vww": 80, "ic": 45, "ad": 0, "sww": 25}

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.skipif(not MODELS.is_dir(), reason=f"no models in {MODELS}"),
]


def compiled(name: str, target: str, folder: Path) -> Path:
    out = folder / name
    tinyq.compile(MODELS / f"{name}_int8.onnx", output=out, target=target, name=name)
    return out


def verified(name: str, target: str, folder: Path, options: VerifyOptions) -> VerifyReport:
    report = tinyq.verify(compiled(name, target, folder), options)
    assert report.equal, report.comparisons
    assert report.outputs_different == 0
    return report


@pytest.mark.parametrize("name", MOST_FIXES)
def test_all_networks_on_cortex_m4(name: str, tmp_path: Path) -> None:
    report = verified(name, "cortex-m4", tmp_path, VerifyOptions(random=20, seed=1))
    assert report.samples == 20
    assert report.stack_bytes is not None
    assert report.stack_bound_bytes is not None
    assert report.stack_bytes <= report.stack_bound_bytes
    manifest = json.loads((tmp_path / name / "manifest.json").read_text())
    proofs = [layer["exactness"] for layer in manifest["layers"]]
    assert all(proof["exact"] and proof["differing"] == 0 for proof in proofs)
    assert sum(p["fixes"] for p in proofs if p["basis"] == "accumulators") <= MOST_FIXES[name]


@pytest.mark.parametrize("target", [name for name in core_names() if name != "cortex-m4"])
@pytest.mark.parametrize("name", ["kws", "ad"])
def test_every_core(name: str, target: str, tmp_path: Path) -> None:
    verified(name, target, tmp_path, VerifyOptions(random=20, seed=2))


def test_layer_by_layer(tmp_path: Path) -> None:
    """Every layer of the residual network equals onnxruntime's tensor and the C's."""
    report = verified("ic", "cortex-m4", tmp_path, VerifyOptions(random=2, seed=3, layers=True))
    compared = [layer for layer in report.layers if layer.oracle_different is not None]
    assert len(compared) >= len(report.layers) - 2
    assert all(layer.different == 0 for layer in report.layers)


def test_thousand_spoken_words(tmp_path: Path) -> None:
    """The official test set of keyword spotting: 90.2% right, all 12,000 integers equal."""
    samples = DATA / "kws01_speech_commands_test.npz"
    if not samples.is_file():
        pytest.skip(f"no {samples}")
    report = verified("kws", "cortex-m4", tmp_path, VerifyOptions(samples=samples))
    assert (report.samples, report.outputs_compared) == (1000, 12000)
    assert report.accuracy == report.oracle_accuracy == 0.902


@pytest.mark.parametrize("toolchain", ["gcc", "zig"])
@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4"])
@pytest.mark.parametrize("name", ["kws", "ad"])
def test_unicorn_beside_qemu(name: str, target: str, toolchain: str, tmp_path: Path) -> None:
    """The same firmware in both: equal outputs and layers, and the same count and stack."""
    emulated = VerifyOptions(
        emulator="qemu,unicorn", toolchain=toolchain, random=2, seed=4, layers=True
    )
    qemu, unicorn = verified(name, target, tmp_path, emulated).runs
    assert (qemu.emulator, unicorn.emulator) == ("qemu", "unicorn")
    assert qemu.equal
    assert unicorn.equal
    assert unicorn.instructions_per_inference is not None
    assert qemu.instructions_per_inference == unicorn.instructions_per_inference
    assert qemu.stack_bytes == unicorn.stack_bytes
