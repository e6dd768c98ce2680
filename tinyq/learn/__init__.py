"""Quantization in PyTorch: prepare, train or reconstruct, convert, export.

``prepare`` inserts fake quantization, any training loop (or :func:`fit`) trains it, ``convert``
makes the integers and ``export`` writes a QDQ ONNX file that onnxruntime computes identically.
"""

from tinyq.learn.biases import align_biases
from tinyq.learn.calibrate import calibrate, freeze, reestimate_batch_norm
from tinyq.learn.config import QuantConfig, apot_config
from tinyq.learn.convert import convert
from tinyq.learn.curvature import dead_filters, update_ewgs
from tinyq.learn.diagnose import Finding, Monitor, diagnose
from tinyq.learn.export import export, export_float
from tinyq.learn.fit import FitConfig, FitResult, fit, parameter_groups
from tinyq.learn.ladder import step_down
from tinyq.learn.prepare import prepare
from tinyq.learn.quantizers import freeze_stage
from tinyq.learn.reconstruct import (
    ReconstructConfig,
    adaquant,
    adaround,
    brecq,
    correct_bias,
    find_blocks,
)

__all__ = [
    "Finding",
    "FitConfig",
    "FitResult",
    "Monitor",
    "QuantConfig",
    "ReconstructConfig",
    "adaquant",
    "adaround",
    "align_biases",
    "apot_config",
    "brecq",
    "calibrate",
    "convert",
    "correct_bias",
    "dead_filters",
    "diagnose",
    "export",
    "export_float",
    "find_blocks",
    "fit",
    "freeze",
    "freeze_stage",
    "parameter_groups",
    "prepare",
    "reestimate_batch_norm",
    "step_down",
    "update_ewgs",
]
