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
from tinyq.learn.quantizers.inq import INQQuantizer, freeze_stage, require_frozen
from tinyq.learn.quantizers.lcq import LCQQuantizer
from tinyq.learn.quantizers.weight import FOUND_IN_WEIGHTS, WeightQuantizer

__all__ = [
    "ActQuantizer",
    "AffineActQuantizer",
    "INQQuantizer",
    "LCQQuantizer",
    "TableActQuantizer",
    "WeightQuantizer",
    "act_quantizer",
    "freeze_stage",
    "require_frozen",
    "weight_quantizer",
]


def estimator(name: str, config: QuantConfig) -> Estimator:
    """Make the estimator called ``name``."""
    return EWGS(config.ewgs_lambda) if name == "ewgs" else BY_NAME[name]()


def weight_quantizer(
    config: QuantConfig, weight: Tensor, bits: int, *, plain: bool = False, node: str = ""
) -> WeightQuantizer:
    """Make the quantizer for one layer's ``weight`` [O, ...], its levels and step initialised.

    ``plain`` (first and last layers) is uniform and per channel, whatever the others are. Raises
    TQ652, naming ``node``, where levels cannot be found in the weight.
    """
    name = "uniform" if plain else config.weight_quantizer
    # At the 8 bits of first and last layers rounding moves nothing: no help with the gradient.
    rounding = estimator("ste" if plain else config.weight_estimator, config)
    threshold: float | None = None
    if name == "inq":
        made: WeightQuantizer = INQQuantizer(bits, rounding, per_channel=config.per_channel)
    elif name == "lcq":
        made = LCQQuantizer(bits, rounding, per_channel=config.per_channel)
    else:
        level_set, threshold = _levels(name, config, weight, bits, node)
        special = config.normalize_weights and not plain
        made = WeightQuantizer(
            level_set,
            rounding,
            mode=_mode(name, config, bits, threshold),
            per_channel=(config.per_channel or plain) and threshold is None,
            normalize=special,
            clip_gradient=not special,
        )
        threshold = 3.0 if special else threshold
    made.initialize(weight, threshold)
    return made


def _levels(
    name: str, config: QuantConfig, weight: Tensor, bits: int, node: str
) -> tuple[LevelSet, float | None]:
    """Level set, and the clipping threshold when it was found together with the levels."""
    if name in FOUND_IN_WEIGHTS:
        if len(weight.unique()) < 2:
            raise error(
                "TQ652",
                f"all {weight.numel()} weights are {float(weight.flatten()[0]):g}: "
                f"weight_quantizer {name!r} finds no levels in them",
                "Train or load the float network before prepare, or use another weight_quantizer.",
                node=node,
            )
        return (level_sets.kmeans if name == "kmeans" else level_sets.quantile)(weight, bits)
    if name == "codebook" and config.codebook is not None:
        made = level_sets.codebook(config.codebook, bits)
        if made.integers[0] >= 0:
            raise error(
                "TQ652",
                "codebook has no negative level, and weights have signs",
                "Give levels on both sides of zero. A rule is called with codes 0 to "
                f"{2**bits - 1}, which have no sign.",
                node=node,
            )
        return made, None
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


def act_quantizer(
    config: QuantConfig, bits: int, *, signed: bool, plain: bool = False
) -> ActQuantizer:
    """Make an activation quantizer of ``bits`` bits; a ``plain`` one is affine.

    Raises TQ652 for a width that the quantizer does not have, and for a codebook without levels
    for the values' sign.
    """
    learned = config.act_range == "learned"
    # The 8-bit values beside low-bit ones need no help with their gradient.
    rounding = estimator("ste" if plain else config.act_estimator, config)
    name = "uniform" if plain else config.act_quantizer
    observer = Observer(config.act_range, 2**bits, config.percentile, config.ema)
    if name == "uniform":
        affine = AffineActQuantizer(bits, rounding, observer, signed=signed, learned=learned)
        affine.freeze_step = config.freeze_step
        if config.act_clip is not None and learned and not plain:
            affine.set_threshold(config.act_clip)
        return affine
    most = {"pot": 4 if signed else 3, "apot": 6 if signed else 5}.get(name, 8)
    if bits > most:
        raise error(
            "TQ652",
            f"act_bits is {bits}; act_quantizer {name!r} has 2 to {most} for values that are "
            f"{'signed' if signed else 'never negative'}",
            f"Set act_bits to {most} or less.",
        )
    if name == "codebook" and config.act_codebook is not None:
        level_set = level_sets.codebook(config.act_codebook, bits)
        if signed and level_set.integers[0] >= 0:
            raise error("TQ652", "act_codebook has no negative level for a signed activation")
    elif name == "pot":
        level_set = level_sets.pot(bits) if signed else level_sets.pot_unsigned(bits)
    else:
        level_set = level_sets.apot(bits) if signed else level_sets.apot_unsigned(bits)
    made = TableActQuantizer(level_set, rounding, observer, learned=learned)
    made.freeze_step = config.freeze_step
    if config.act_clip is not None and learned:
        made.step.data.fill_(config.act_clip / level_set.largest)
        made.ready.fill_(True)
    return made
