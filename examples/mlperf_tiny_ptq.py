"""tinyq's post-training quantization beside MLPerf Tiny's official int8 files, and on ResNet-20.

    TINYQ_MODELS=../shared/models python examples/mlperf_tiny_ptq.py [PART ...]

Prints the tables of docs/quantization.md; the parts are ``mlperf``, ``resnet20`` (both by default),
``claims`` and ``compiled``. The networks and CIFAR-10 are not part of the project:
``TINYQ_MODELS`` is the folder with ``mlperf-tiny/`` and ``apot/``, ``TINYQ_DATA`` that of the
images (``data`` beside it by default). The person detector gets enlarged CIFAR-10 images, the
anomaly detector log-mel features of made-up machine sounds, as their own test sets are not at hand:
good for comparing outputs with the float network's, not for accuracy.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import tinyq
from tinyq.ptq import CalibrationData, PtqConfig, from_arrays, inputs_of, quantize
from tinyq.ptq.observe import session as quantized_session
from tinyq.verification.verify import VerifyOptions

MODELS = Path(os.environ.get("TINYQ_MODELS", "../shared/models"))
DATA = Path(os.environ.get("TINYQ_DATA") or MODELS.parent / "data")
MEAN, STD = np.float32([0.491, 0.482, 0.447]), np.float32([0.247, 0.243, 0.262])
Array = np.ndarray[Any, Any]


def cifar10(split: str, count: int) -> tuple[Array, Array]:
    """``count`` images at random (the files are sorted by class): [N, 32, 32, 3], 0 to 255."""
    from PIL import Image

    with np.load(DATA / f"cifar10_jpeg_{split}.npz") as z:
        jpeg, offset, labels = z["jpeg"], z["offset"], z["y"]
    chosen = np.random.default_rng(0).permutation(len(labels))[:count]
    images = [
        np.asarray(Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())))
        for i in chosen
    ]
    return np.stack(images).astype(np.float32), labels[chosen].astype(np.int64)


def enlarged(images: Array) -> Array:
    """CIFAR-10 images as the person detector's input: [N, 96, 96, 3], 0 to 1."""
    from PIL import Image

    resized = [
        np.asarray(Image.fromarray(i.astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC))
        for i in images
    ]
    return np.stack(resized).astype(np.float32) / 255


def machine_sounds(count: int, seed: int) -> Array:
    """Features as the anomaly detector takes them, of made-up fans: [N, 640].

    Five frames of 128 mel bands in dB, from a harmonic tone, noise and slow modulation at 16 kHz;
    windows of 1,024 samples every 512. Levels are chosen so that the features, -40 to 0 dB, are in
    the region where the float network reconstructs best, and the official file errs least.
    """
    rng = np.random.default_rng(seed)
    mel = _mel_filters(128, 1024, 16000)
    features = np.empty((count, 640), np.float32)
    t = np.arange(1024 + 4 * 512) / 16000
    for i in range(count):
        base, level = rng.uniform(60, 400), 10 ** rng.uniform(-4.5, -2.5)
        tone = sum(np.sin(2 * np.pi * base * k * t + rng.uniform(0, 6)) / k for k in range(1, 12))
        noise = rng.normal(0, 1, len(t)) * 10 ** rng.uniform(-2, 0)
        sound = level * (tone + noise) * (1 + 0.3 * np.sin(2 * np.pi * rng.uniform(1, 20) * t))
        frames = np.stack([sound[k * 512 : k * 512 + 1024] for k in range(5)]) * np.hanning(1024)
        power = np.abs(np.fft.rfft(frames)) ** 2
        features[i] = (10 * np.log10(power @ mel.T + 1e-4)).ravel()
    return features


def _mel_filters(bands: int, size: int, rate: int) -> Array:
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), bands + 2) / 2595) - 1)
    bins = np.arange(size // 2 + 1) * rate / size
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))


def run(model: onnx.ModelProto, x: Array, batch: int = 50) -> Array:
    """First output on all samples."""
    session = quantized_session(model)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: x[i : i + batch]})[0] for i in range(0, len(x), batch)]
    return np.concatenate(parts)


