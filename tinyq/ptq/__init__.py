"""Post-training quantization: a float ONNX model and typical samples in, a QDQ model out.

>>> data = load_calibration("calib.npz", inputs_of("model.onnx"))
>>> result = quantize("model.onnx", data, PtqConfig(calibrator="all"))
>>> result.save("model.int8.onnx")
"""

from tinyq.ptq.config import CALIBRATORS, PtqConfig
from tinyq.ptq.data import (
    CalibrationData,
    ImageOptions,
    InputInfo,
    from_arrays,
)
from tinyq.ptq.graph import with_shapes
from tinyq.ptq.load import load_calibration
from tinyq.ptq.pipeline import PtqResult, inputs_of, quantize
from tinyq.ptq.quality import CalibratorScore, LayerQuality, OutputQuality, PtqReport
from tinyq.ptq.sensitivity import (
    LayerSensitivity,
    SearchResult,
    SearchStep,
    SensitivityReport,
    search,
    sensitivity,
)

__all__ = [
    "CALIBRATORS",
    "CalibrationData",
    "CalibratorScore",
    "ImageOptions",
    "InputInfo",
    "LayerQuality",
    "LayerSensitivity",
    "OutputQuality",
    "PtqConfig",
    "PtqReport",
    "PtqResult",
    "SearchResult",
    "SearchStep",
    "SensitivityReport",
    "from_arrays",
    "inputs_of",
    "load_calibration",
    "quantize",
    "search",
    "sensitivity",
    "with_shapes",
]
