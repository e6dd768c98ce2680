"""The level sets of :mod:`tinyq.quant.levels` for tensors of PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tinyq.quant import levels
from tinyq.quant.levels import (
    CODEBOOK_MAX,
    LevelSet,
    apot,
    apot_magnitudes,
    apot_unsigned,
    binary,
    codebook,
    inq,
    inq_exponent,
    pot,
    pot_magnitudes,
    pot_unsigned,
    ternary,
    to_integers,
    uniform,
)

__all__ = [
    "CODEBOOK_MAX",
    "LevelSet",
    "apot",
    "apot_magnitudes",
    "apot_unsigned",
    "binary",
    "codebook",
    "inq",
    "inq_exponent",
    "kmeans",
    "pot",
    "pot_magnitudes",
    "pot_unsigned",
    "quantile",
    "sqnr_db",
    "table_of",
    "ternary",
    "to_integers",
    "uniform",
]


def table_of(level_set: LevelSet) -> Tensor:
    """The levels as float32 [len]; every integer up to 2^24 is exact."""
    return torch.tensor(level_set.integers, dtype=torch.float32)


def kmeans(values: Tensor, bits: int) -> tuple[LevelSet, float]:
    """As :func:`tinyq.quant.levels.kmeans`."""
    return levels.kmeans(_array(values), bits)


def quantile(values: Tensor, bits: int) -> tuple[LevelSet, float]:
    """As :func:`tinyq.quant.levels.quantile`."""
    return levels.quantile(_array(values), bits)


def sqnr_db(values: Tensor, quantized: Tensor) -> float:
    """Signal to quantization noise ratio in decibels."""
    return levels.sqnr_db(_array(values), _array(quantized))


def _array(values: Tensor) -> levels.Values:
    return np.asarray(values.detach().cpu().double().numpy())
