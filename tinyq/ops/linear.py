"""What convolution and dense layers share: weights, biases, epilogues and their requantization."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, InvalidGraphError, Node, Value
from tinyq.ops.base import PackedConstant
from tinyq.ops.guards import guard_headers, has_rule, rule_pairs
from tinyq.ops.lowering import (
    ACTIVATION_HIGH,
    ACTIVATION_LOW,
    Emitter,
    Island,
    QuantizedConstant,
    Source,
)
from tinyq.quant import (
    FLOAT32_UNIT,
    FixedPointLinear,
    OrtLinear,
    OrtMatMulFloatBias,
    RealLinear,
    Requant,
    Rounding,
    Staircase,
    WideLinear,
    WideRequant,
    accumulator_bounds,
    accumulator_strides,
    apply,
    build_staircase,
    clamp_levels,
    ort_bias,
    ort_scale,
    synthesize,
    synthesize_alike,
)

LinearOracle = OrtLinear | OrtMatMulFloatBias | FixedPointLinear | RealLinear | WideLinear
LinearRequant = Requant | FixedPointLinear | WideRequant

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_CLAMPS = frozenset({"Relu", "Clip"})
_ACCUMULATOR_LIMIT = 2**31 - 1


def weights_of(
    emitter: Emitter, island: Island, node: Node, value: Value
) -> QuantizedConstant | None:
    """The quantized weights, or None after refusing ``node``."""
    found = island.constants.get(value)
    if found is None:
        emitter.refuse(
            "TQ202",
            node,
            f"the weights '{value.name}' are not quantized",
            "Quantize the weights too: a DequantizeLinear of integer constants must feed them.",
        )
        return None
    return found


def operands_of(
    emitter: Emitter, island: Island, node: Node
) -> tuple[Source, QuantizedConstant] | None:
    """The quantized input and weights of a linear node, or None after refusing it."""
    x = island.sources.get(node.input(0))
    if x is None:
        emitter.refuse("TQ202", node, f"its input '{node.input(0).name}' is not quantized")
        return None
    found = weights_of(emitter, island, node, node.input(1))
    return None if found is None else (x, found)


def per_output(constant: QuantizedConstant, axis: int, channels: int) -> Float32 | None:
    """Scales float32 [channels] when they vary along ``axis`` at most, else None."""
    scales = constant.quant.scale_array()
    if scales.size == 1:
        return np.full(channels, scales[0], np.float32)
    if constant.quant.axis is None or constant.quant.axis % constant.integers.ndim != axis:
        return None
    return scales


def storable(centred: Int64) -> npt.NDArray[np.int8] | npt.NDArray[np.int16] | None:
    """Weights in the narrowest type that holds them; None when even int16 does not."""
    low, high = int(centred.min(initial=0)), int(centred.max(initial=0))
    if low >= -128 and high <= 127:
        return centred.astype(np.int8)
    if low >= -32768 and high <= 32767:
        return centred.astype(np.int16)
    return None


class EpilogueReader:
    """Follows an island from the linear operator to the quantizer."""

    def __init__(self, emitter: Emitter, island: Island, core: Node, channel_axis: int) -> None:
        self.emitter = emitter
        self.island = island
        self.core = core
        self.axis = channel_axis
        self.channels = core.output.type.shape[channel_axis]
        self.gain = np.ones(self.channels, np.float32)
        self.bias = np.zeros(self.channels, np.float32)
        self.bias_constant: QuantizedConstant | None = None
        self.low, self.high = -np.inf, np.inf

    def add_bias(self, value: Value, operand: bool = False) -> bool:
        """Take a bias; False when it does not broadcast over channels.

        ``operand``: it is the linear operator's own bias [channels], not a later Add's.
        """
        real = self.island.constant_real(value)
        if operand and real is not None:
            real = np.broadcast_to(real, (self.channels,)) if real.size == 1 else real.reshape(-1)
            vector = real if real.size == self.channels else None
        else:
            vector = None if real is None else self._vector(real)
        if vector is None:
            return False
        first = not self.bias.any() and bool(np.all(self.gain == 1))
        # After a second bias, what was an integer on the accumulator's grid is so no more.
        self.bias_constant = self.island.constants.get(value) if first else None
        self.bias = (self.bias + vector).astype(np.float32)
        return True

    def follow(self) -> bool:
        """Read every node after the core; False after a refusal."""
        value = self.core.output
        while (node := self.island.consumer(value)) is not None:
            if not self._take(node, value):
                return False
            value = node.output
        return True

    def _take(self, node: Node, value: Value) -> bool:
        if node.op in _CLAMPS:
            self._clamp(node)
            return True
        if node.op == "Add" and np.isinf(self.low) and np.isinf(self.high):
            other = node.input(1) if node.input(0) is value else node.input(0)
            if self.add_bias(other):
                return True
        if node.op == "BatchNormalization" and np.isinf(self.low) and np.isinf(self.high):
            return self._batch_norm(node)
        if node.op == "Mul" and np.isinf(self.low) and np.isinf(self.high):
            other = node.input(1) if node.input(0) is value else node.input(0)
            real = self.island.constant_real(other)
            vector = None if real is None else self._vector(real)
            if vector is not None:
                self._scale(vector)
                return True
        self.emitter.refuse(
            "TQ202",
            node,
            f"its input '{value.name}' comes from {self.core.op} '{self.core.name}' in float",
            "Quantize the tensor between the two operators.",
        )
        return False

    def _clamp(self, node: Node) -> None:
        low, high = 0.0, np.inf
        if node.op == "Clip":
            bounds = [node.optional_input(k) for k in (1, 2)]
            reals = [None if b is None else self.island.constant_real(b) for b in bounds]
            low = -np.inf if reals[0] is None else float(reals[0].reshape(-1)[0])
            high = np.inf if reals[1] is None else float(reals[1].reshape(-1)[0])
        self.low, self.high = max(self.low, low), min(max(self.high, low), high)

    def _batch_norm(self, node: Node) -> bool:
        reals = [self.island.constant_real(node.input(k)) for k in range(1, 5)]
        if any(r is None for r in reals):
            self.emitter.refuse("TQ203", node, "its parameters are not constants")
            return False
        gamma, beta, mean, variance = (np.asarray(r, np.float64) for r in reals)
        gain = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        self._scale(gain.astype(np.float32))
        self.bias = (self.bias + (beta - mean * gain)).astype(np.float32)
        return True

    def _scale(self, vector: Float32) -> None:
        self.gain = (self.gain * vector).astype(np.float32)
        self.bias = (self.bias * vector).astype(np.float32)
        self.bias_constant = None

    def _vector(self, real: Float32) -> Float32 | None:
        if real.size == 1:
            return np.full(self.channels, real.reshape(-1)[0], np.float32)
        rank = len(self.core.output.type.shape)
        shape = (1,) * (rank - real.ndim) + real.shape
        if len(shape) != rank or shape[self.axis] != real.size or real.size != self.channels:
            return None
        return real.reshape(-1)


def read_epilogue(
    emitter: Emitter, island: Island, core: Node, channel_axis: int, bias: Value | None
) -> EpilogueReader | None:
    """The epilogue of ``core``, or None after a refusal."""
    reader = EpilogueReader(emitter, island, core, channel_axis)
    if bias is not None and not reader.add_bias(bias, operand=True):
        emitter.refuse("TQ203", core, f"the bias '{bias.name}' is not one constant a channel")
        return None
    if not reader.follow():
        return None
    limits = output_limits(island, reader.low, reader.high)
    if not island.is_wide and limits != output_limits(island, -np.inf, np.inf):
        emitter.notes.append(
            f"{core.op} '{core.name}': the clamp behind it narrows the output, so that onnxruntime "
            "does not fuse it and computes in float32; it may differ where a result lies on a half"
        )
    return reader


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear operator ready to emit.

    weights: centred integers [C, ...], int64. oracle: maps raw accumulators to outputs.
    scale: float64[C], output units per accumulator. qmin, qmax: the output's range.
    """

    weights: Int64
    oracle: LinearOracle
    scale: npt.NDArray[np.float64]
    qmin: int
    qmax: int


