"""What to quantize, to how many bits, and how it is trained: one frozen value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyq.errors import error

WEIGHT_QUANTIZERS = (
    "uniform", "binary", "ternary", "pot", "inq", "apot", "kmeans", "quantile", "lcq", "codebook",
)  # fmt: skip
ACT_QUANTIZERS = ("uniform", "pot", "apot", "codebook")
ESTIMATORS = ("ste", "ewgs", "dsq", "daq", "lsq")
WEIGHT_RANGES = ("auto", "max", "mse", "learned")
ACT_RANGES = ("ema", "max", "percentile", "mse", "learned")


@dataclass(frozen=True)
class QuantConfig:
    """Settings of :func:`tinyq.learn.prepare`. Raises TQ652 for a value that does not exist.

    Weights: ``weight_bits`` 1 to 8, ``weight_quantizer`` and ``weight_estimator`` by name,
    ``per_channel`` scales, ``weight_range`` (``auto`` is the largest magnitude at 8 bits, learned
    from the least squared error below). ``normalize_weights`` subtracts the layer's mean and
    divides by its deviation first, as APoT's authors do; the layer needs a BatchNorm then.

    Activations: ``act_bits`` 2 to 8 at the inputs of convolutions and dense layers,
    ``act_quantizer``, ``act_estimator``, ``act_range`` (``learned`` starts from what calibration
    saw; ``ema`` follows a moving average until ``freeze_step``; ``percentile`` is in
    percent). ``act_clip`` is a fixed start of a learned threshold. Values that are added,
    concatenated or pooled keep 8 bits: low bits there cost accuracy and save no multiplication.

    ``first_last_bits`` of the first and last layer's weights (their inputs keep 8 bits), or None to
    treat them like the others. ``freeze_step`` is the training step at which BatchNorm statistics
    and observed ranges stop moving; None leaves them to the caller (:func:`tinyq.learn.freeze`).
    """

    weight_bits: int = 8
    weight_quantizer: str = "uniform"
    weight_estimator: str = "ste"
    weight_range: str = "auto"
    per_channel: bool = True
    normalize_weights: bool = False
    act_bits: int = 8
    act_quantizer: str = "uniform"
    act_estimator: str = "ste"
    act_range: str = "ema"
    act_clip: float | None = None
    percentile: float = 99.99
    ema: float = 0.05
    first_last_bits: int | None = 8
    codebook: tuple[float, ...] | Callable[[int], float] | None = None
    act_codebook: tuple[float, ...] | Callable[[int], float] | None = None
    ewgs_lambda: float | None = None
    freeze_step: int | None = None

    def __post_init__(self) -> None:
        _one_of("weight_quantizer", self.weight_quantizer, WEIGHT_QUANTIZERS)
        _one_of("act_quantizer", self.act_quantizer, ACT_QUANTIZERS)
        _one_of("weight_estimator", self.weight_estimator, ESTIMATORS)
        _one_of("act_estimator", self.act_estimator, ESTIMATORS)
        _one_of("weight_range", self.weight_range, WEIGHT_RANGES)
        _one_of("act_range", self.act_range, ACT_RANGES)
        _within("weight_bits", self.weight_bits, 1, 8)
        _within("act_bits", self.act_bits, 2, 8)
        if self.first_last_bits is not None:
            _within("first_last_bits", self.first_last_bits, 2, 8)
        if (self.weight_quantizer == "codebook") != (self.codebook is not None):
            raise error(
                "TQ652", "weight_quantizer 'codebook' and the field codebook need each other"
            )
        if (self.act_quantizer == "codebook") != (self.act_codebook is not None):
            raise error("TQ652", "act_quantizer 'codebook' and act_codebook need each other")
        if not 50.0 < self.percentile <= 100.0:
            raise error("TQ652", f"percentile is above 50 and at most 100, not {self.percentile}")


def _one_of(field: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise error("TQ652", f"{field} is {value!r}", f"Use one of {', '.join(accepted)}.")


def _within(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise error("TQ652", f"{field} is {value}; it must be {low} to {high}")


def apot_config(bits: int) -> QuantConfig:
    """Additive powers of two as the paper trains them: normalised weights, thresholds learned.

    ``bits`` 2 to 5 for weights and activations; α starts at 3 (weights) and 8 (activations).
    """
    return QuantConfig(
        weight_bits=bits,
        weight_quantizer="apot",
        weight_range="learned",
        per_channel=False,
        normalize_weights=True,
        act_bits=bits,
        act_quantizer="apot",
        act_range="learned",
        act_clip=8.0,
    )
