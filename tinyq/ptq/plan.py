"""What every tensor and weight of a graph is quantized to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyq.errors import Diagnostic
from tinyq.ptq.calibrate import Range
from tinyq.ptq.config import PtqConfig
from tinyq.ptq.graph import Graph
from tinyq.ptq.params import (
    FIXED_OUTPUT,
    ActivationParams,
    Floats,
    activation_params,
    round_weights,
    weight_scales,
)
from tinyq.ptq.units import Unit, share_classes
from tinyq.quant.coarse import fitted_levels, format_bits, nearest_levels
from tinyq.quant.levels import LevelSet

_LARGEST_BIAS = 2**30  # leaves as much again of 32 bits to the sum of products


@dataclass(frozen=True, eq=False)
class WeightPlan:
    """Integers of a linear unit.

    Attributes:
        integers: int8, in the layout of the unit's initialiser.
        scales: float32 [O], all equal if per tensor.
        bits: of one weight.
        levels: the integers that a weight may be, ascending.
        axis: output channels' axis of ``integers``.
        bias: int32 [O] at the scales ``bias_scales`` (input scale times weight scale), or None.
    """

    integers: npt.NDArray[np.int8]
    scales: Floats
    bits: int
    levels: tuple[int, ...]
    axis: int
    bias: npt.NDArray[np.int32] | None
    bias_scales: Floats

    @property
    def dequantized(self) -> Floats:
        """The weights that the integers stand for."""
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return (self.integers * self.scales.reshape(shape)).astype(np.float32)


@dataclass(frozen=True)
class Precision:
    """Exceptions from the configured number of bits, for partial quantization.

    ``wide_activations``: units whose tensors become int16; ``weight_bits``: bits by unit;
    ``weight_formats``: formats of :mod:`tinyq.quant.coarse` by unit, instead of integers of these
    bits; ``float_units``: units that stay float.
    """

    wide_activations: frozenset[str] = frozenset()
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    weight_formats: Mapping[str, str] = field(default_factory=dict)
    float_units: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Plan:
    """Parameters of every activation by tensor, and of every linear unit by its name."""

    activations: Mapping[str, ActivationParams]
    weights: Mapping[str, WeightPlan]
    precision: Precision
    per_channel: bool
    notices: tuple[Diagnostic, ...] = ()

    def with_weights(self, unit: str, weights: WeightPlan) -> Plan:
        """A copy with other integers for one unit."""
        return replace(self, weights={**self.weights, unit: weights})


def channels_first(weight: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """``weight`` with its output channels at axis 0 (its own inverse)."""
    return weight if axis == 0 else np.swapaxes(weight, 0, axis)


def make_plan(
    graph: Graph,
    units: list[Unit],
    ranges: Mapping[str, Range],
    config: PtqConfig,
    precision: Precision | None = None,
) -> Plan:
    """Choose parameters from ranges; weights are rounded to nearest."""
    precision = precision or Precision(weight_bits=default_bits(units, config))
    notices: list[Diagnostic] = []
    activations = _plan_activations(graph, units, ranges, config, precision, notices)
    weights = {
        unit.name: plan_weights(graph, unit, activations, config, precision, notices)
        for unit in units
        if unit.kind == "linear"
    }
    return Plan(activations, weights, precision, config.per_channel, tuple(notices))


def default_bits(units: list[Unit], config: PtqConfig) -> dict[str, int]:
    """Bits of each linear unit's weights: 8, or 4 except in the first and last layer."""
    linear = [unit.name for unit in units if unit.kind == "linear"]
    if config.weights == "int8":
        return dict.fromkeys(linear, 8)
    edges = {linear[0], linear[-1]} if config.edges_int8 and linear else set()
    return {name: 8 if name in edges else 4 for name in linear}


