"""What to quantize, to how many bits, and how it is trained: one frozen value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

from tinyq.errors import error

WEIGHT_QUANTIZERS = (
    "uniform", "binary", "ternary", "pot", "inq", "apot", "kmeans", "quantile", "lcq", "codebook",
)  # fmt: skip
ACT_QUANTIZERS = ("uniform", "pot", "apot", "codebook")
ESTIMATORS = ("ste", "ewgs", "dsq", "daq", "lsq")
WEIGHT_RANGES = ("auto", "max", "mse", "learned")
ACT_RANGES = ("ema", "max", "percentile", "mse", "learned")

# Widths that a quantizer of weights has, where these are not 1 to 8.
_WEIGHT_BITS = {
    "binary": (1, 1), "ternary": (2, 2), "pot": (2, 5), "inq": (3, 6), "apot": (2, 8), "lcq": (2, 8)
}  # fmt: skip
_ACT_BITS = {"pot": (2, 4), "apot": (2, 6)}  # at these most where values have a sign


@dataclass(frozen=True)
class QuantConfig:
    """Settings of :func:`tinyq.learn.prepare`. Raises TQ652 for a value that does not exist.

    Weights: ``weight_bits`` 1 to 8 (powers of two 2 to 5, their sums 2 to 8, INQ 3 to 6; binary and
    ternary weights have 1 and 2 whether it is given or not), ``weight_quantizer`` and
    ``weight_estimator`` by name,
    ``per_channel`` scales, ``weight_range`` (``auto`` is the largest magnitude at 8 bits, learned
    from the least squared error below). ``normalize_weights`` subtracts the layer's mean and
    divides by its deviation first, as APoT's authors do; the layer needs a BatchNorm then.

    Activations: ``act_bits`` 2 to 8 at the inputs of convolutions and dense layers,
    ``act_quantizer``, ``act_estimator``, ``act_range`` (``learned`` starts from what calibration
    saw; ``ema`` follows a moving average until ``freeze_step``; ``percentile`` is in
    percent). ``act_clip`` is a fixed start of a learned threshold. Values that are added,
    concatenated or pooled keep 8 bits: low bits there cost accuracy and save no multiplication.

    ``codebook`` and ``act_codebook`` are the levels of the quantizer ``codebook``: a tuple of
    reals, or a rule that is called with each code from 0 to 2^bits - 1 and returns its level (codes
    have no sign: a rule for weights must give some of them negative levels).

    ``first_last_bits`` of the first and last layer's weights, which are uniform then, as their
    inputs of 8 bits are, whatever the other layers have; None treats them like the others.
    ``freeze_step`` is the training step at which BatchNorm statistics and observed ranges stop
    moving; None leaves them to the caller (:func:`tinyq.learn.freeze`).
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
        if self.weight_quantizer in ("binary", "ternary") and self.weight_bits == 8:
            # The default: these have one width.
            object.__setattr__(self, "weight_bits", _WEIGHT_BITS[self.weight_quantizer][0])
        _width("weight", self.weight_quantizer, self.weight_bits, _WEIGHT_BITS)
        _within("act_bits", self.act_bits, 2, 8)
        _width("act", self.act_quantizer, self.act_bits, _ACT_BITS)
        if self.first_last_bits is not None:
            _within("first_last_bits", self.first_last_bits, 2, 8)
        if (self.weight_quantizer == "codebook") != (self.codebook is not None):
            raise error(
                "TQ652", "weight_quantizer 'codebook' and the field codebook need each other"
            )
        if (self.act_quantizer == "codebook") != (self.act_codebook is not None):
            raise error("TQ652", "act_quantizer 'codebook' and act_codebook need each other")
        _check(_is_real(self.percentile) and 50.0 < self.percentile <= 100.0,
               "percentile", self.percentile, "above 50 and at most 100")  # fmt: skip
        _check(_is_real(self.ema) and 0.0 < self.ema <= 1.0,
               "ema", self.ema, "above 0 and at most 1")  # fmt: skip
        if self.act_clip is not None:
            _check(_is_real(self.act_clip) and 0.0 < self.act_clip < float("inf"),
                   "act_clip", self.act_clip, "a positive number")  # fmt: skip
        if self.ewgs_lambda is not None:
            _check(_is_real(self.ewgs_lambda) and 0.0 <= self.ewgs_lambda < float("inf"),
                   "ewgs_lambda", self.ewgs_lambda, "a number from 0 on")  # fmt: skip
        if self.freeze_step is not None:
            _check(_is_whole(self.freeze_step) and self.freeze_step >= 0,
                   "freeze_step", self.freeze_step, "a whole number of steps, or None")  # fmt: skip


def _one_of(field: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise error("TQ652", f"{field} is {value!r}", f"Use one of {', '.join(accepted)}.")


def _within(field: str, value: int, low: int, high: int) -> None:
    _check(
        _is_whole(value) and low <= value <= high, field, value, f"a whole number {low} to {high}"
    )


def _width(kind: str, quantizer: str, bits: int, accepted: dict[str, tuple[int, int]]) -> None:
    """Refuse ``{kind}_bits`` that ``{kind}_quantizer`` does not have."""
    low, high = accepted.get(quantizer, (1, 8))
    widths = f"{low} to {high}" if low < high else f"{low}"
    _check(
        low <= bits <= high, f"{kind}_bits", bits, f"{widths} with {kind}_quantizer {quantizer!r}"
    )


def _check(holds: bool, field: str, value: object, wanted: str) -> None:
    if not holds:
        raise error("TQ652", f"{field} is {value!r}; it must be {wanted}", f"Correct {field}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


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