def make_linear(
    island: Island, reader: EpilogueReader, x: Source, weights: Int64, w_scale: Float32
) -> Linear:
    """Join weights [C, ...], their scales [C] and the epilogue to a :class:`Linear`.

    A channel of negative gain has its weights negated; one of zero gain has none left.
    """
    gain = reader.gain
    sign = np.sign(gain).astype(np.int64)
    weights = weights * sign.reshape(-1, *[1] * (weights.ndim - 1))
    w_scale = np.where(gain == 0, w_scale, w_scale * np.abs(gain)).astype(np.float32)
    y = island.quant
    total = weights.reshape(len(weights), -1).sum(axis=1)
    offset = -x.quant.zero_point * total
    limits = output_limits(island, reader.low, reader.high)
    real = np.float64(x.quant.scale) * w_scale.astype(np.float64) / y.scale
    if island.is_wide:
        levels = reader.bias.astype(np.float64) / y.scale
        ends = x.value.type.dtype.limits
        wide = WideLinear(real, levels, offset, y.zero_point, *limits, *ends)
        return Linear(weights, wide, real, *limits)
    bias = integer_bias(reader, x.quant.scale, w_scale)
    oracle: LinearOracle
    if bias is not None:
        scale = ort_scale(x.quant.scale, w_scale, y.scale, len(weights))
        oracle = OrtLinear(scale, bias, offset, y.zero_point, *limits)
    else:
        product = (np.float32(x.quant.scale) * w_scale).astype(np.float32)
        oracle = OrtMatMulFloatBias(product, reader.bias, offset, y.scale, y.zero_point, *limits)
    return Linear(weights, oracle, real, *limits)


