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
    load_calibration,
)
from tinyq.ptq.pipeline import PtqResult, inputs_of, quantize
from tinyq.ptq.quality import CalibratorScore, LayerQuality, OutputQuality, PtqReport

__all__ = [
    "CALIBRATORS",
    "CalibrationData",
    "CalibratorScore",
    "ImageOptions",
    "InputInfo",
    "LayerQuality",
    "OutputQuality",
    "PtqConfig",
    "PtqReport",
    "PtqResult",
    "from_arrays",
    "inputs_of",
    "load_calibration",
    "quantize",
]
