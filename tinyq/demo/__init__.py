"""A network of handwritten digits that comes with tinyq, for `tinyq demo`.

``examples/digits/demo.py --package`` trains and writes it, with 100 digits that it was not trained
on (of scikit-learn's 8x8 scans).
"""

from pathlib import Path

MODEL = Path(__file__).with_name("digits.onnx")
"""An int8 network in ONNX: [1, 1, 8, 8] to [1, 10]."""

SAMPLES = Path(__file__).with_name("digits.npz")
"""``x``, pixels from 0 to 1, [100, 1, 8, 8]; ``y``, the digits."""
