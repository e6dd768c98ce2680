"""MLPerf Tiny's image classifier fitted into less and less flash, and what that leaves right.

    python examples/fit_ic.py --jobs 2

Calibrates on 256 CIFAR-10 training images, and counts what is right of 2,000 test images for every
point of the front; needs the folders of networks (``TINYQ_MODELS``) and data (``TINYQ_DATA``).
``calib.npz`` is left for ``tinyq fit``.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime
from resnet20 import cifar10_pixels, models_dir

from tinyq.fit import Budget, assigned, fit
from tinyq.ptq import CalibrationData, PtqConfig, inputs_of
from tinyq.ptq.emit import emit
from tinyq.ptq.pipeline import prepare_model
from tinyq.target import load_core


def images(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels float32 [count, 32, 32, 3], 0 to 255, and labels."""
    pixels, labels = cifar10_pixels(split, count)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy().astype(np.float32), labels.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--test", type=int, default=2000)
    args = parser.parse_args()
    model = models_dir() / "mlperf-tiny" / "ic_float.onnx"
    x, y = images("train", 256)
    np.savez("calib.npz", x=x, y=y)
    data = CalibrationData({inputs_of(model)[0].name: x}, y)
    found = fit(model, data, load_core("cortex-m4"), Budget(), points=args.points, jobs=args.jobs)
    prepared = prepare_model(model, data, PtqConfig())
    x_test, y_test = images("test", args.test)
    print("| flash | predicted dB | measured dB | right of the test images | weights |")
    print("|---|---|---|---|---|")
    for point, quality in found.front:
        forms = found.problem.forms(point.choice)
        quantized = emit(prepared.graph, prepared.units, assigned(prepared, forms))
        session = onnxruntime.InferenceSession(quantized.SerializeToString())
        (scores,) = session.run(None, {session.get_inputs()[0].name: x_test})
        right = 100.0 * float((scores.argmax(1) == y_test).mean())
        bits = " ".join(form.removeprefix("int") for form in forms.values())
        print(
            f"| {point.prediction.flash_bytes:,} | {found.sqnr_db(point.prediction):.1f} | "
            f"{quality.sqnr_db:.1f} | {right:.1f}% | {bits} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
