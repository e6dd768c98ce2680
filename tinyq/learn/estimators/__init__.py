"""Gradients through rounding: the forward is always the nearest level, the backward differs.

Each estimator is a frozen dataclass that is called with values in units of the integer levels,
the levels, and the strength λ that only EWGS uses. Behind each is a ``torch.autograd.Function``.
"""

from tinyq.learn.estimators.base import Estimator, nearest_level
from tinyq.learn.estimators.daq import DAQ
from tinyq.learn.estimators.dsq import DSQ
from tinyq.learn.estimators.ewgs import EWGS
from tinyq.learn.estimators.lsq import LSQ, scale_gradient
from tinyq.learn.estimators.ste import STE

BY_NAME: dict[str, type[Estimator]] = {"ste": STE, "ewgs": EWGS, "dsq": DSQ, "daq": DAQ, "lsq": LSQ}

__all__ = [
    "BY_NAME",
    "DAQ",
    "DSQ",
    "EWGS",
    "LSQ",
    "STE",
    "Estimator",
    "nearest_level",
    "scale_gradient",
]