def _plan_activations(
    graph: Graph,
    units: list[Unit],
    ranges: Mapping[str, Range],
    config: PtqConfig,
    precision: Precision,
    notices: list[Diagnostic],
) -> dict[str, ActivationParams]:
    wide = {
        tensor
        for unit in units
        if unit.name in precision.wide_activations
        for tensor in (*unit.inputs, *unit.outputs)
    }
    fixed_by = {o: u.operator for u in units if u.operator in FIXED_OUTPUT for o in u.outputs}
    found: dict[str, ActivationParams] = {}
    for members, sources in share_classes(graph, units, frozenset(fixed_by)):
        dtype = "int16" if wide.intersection(members) else config.activations
        fixed = [fixed_by[s] for s in sources if s in fixed_by]
        if fixed:
            params = FIXED_OUTPUT[fixed[0]][dtype]
        else:
            low = min(ranges[s][0] for s in sources)
            high = max(ranges[s][1] for s in sources)
            params = activation_params(low, high, dtype, config.symmetric)
            if low == high == 0.0:
                notices.append(Diagnostic("TQ621", f"tensor '{sources[0]}' is always zero"))
        found.update(dict.fromkeys(members, params))
    _plan_constants(graph, units, wide, config, found)
    return found


def _plan_constants(
    graph: Graph,
    units: list[Unit],
    wide: set[str],
    config: PtqConfig,
    found: dict[str, ActivationParams],
) -> None:
    """Parameters of the constant operands of Add, Mul and their like, from their own range."""
    for unit in units:
        for name in unit.constants:
            value = graph.initializers[name]
            dtype = "int16" if wide.intersection(unit.outputs) else config.activations
            found[name] = activation_params(value.min(), value.max(), dtype, config.symmetric)


def plan_weights(
    graph: Graph,
    unit: Unit,
    activations: Mapping[str, ActivationParams],
    config: PtqConfig,
    precision: Precision,
    notices: list[Diagnostic],
) -> WeightPlan:
    """Steps and nearest integers of a linear unit's weights and bias."""
    weight = channels_first(graph.initializers[unit.weight], unit.weight_axis)
    form = precision.weight_formats.get(unit.name)
    bits = format_bits(form) if form else precision.weight_bits[unit.name]
    if form:
        level_set, steps = _fitted(weight, form, config.per_channel)
    else:
        most = 2 ** (bits - 1) - 1
        level_set = LevelSet("uniform", tuple(range(-most, most + 1)))
        steps = weight_scales(weight, bits, config.per_channel, search=bits < 8)
        steps = _scale_of_dead(weight, steps)
    input_scale = activations[unit.inputs[0]].scale
    bias = graph.initializers.get(unit.bias)
    if bias is not None:
        lowest = np.abs(bias) / np.float32(input_scale * _LARGEST_BIAS)
        lowest = lowest if config.per_channel else np.full_like(lowest, lowest.max())
        raised = int((lowest > steps).sum())
        if raised:
            notices.append(
                Diagnostic("TQ624", f"{raised} channels", node=unit.name, operator=unit.operator)
            )
        steps = np.maximum(steps, lowest).astype(np.float32)
    if form:
        rows = weight.reshape(len(weight), -1)
        integers = nearest_levels(rows, level_set, steps).reshape(weight.shape)
    else:
        integers = round_weights(weight, steps, bits)
    return with_bias(
        WeightPlan(
            np.ascontiguousarray(channels_first(integers, unit.weight_axis)), steps, bits,
            level_set.integers, unit.weight_axis, None, np.zeros_like(steps),
        ),
        bias, input_scale,
    )  # fmt: skip


def _fitted(weight: Floats, form: str, per_channel: bool) -> tuple[LevelSet, Floats]:
    """Levels and steps [O] of a weight [O, ...] in a format; equal steps if not per channel."""
    rows = weight.reshape(len(weight) if per_channel else 1, -1)
    level_set, steps = fitted_levels(rows, form)
    return level_set, np.broadcast_to(steps, (len(weight),)).astype(np.float32)


def _scale_of_dead(weight: Floats, steps: Floats) -> Floats:
    """Give channels without weights the middle step of the others, which suits their bias."""
    dead = ~np.any(weight.reshape(len(weight), -1) != 0, axis=1)
    if not dead.any() or dead.all():
        return steps
    return np.where(dead, np.median(steps[~dead]), steps).astype(np.float32)


def with_bias(plan: WeightPlan, bias: Floats | None, input_scale: float) -> WeightPlan:
    """A copy with ``bias`` (float [O]) rounded to int32 at input scale times weight scale."""
    scales = (np.float32(input_scale) * plan.scales).astype(np.float32)
    if bias is None:
        return replace(plan, bias=None, bias_scales=scales)
    integers = np.clip(np.rint(bias.astype(np.float64) / scales), -(2**31), 2**31 - 1)
    return replace(plan, bias=integers.astype(np.int32), bias_scales=scales)