def official(model: onnx.ModelProto, x: Array) -> Array:
    """Float output of an official file, whose edges are int8."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    first = next(n for n in model.graph.node if model.graph.input[0].name in n.input)
    while first.op_type != "DequantizeLinear":
        first = next(n for n in model.graph.node if first.output[0] in n.input)
    last = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    scale, zero = (constants[name] for name in first.input[1:])
    integers = np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8)
    scale, zero = (constants[name] for name in last.input[1:])
    return (run(model, integers).astype(np.float32) - zero) * scale


@dataclass(frozen=True)
class Task:
    """A network with calibration and test samples."""

    name: str
    calibration: Array
    test: Array
    labels: Array | None


def tasks() -> list[Task]:
    train, _ = cifar10("train", 500)
    test, labels = cifar10("test", 2000)
    return [
        Task("ic", train, test, labels),
        Task("vww", enlarged(train[:200]), enlarged(test[:500]), None),
        Task("ad", machine_sounds(500, 1), machine_sounds(500, 2), None),
    ]


PLAIN: dict[str, Any] = {"bias_correction": False}  # what a calibrator does by itself
MAX = PtqConfig(calibrator="max", **PLAIN)
CONFIGS = {
    "tinyq, max": MAX,
    "tinyq, mse": PtqConfig(calibrator="mse", **PLAIN),
    "tinyq, mse + bias correction (default)": PtqConfig(),
    "tinyq, all + bias correction": PtqConfig(calibrator="all"),
}


def mlperf() -> None:
    print("| network | quantized by | RMS error of the output | mean error | same class | right |")
    print("|---|---|---|---|---|---|")
    for task in tasks():
        path = MODELS / "mlperf-tiny" / f"{task.name}_float.onnx"
        reference = run(onnx.load(path), task.test)
        print(_row(task, "float", reference, reference))
        int8 = onnx.load(MODELS / "mlperf-tiny" / f"{task.name}_int8.onnx")
        print(_row(task, "official int8", reference, official(int8, task.test)))
        infos = inputs_of(path)
        data = from_arrays(infos, {infos[0].name: task.calibration})
        for label, config in CONFIGS.items():
            start = time.monotonic()
            result = quantize(path, data, config)
            seconds = time.monotonic() - start
            chosen = f" ({result.calibrator})" if config.calibrator == "all" else ""
            print(_row(task, label + chosen, reference, run(result.model, task.test)), flush=True)
            print(f"{task.name}: {label} took {seconds:.0f} s", file=sys.stderr)


def _row(task: Task, label: str, reference: Array, found: Array) -> str:
    error = found - reference
    classes = task.name != "ad"
    same = f"{np.mean(reference.argmax(1) == found.argmax(1)):.1%}" if classes else ""
    right = "" if task.labels is None else f"{np.mean(found.argmax(1) == task.labels):.2%}"
    rms, mean = np.sqrt(np.mean(error**2)), np.abs(error).mean()
    return f"| {task.name} | {label} | {rms:.5f} | {mean:.5f} | {same} | {right} |"


INT4: dict[str, Any] = {"weights": "int4", "calibrator": "mse"}
NO_DATA = PtqConfig()
RESNET = {
    "int8, max": MAX,
    "int8, percentile": PtqConfig(calibrator="percentile", **PLAIN),
    "int8, entropy": PtqConfig(calibrator="entropy", **PLAIN),
    "int8, mse": PtqConfig(calibrator="mse", **PLAIN),
    "int8, mse + bias correction (default)": PtqConfig(),
    "int8, no data": NO_DATA,
    "int4 weights, nearest": PtqConfig(**INT4, **PLAIN),
    "int4 weights, bias correction": PtqConfig(**INT4),
    "int4 weights, adaround": PtqConfig(**INT4, **PLAIN, rounding="adaround"),
    "int4 weights, adaround + bias correction": PtqConfig(**INT4, rounding="adaround"),
    "int4 weights in all layers, adaround + bias correction": PtqConfig(
        **INT4, rounding="adaround", edges_int8=False
    ),
}


def _resnet20(folder: Path) -> tuple[Path, CalibrationData, Array, Array]:
    import resnet20

    path = resnet20.export_float_resnet20(folder / "resnet20.onnx")
    train, train_labels = cifar10("train", 500)
    test, labels = cifar10("test", 10000)
    train, test = (((x / 255 - MEAN) / STD).transpose(0, 3, 1, 2) for x in (train, test))
    infos = inputs_of(path)
    return path, from_arrays(infos, {infos[0].name: train}, train_labels), test, labels


def resnet20_table() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, data, test, labels = _resnet20(Path(folder))
        reference = run(onnx.load(path), test)
        print("| quantized to | right, of 10,000 | against float | RMS of the error | time |")
        print("|---|---|---|---|---|")
        right = np.mean(reference.argmax(1) == labels)
        print(f"| float | {right:.2%} | | | |")
        for label, config in RESNET.items():
            start = time.monotonic()
            result = quantize(path, None if config is NO_DATA else data, config)
            seconds = time.monotonic() - start
            print(_resnet_row(label, result.model, test, labels, reference, seconds), flush=True)


def _resnet_row(
    label: str, model: onnx.ModelProto, test: Array, labels: Array, reference: Array, seconds: float
) -> str:
    found = run(model, test)
    right, before = np.mean(found.argmax(1) == labels), np.mean(reference.argmax(1) == labels)
    rms = np.sqrt(np.mean((found - reference) ** 2))
    return (
        f"| {label} | {right:.2%} | {100 * (right - before):+.2f} | {rms:.3f} | {seconds:.0f} s |"
    )


INT4_MAX: dict[str, Any] = {"weights": "int4", "calibrator": "max", **PLAIN}
CLAIMS = {
    # claim: (what should be better, what should be worse, outliers in the calibration data)
    "affine over symmetric": (MAX, PtqConfig(calibrator="max", symmetric=True, **PLAIN), False),
    "per channel over per tensor, int8": (
        MAX, PtqConfig(calibrator="max", per_channel=False, **PLAIN), False,
    ),
    "per channel over per tensor, int4": (
        PtqConfig(**INT4_MAX), PtqConfig(**INT4_MAX, per_channel=False), False,
    ),
    "percentile over max": (PtqConfig(calibrator="percentile", **PLAIN), MAX, False),
    "percentile over max, outliers": (PtqConfig(calibrator="percentile", **PLAIN), MAX, True),
    "entropy over max": (PtqConfig(calibrator="entropy", **PLAIN), MAX, False),
    "entropy over max, outliers": (PtqConfig(calibrator="entropy", **PLAIN), MAX, True),
    "mse over max": (PtqConfig(calibrator="mse", **PLAIN), MAX, False),
    "mse over max, outliers": (PtqConfig(calibrator="mse", **PLAIN), MAX, True),
    "bias correction, int8": (
        PtqConfig(calibrator="mse"), PtqConfig(calibrator="mse", **PLAIN), False,
    ),
    "bias correction, int4": (
        PtqConfig(weights="int4", calibrator="max"), PtqConfig(**INT4_MAX), False,
    ),
    "adaround, int4": (
        PtqConfig(**INT4_MAX, rounding="adaround"), PtqConfig(**INT4_MAX), False,
    ),
}  # fmt: skip


def claims() -> None:
    """What quantization is said to gain, on ic: RMS error of the output and part right."""
    path = MODELS / "mlperf-tiny" / "ic_float.onnx"
    train, _ = cifar10("train", 200)
    test, labels = cifar10("test", 2000)
    reference = run(onnx.load(path), test)
    spoilt = train.copy()
    spoilt[:2] *= 4  # two of 200 samples far beyond what pixels can be
    infos = inputs_of(path)
    data = {
        bad: from_arrays(infos, {infos[0].name: x}) for bad, x in ((False, train), (True, spoilt))
    }
    print("| claim | better: RMS, right | worse: RMS, right | held |")
    print("|---|---|---|---|")
    for claim, (better, worse, bad) in CLAIMS.items():
        found = [run(quantize(path, data[bad], c).model, test) for c in (better, worse)]
        rms = [np.sqrt(np.mean((f - reference) ** 2)) for f in found]
        right = [np.mean(f.argmax(1) == labels) for f in found]
        cells = " | ".join(f"{e:.4f}, {r:.2%}" for e, r in zip(rms, right, strict=True))
        print(f"| {claim} | {cells} | {'yes' if rms[0] < rms[1] else 'no'} |", flush=True)


def compiled() -> None:
    """Networks quantized and compiled in one step, run in QEMU, compared with onnxruntime."""
    print("| network | quantized to | equal integers | flash | RAM | instructions | time |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task in tasks():
            path = MODELS / "mlperf-tiny" / f"{task.name}_float.onnx"
            infos = inputs_of(path)
            data = from_arrays(infos, {infos[0].name: task.calibration[:200]})
            _compiled_row(folder, task.name, path, data, "int8", PtqConfig())
        path, data, _, _ = _resnet20(folder)
        _compiled_row(folder, "resnet20", path, data.take(200), "int8", PtqConfig())
        adaround = PtqConfig(**INT4, rounding="adaround")
        _compiled_row(folder, "resnet20", path, data.take(200), "int4 weights, adaround", adaround)


def _compiled_row(
    folder: Path, name: str, path: Path, data: CalibrationData, label: str, config: PtqConfig
) -> None:
    start, output = time.monotonic(), folder / name
    tinyq.compile(path, output=output, target="cortex-m4", calib=data, quantization=config)
    report = tinyq.verify(output, VerifyOptions(random=20))
    equal = report.outputs_compared - report.outputs_different
    print(
        f"| {name} | {label} | {equal:,} of {report.outputs_compared:,} | {report.flash_bytes:,} | "
        f"{report.ram_bytes:,} | {report.instructions_per_inference:,.0f} | "
        f"{time.monotonic() - start:.0f} s |",
        flush=True,
    )


PARTS = {"mlperf": mlperf, "resnet20": resnet20_table, "claims": claims, "compiled": compiled}


def main() -> None:
    wanted = sys.argv[1:] or ["mlperf", "resnet20"]
    for name in wanted:
        PARTS[name]()


if __name__ == "__main__":
    main()
