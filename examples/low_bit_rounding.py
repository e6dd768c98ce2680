"""What rounding the weights of a network to few levels leaves of its accuracy.

    python examples/low_bit_rounding.py kws_int8.onnx kws01_speech_commands_test.npz

Rounds with every format of ``tinyq compile --weights`` (the first and the last layer stay), and
runs the integers of each network on labelled samples (``x`` and ``y``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tinyq.api import CompileOptions, lower_model
from tinyq.quant.coarse import FORMATS
from tinyq.report.encodings import layer_encodings
from tinyq.verification.reference import outputs


def accuracy(model: Path, form: str, samples: Path) -> tuple[float, int]:
    """Percent right, and bytes of packed weights."""
    graph, _, _ = lower_model(model, CompileOptions("", weights=form))
    loaded = np.load(samples)
    (value,) = graph.inputs
    right = 0
    for x, y in zip(loaded["x"], loaded["y"], strict=True):
        (found, *_) = outputs(graph, {value.name: x.reshape(value.type.shape)})
        right += int(np.argmax(found) == y)
    stored = sum(layer.packed_bytes for layer in layer_encodings(graph))
    return 100 * right / len(loaded["y"]), stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path, help="int8 samples `x` and labels `y`, .npz")
    args = parser.parse_args()
    print("| weights | bytes | right |\n|---|---|---|")
    for form in ("", *reversed(FORMATS)):
        percent, stored = accuracy(args.model, form, args.samples)
        print(f"| {form or 'as given'} | {stored:,} | {percent:.1f}% |", flush=True)


if __name__ == "__main__":
    main()