def output_limits(island: Island, low: float, high: float) -> tuple[int, int]:
    """The island's output range once clamped to [low, high] in real units."""
    return clamp_levels(
        low,
        high,
        scale=island.quant.scale,
        zero_point=island.quant.zero_point,
        qmin=island.qmin,
        qmax=island.qmax,
    )


def clamped_limits(emitter: Emitter, island: Island, node: Node) -> tuple[int, int] | None:
    """Output range after the clamps that follow ``node`` in its island."""
    low, high, value = -np.inf, np.inf, node.output
    while (after := island.consumer(value)) is not None:
        bounds = {"Relu": (0.0, np.inf)}.get(after.op)
        if after.op == "Clip":
            reals = [
                None if v is None else island.constant_real(v)
                for v in (after.optional_input(1), after.optional_input(2))
            ]
            bounds = (
                -np.inf if reals[0] is None else float(reals[0].reshape(-1)[0]),
                np.inf if reals[1] is None else float(reals[1].reshape(-1)[0]),
            )
        if bounds is None:
            emitter.refuse(
                "TQ202", after, f"its input '{value.name}' comes from {node.op} in float",
                "Quantize the tensor between the two operators.",
            )  # fmt: skip
            return None
        low, high, value = max(low, bounds[0]), min(high, bounds[1]), after.output
    return output_limits(island, low, high)


def integer_bias(reader: EpilogueReader, x_scale: float, w_scale: Float32) -> Int64 | None:
    """The bias in accumulator units, or None when it is not on the accumulator's grid.

    It is when the model gives int32 with scale x_scale * w_scale. A float bias of a convolution is
    rounded to that grid, as onnxruntime does.
    """
    if np.any(reader.gain != 1):
        return None
    if not reader.bias.any():
        return np.zeros(reader.channels, np.int64)
    constant = reader.bias_constant
    if constant is None:
        return ort_bias(reader.bias, x_scale, w_scale) if reader.core.op == "Conv" else None
    wanted = np.float32(x_scale) * w_scale
    given = np.broadcast_to(constant.quant.scale_array(), wanted.shape)
    if not np.allclose(given, wanted, rtol=1e-5, atol=0.0):
        return None
    return np.broadcast_to(constant.centred().reshape(-1), (reader.channels,)).astype(np.int64)


