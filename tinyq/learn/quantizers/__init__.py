"""Quantizers of weights and activations, and how a :class:`QuantConfig` becomes them."""

from __future__ import annotations

from torch import Tensor

from tinyq.errors import error
from tinyq.learn import levels as level_sets
from tinyq.learn.config import QuantConfig
from tinyq.learn.estimators import BY_NAME, EWGS, Estimator
from tinyq.learn.levels import LevelSet
from tinyq.learn.observers import Observer
from tinyq.learn.quantizers.activation import ActQuantizer, AffineActQuantizer, TableActQuantizer
from tinyq.learn.quantizers.inq import INQQuantizer, freeze_stage
from tinyq.learn.quantizers.lcq import LCQQuantizer
from tinyq.learn.quantizers.weight import WeightQuantizer

__all__ = [
    "ActQuantizer",
    "AffineActQuantizer",
    "INQQuantizer",
    "LCQQuantizer",
    "TableActQuantizer",
    "WeightQuantizer",
    "act_quantizer",
    "freeze_stage",
    "weight_quantizer",
]


def estimator(name: str, config: QuantConfig) -> Estimator:
    """Make the estimator called ``name``."""
    return EWGS(config.ewgs_lambda) if name == "ewgs" else BY_NAME[name]()


def weight_quantizer(config: QuantConfig, weight: Tensor, bits: int) -> WeightQuantizer:
    """Make the quantizer for one layer's ``weight`` [O, ...], its levels and step initialised.

    A layer that is given other bits than ``config.weight_bits`` (first and last) is uniform and per
    channel, whatever the others are.
    """
    name = config.weight_quantizer if bits == config.weight_bits else "uniform"
    # At the 8 bits of first and last layers rounding moves nothing: no help with the gradient.
    rounding = estimator(config.weight_estimator if bits == config.weight_bits else "ste", config)
    threshold: float | None = None
    if name == "inq":
        made: WeightQuantizer = INQQuantizer(bits, rounding, per_channel=config.per_channel)
    elif name == "lcq":
        made = LCQQuantizer(bits, rounding, per_channel=config.per_channel)
    else:
        level_set, threshold = _levels(name, config, weight, bits)
        special = config.normalize_weights and bits == config.weight_bits
        made = WeightQuantizer(
            level_set,
            rounding,
            mode=_mode(name, config, bits, threshold),
            per_channel=(config.per_channel or bits != config.weight_bits) and threshold is None,
            normalize=special,
            clip_gradient=not special,
        )
        threshold = 3.0 if special else threshold
    made.initialize(weight, threshold)
    return made


def _levels(
    name: str, config: QuantConfig, weight: Tensor, bits: int
) -> tuple[LevelSet, float | None]:
    """Level set, and the clipping threshold when it was found together with the levels."""
    if name in ("kmeans", "quantile"):
        return (level_sets.kmeans if name == "kmeans" else level_sets.quantile)(weight, bits)
    if name == "codebook" and config.codebook is not None:
        return level_sets.codebook(config.codebook, bits), None
    if name == "binary" or bits == 1:
        return level_sets.binary(), None
    sets = {"pot": level_sets.pot, "apot": level_sets.apot, "uniform": level_sets.uniform}
    return (level_sets.ternary() if name == "ternary" else sets[name](bits)), None


def _mode(name: str, config: QuantConfig, bits: int, threshold: float | None) -> str:
    if config.weight_range != "auto":
        return config.weight_range
    if name == "pot" and not config.normalize_weights:
        return "pot"
    return "max" if bits == 8 and threshold is None else "learned"


def act_quantizer(config: QuantConfig, bits: int, *, signed: bool) -> ActQuantizer:
    """Make an activation quantizer of ``bits`` bits; 8 bits are always affine."""
    learned = config.act_range == "learned"
    # The 8-bit values beside low-bit ones need no help with their gradient.
    rounding = estimator(config.act_estimator if bits == config.act_bits else "ste", config)
    name = config.act_quantizer if bits == config.act_bits else "uniform"
    observer = Observer(config.act_range, 2**bits, config.percentile, config.ema)
    if name == "uniform":
        return AffineActQuantizer(bits, rounding, observer, signed=signed, learned=learned)
    if name == "codebook" and config.act_codebook is not None:
        level_set = level_sets.codebook(config.act_codebook, bits)
        if signed and level_set.integers[0] >= 0:
            raise error("TQ652", "act_codebook has no negative level for a signed activation")
    elif name == "pot":
        level_set = level_sets.pot(bits) if signed else level_sets.pot_unsigned(bits)
    else:
        level_set = level_sets.apot(bits) if signed else level_sets.apot_unsigned(bits)
    made = TableActQuantizer(level_set, rounding, observer, learned=learned)
    if config.act_clip is not None and learned:
        made.step.data.fill_(config.act_clip / level_set.largest)
        made.ready.fill_(True)
    return made
