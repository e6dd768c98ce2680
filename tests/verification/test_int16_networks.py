"""int16 networks on emulated cores, and what verification says of onnxruntime's float32."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq import Qdq

import tinyq
from tinyq.report.verification import steps_text, verdict
from tinyq.verification.verify import VerifyOptions


def network(long_sums: bool = False) -> onnx.ModelProto:
    """int8 in, int16 inside and out: every kind of kernel with an int16 tensor."""
    b, rng = Qdq("int16", opset=21), np.random.default_rng(3)
    x = b.x((1, 5, 9, 7), 0.02, 3, "int8")

    def weights(*shape: int) -> str:
        low = 110 if long_sums else -127
        return b.weights(rng.integers(low, 128, shape), 0.004)

    y = b.qdq(b.op("Relu", b.op("Conv", x, weights(6, 5, 3, 3), pads=[1] * 4)), 9e-5)
    y = b.qdq(b.op("Conv", y, weights(6, 1, 3, 3), group=6, pads=[1] * 4, strides=[2, 2]), 8e-5)
    y = b.qdq(b.op("Relu", b.op("Conv", y, weights(8, 6, 1, 1))), 7e-5)
    z = b.qdq(b.op("Conv", y, weights(8, 8, 3, 3), pads=[1] * 4), 8e-5, 0, "int8")
    y = b.qdq(b.op("Add", y, z), 1.1e-4)
    y = b.qdq(b.op("Mul", b.qdq(b.op("Sigmoid", y), 1 / 32768), y), 1e-4)
    y = b.op("Flatten", b.op("MaxPool", y, kernel_shape=[2, 2], strides=[1, 2]))
    if long_sums:
        y = b.qdq(b.op("Concat", *[y] * 33, axis=1), 1e-4)
    y = b.qdq(b.op("Gemm", y, weights(2112 if long_sums else 64, 7)), 9e-4)
    return b.end(b.op("Softmax", y), 1 / 32768).model()


def compiled(place: Path, target: str, model: onnx.ModelProto) -> Path:
    onnx.save(model, place / "wide.onnx")
    tinyq.compile(place / "wide.onnx", output=place / "wide", target=target)
    return place / "wide"


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m0plus", "cortex-m55"])
def test_equal_on_emulated_cores(target: str, tmp_path: Path) -> None:
    folder = compiled(tmp_path, target, network())
    report = tinyq.verify(folder, VerifyOptions(random=4, layers=True))
    assert report.equal
    assert report.steps is not None
    assert report.steps.layers >= 9
    assert report.steps.largest <= 1
    assert report.comparisons[1].different == 0
    dsp = {layer.kernel for layer in report.layers if layer.kernel.endswith("_s16_dsp")}
    assert bool(dsp) == (target != "cortex-m0plus")


def test_sums_of_64_bits_on_an_emulated_core(tmp_path: Path) -> None:
    folder = compiled(tmp_path, "cortex-m4", network(long_sums=True))
    assert "tinyq_smlald(" in (folder / "wide.c").read_text()
    assert tinyq.verify(folder, VerifyOptions(random=3)).equal


def test_the_header_and_samples_are_int16(tmp_path: Path) -> None:
    b = Qdq("int16", opset=21)
    y = b.op("Relu", b.dq(b.input((1, 4), name="x"), 2e-4))
    folder = compiled(tmp_path, "cortex-m4", b.end(y, 3e-4).model())
    header = (folder / "wide.h").read_text()
    assert "int16_t *wide_input(wide_t *net, int index);" in header
    assert "const int16_t *wide_output(const wide_t *net, int index);" in header
    np.savez(tmp_path / "x.npz", x=np.float32([[-1, 0, 0.5, 3], [6.5536, 9, -9, 1e-4]]))
    report = tinyq.verify(folder, VerifyOptions(emulator="host", samples=tmp_path / "x.npz"))
    assert report.equal
    assert report.samples == 2


def test_a_wrong_weight_is_found(tmp_path: Path) -> None:
    folder = compiled(tmp_path, "cortex-m4", network())
    data = folder / "wide_data.c"
    text = data.read_text()
    array = re.search(r"(\w*layer_\d+_weights\[\d+\][^=]*=\s*\{\s*)(-?\d+)", text)
    assert array is not None
    changed = -int(array.group(2)) or 1
    data.write_text(text[: array.start(2)] + str(changed) + text[array.end(2) :])
    report = tinyq.verify(folder, VerifyOptions(emulator="host", random=4))
    assert not report.equal
    assert report.steps is not None
    assert report.steps.agrees
    assert verdict(report).plain.startswith("DIFFERENT")


def test_the_report_tells_what_was_compared(tmp_path: Path) -> None:
    folder = compiled(tmp_path, "cortex-m4", network())
    report = tinyq.verify(folder, VerifyOptions(emulator="host", random=2))
    text = steps_text(report)
    assert text.endswith("all within float32's error of a rounding boundary.")
    assert "to its rounding on every layer" in verdict(report).plain
    assert report.to_json()["steps"]["unexplained"] == 0