def fits_accumulator(weights: AnyArray, x_low: int = ACTIVATION_LOW) -> bool:
    """Whether no partial sum of x * w, in any order, can leave int32 (weights [C, ...])."""
    magnitudes = np.abs(weights.astype(np.int64)).reshape(len(weights), -1)
    return int(magnitudes.sum(axis=1).max(initial=0)) * -x_low <= _ACCUMULATOR_LIMIT


def accumulator_type(node: Node) -> str:
    """C type of a linear node's sums: int64_t where its weights can take them out of int32."""
    low = node.input(0).type.dtype.limits[0]
    return "int32_t" if fits_accumulator(node.input(1).array, low) else "int64_t"


def stored_weights(emitter: Emitter, node: Node, made: Linear) -> AnyArray | None:
    """The weights in the type that kernels read, or None after refusing ``node``."""
    stored = storable(made.weights)
    problem = ""
    if stored is None:
        problem = "weights less their zero points exceed 16 bits"
    elif isinstance(made.oracle, WideLinear):
        try:
            requantize(made.weights, made.oracle, made.scale)
        except ValueError as reason:
            problem = str(reason)
    elif not fits_accumulator(made.weights):
        problem = "the sum of |weights| times 128 exceeds 2^31 - 1"
    if problem:
        emitter.refuse("TQ205", node, problem)
        return None
    return stored


def requantize(
    weights: Int64, oracle: LinearOracle, scale: npt.NDArray[np.float64]
) -> LinearRequant:
    """Synthesise the integer requantization over every accumulator that ``weights`` can reach.

    A fixed-point oracle that has to be computed literally is its own requantization.
    """
    if (
        isinstance(oracle, FixedPointLinear)
        and oracle.rounding is Rounding.TWICE
        and oracle.literal
    ):
        return oracle
    if isinstance(oracle, WideLinear):
        rows = weights.reshape(len(weights), -1)
        return oracle.requantization(*accumulator_bounds(rows, oracle.x_low, oracle.x_high))
    stair, hint = _staircase(weights, oracle, scale)
    return synthesize(stair, hint, oracle=oracle if has_rule(oracle, stair) else None)


def _staircase(
    weights: Int64, oracle: LinearOracle, scale: npt.NDArray[np.float64]
) -> tuple[Staircase, npt.NDArray[np.float64]]:
    """What the layer computes over every accumulator, and output units per accumulator."""
    rows = weights.reshape(len(weights), -1)
    low, high = accumulator_bounds(rows, ACTIVATION_LOW, ACTIVATION_HIGH)
    strides = accumulator_strides(rows)
    stair = build_staircase(oracle, low, high, oracle.qmin, oracle.qmax, strides)
    return stair, np.where(low == high, 1.0, scale)


def shape_key(node: Node) -> Hashable:
    """Equal for nodes that the same code could compute, shifts apart."""
    weights, requant = node.input(1).type, linear_requant_of(node)
    groups = getattr(node.attrs, "groups", 1)
    return weights.shape, weights.dtype, groups, requant.qmin, requant.qmax


def requantize_alike(nodes: Sequence[Node]) -> tuple[LinearRequant, ...]:
    """The nodes' requantizations with the same shifts, where none loses by it."""
    made = [linear_requant_of(node) for node in nodes]
    plain = {k: requant for k, requant in enumerate(made) if isinstance(requant, Requant)}
    stairs, hints = [], []
    for k in plain:
        a, weights = nodes[k].attrs, nodes[k].input(1).array.astype(np.int64)
        stair, hint = _staircase(weights, a.oracle, a.scale)
        stairs.append(stair)
        hints.append(hint)
    alike = synthesize_alike(stairs, hints, list(plain.values()))
    for k, requant in zip(plain, alike, strict=True):
        made[k] = requant
    return tuple(made)


def finish(node: Node, acc: Int64) -> AnyArray:
    """Outputs [..., C] of the node's type, of raw accumulators int64[..., C]."""
    return requantized(linear_requant_of(node), acc).astype(node.output.type.dtype.numpy)


