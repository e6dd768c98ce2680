"""Quantization in PyTorch: prepare, train or reconstruct, convert, export.

``prepare`` inserts fake quantization, any training loop (or :func:`fit`) trains it, ``convert``
makes the integers and ``export`` writes a QDQ ONNX file that onnxruntime computes identically.
"""

from tinyq.learn.config import QuantConfig, apot_config
from tinyq.learn.convert import convert
from tinyq.learn.export import export, export_float
from tinyq.learn.prepare import calibrate, freeze, prepare

__all__ = [
    "QuantConfig",
    "apot_config",
    "calibrate",
    "convert",
    "export",
    "export_float",
    "freeze",
    "prepare",
]