def real_levels(node: Node, acc: Int64, magnitudes: Float64) -> tuple[Float64, Float64] | None:
    """What float32 arithmetic approximates for raw accumulators [..., C]: levels before rounding.

    Returns (levels, error), float64[..., C]: any float32 evaluation of the layer, its sums in any
    order, gives a level within ``error``. magnitudes: sums of abs(x - x_zero_point) * abs(w). None
    for layers that the oracle computes in integers.
    """
    oracle = node.attrs.oracle
    if not isinstance(oracle, WideLinear):
        return None
    weights = node.input(1).type
    roundings = weights.elements // weights.shape[0] + 8
    levels = oracle.levels(acc)
    largest = magnitudes * oracle.scale + np.abs(oracle.bias) + abs(oracle.zero_point)
    return levels, 1.01 * roundings * FLOAT32_UNIT * largest


def requantized(requant: LinearRequant, acc: Int64) -> AnyArray:
    """Outputs int8[..., C] of raw accumulators int64[..., C] in either form, int64 of wide ones."""
    if isinstance(requant, WideRequant):
        return requant(acc)
    if isinstance(requant, FixedPointLinear):
        flat = acc.reshape(-1, acc.shape[-1])
        return requant(flat.T).T.reshape(acc.shape).astype(np.int8)
    return apply(requant, acc)


def linear_requant_of(node: Node) -> LinearRequant:
    """The requantization of a linear node in either form; InvalidGraphError before synthesis."""
    if isinstance(node.attrs.requant, FixedPointLinear | WideRequant):
        return node.attrs.requant
    return requant_of(node)


def requant_of(node: Node) -> Requant:
    """The synthesised requantization of a linear node; InvalidGraphError before synthesis."""
    requant = node.attrs.requant
    if not isinstance(requant, Requant):
        raise InvalidGraphError(f"'{node.name}' is not requantized yet")
    return requant


def requant_constants(requant: LinearRequant) -> tuple[PackedConstant, ...]:
    """Multiplier and addend of every channel, interleaved, then what the rule of a guard needs.

    Rounded twice, with the shifts of every channel; of int16 layers two arrays: the addends are
    int64.
    """
    if isinstance(requant, WideRequant):
        return (
            PackedConstant("multipliers", requant.multiplier, "int32_t"),
            PackedConstant("addends", requant.addend, "int64_t", alignment=8),
        )
    if isinstance(requant, FixedPointLinear):
        addend = requant.bias + requant.offset
        pairs = np.stack([requant.multiplier, addend], axis=1).astype(np.int32)
        signed = requant.shift.astype(np.int8).view(np.uint8)
        return (
            PackedConstant("requant", pairs, "tinyq_requant_t"),
            PackedConstant("shifts", signed, "uint8_t"),
        )
    pairs = np.stack([requant.multiplier, requant.addend], axis=1).astype(np.int32)
    entries = np.concatenate([pairs, *rule_pairs(requant)])
    headers = guard_headers(requant)
    return (PackedConstant("requant", entries, "tinyq_requant_t", headers=headers),)


def describe(requant: LinearRequant | None) -> str:
    """One line on a requantization, for the text form."""
    if requant is None:
        return "requant=none"
    if isinstance(requant, FixedPointLinear):
        return f"requant=(rounded {requant.rounding.value} range=[{requant.qmin}, {requant.qmax}])"
    if isinstance(requant, WideRequant):
        limits = f"range=[{requant.qmin}, {requant.qmax}]"
        return f"requant=(wide shift={requant.shift} {limits} deviation={requant.deviation:.2g})"
    guard = f" guard={requant.guard.bits}" if requant.guard else ""
    return (
        f"requant=(pre={requant.pre_shift} post={requant.post_shift} "
        f"range=[{requant.qmin}, {requant.qmax}] ties={requant.ties} fixes={len(requant.fixes)}"
        f"{guard} exact={requant.exact})"
    )
