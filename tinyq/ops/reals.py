"""Reals inside a network whose scales are found at run time: what the operators on them share.

A *real* is a float32, held in the arena as the integers that it is computed from or as its bits
(int32). Its parameters, once it is quantized, are a tensor of their own: int32 [3], the mantissa,
exponent and zero point of ``real = mantissa * 2^exponent * (integer - zero_point)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray, DType, Graph, InvalidGraphError, Node, TensorType, Value
from tinyq.ops.base import PackedConstant

Float32 = npt.NDArray[np.float32]

SCALE_TYPE = TensorType((3,), DType.INT32)
"""Mantissa, exponent, zero point of a tensor of int8."""

LARGEST_REAL = 2.0**100
"""Networks whose reals could be larger are refused: nothing overflows float32 then."""

_LONG = 8
"""Elements of a channel from which preparing it costs less than computing each of them."""

INCLUDES = ("tinyq_reals.h",)


@dataclass(frozen=True, eq=False)
class RealTerm:
    """How a tensor's reals come from its integers, each operation rounded to float32.

    real = float32(integer - zero_point) * scale + bias, no less than 0 with ``relu``; scale is
    ``scales`` [1 or C], times that of the operand that follows with ``run_time``; bias [1 or C] or
    None. ``axis`` is that of the channels. With ``floats`` the integers are the reals' bits.
    """

    axis: int = 0
    floats: bool = False
    zero_point: int = 0
    scales: Float32 = field(default_factory=lambda: np.ones(1, np.float32))
    run_time: bool = False
    bias: Float32 | None = None
    relu: bool = False

    def __str__(self) -> str:
        if self.floats:
            return "float32 bits"
        scale = f"{self.scales.min():.4g}..{self.scales.max():.4g}"
        parts = [f"scale={scale}{' * run-time' if self.run_time else ''}"]
        parts += [f"axis={self.axis}"] if self.channels > 1 else []
        parts += [f"bias[{self.bias.size}]"] if self.bias is not None else []
        return " ".join(parts + (["relu"] if self.relu else []))

    @property
    def channels(self) -> int:
        """How many different scales or biases there are."""
        return max(self.scales.size, 0 if self.bias is None else self.bias.size)

    def reals(self, x: AnyArray, scale: np.float32 | None = None) -> Float32:
        """The reals of a tensor, float32; ``scale`` is that of the operand found at run time."""
        if self.floats:
            return np.asarray(x.astype(np.int32).view(np.float32))
        shape = [1] * x.ndim
        if self.channels > 1:
            shape[self.axis] = -1
        step = self.scales if scale is None else self.scales * scale
        found = (x.astype(np.int64) - self.zero_point).astype(np.float32) * step.reshape(
            shape if step.size > 1 else [1] * x.ndim
        )
        if self.bias is not None:
            found = found + self.bias.reshape(shape if self.bias.size > 1 else [1] * x.ndim)
        found = found.astype(np.float32)
        return np.where(found > 0, found, np.float32(0)) if self.relu else found

    def constants(self, number: str = "") -> tuple[PackedConstant, ...]:
        """The arrays that a kernel reads, as bits."""
        if self.floats:
            return ()
        arrays = {"scales": self.scales, "bias": self.bias}
        return tuple(
            PackedConstant(f"{name}{number}", array.view(np.uint32), "uint32_t")
            for name, array in arrays.items()
            if array is not None
        )


@dataclass(frozen=True)
class TermParams:
    """A term as templates see it: x [outer, channels, inner] of C type ``element``."""

    index: int
    element: str
    outer: int
    channels: int
    inner: int
    floats: bool
    zero_point: int
    run_time: bool
    per_channel: bool
    bias: bool
    bias_per_channel: bool
    relu: bool

    @property
    def long(self) -> bool:
        """Whether a channel is worth preparing."""
        return not self.floats and self.outer * self.inner >= _LONG

    @classmethod
    def of(
        cls, term: RealTerm, x: TensorType, index: int = 0, axis: int | None = None
    ) -> TermParams:
        """Of a term over ``x``; with ``axis`` the loops go over its channels in any case."""
        channels, at = term.channels, term.axis
        if axis is not None:
            channels, at = x.shape[axis], axis
        outer, inner = (math.prod(x.shape[:at]), math.prod(x.shape[at + 1 :]))
        if channels == 1:
            outer, inner = 1, x.elements
        bias = term.bias
        return cls(
            index, f"{x.dtype.value}_t", outer, channels, inner, term.floats, term.zero_point,
            term.run_time, term.scales.size > 1, bias is not None,
            bias is not None and bias.size > 1, term.relu,
        )  # fmt: skip


@dataclass(frozen=True)
class QuantizeRealParams:
    """``ops/quantize_real.c.j2``; ``scale`` the bits of a given scale, None to find it."""

    term: TermParams
    scale: int | None
    zero_point: int


@dataclass(frozen=True)
class RealSumParams:
    """``ops/real_sum.c.j2``: one or two terms over tensors of one shape."""

    terms: tuple[TermParams, ...]
    relu: bool


def bits(value: float | np.float32) -> int:
    """The 32 bits of a float32."""
    return int(np.float32(value).view(np.uint32))


def scale_parts(scale: np.float32, zero_point: int) -> npt.NDArray[np.int32]:
    """The tensor of parameters of a scale and the zero point of int8."""
    pattern = bits(scale)
    field, fraction = pattern >> 23, pattern & 0x7FFFFF
    mantissa = fraction | (0x800000 if field else 0)
    return np.array([mantissa, (field or 1) - 150, zero_point], np.int32)


def scale_of(parts: AnyArray) -> np.float32:
    """The scale in a tensor of parameters; exact."""
    return np.float32(math.ldexp(int(parts[0]), int(parts[1])))


def find_scale(reals: Float32) -> tuple[np.float32, int]:
    """Scale and zero point (of uint8) by DynamicQuantizeLinear's rule, see docs/arithmetic.md."""
    low = np.minimum(reals.min(), np.float32(0))
    width = np.float32(np.maximum(reals.max(), np.float32(0)) - low)
    if width == 0:
        return np.float32(1), 0
    scale = np.float32(width / np.float32(255))
    if scale == 0:
        return scale, 255
    with np.errstate(over="ignore"):
        return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def quantize(reals: Float32, scale: np.float32, zero_point: int) -> npt.NDArray[np.int8]:
    """int8 by a scale and the zero point of int8; a scale of 0 tells positive reals from others."""
    if scale == 0:
        return np.where(reals > 0, 127, -128).astype(np.int8)
    with np.errstate(over="ignore"):
        levels = np.rint(reals / scale) + zero_point
    return np.asarray(np.clip(levels, -128, 127), np.int8)


def is_found_scale(graph: Graph, value: Value) -> bool:
    """Whether an output of the graph holds the parameters of the output before it."""
    node = graph.producers.get(value)
    return node is not None and value is not node.output


def operands_of(node: Node, terms: tuple[RealTerm, ...]) -> list[tuple[Value, Value | None]]:
    """For each term its tensor, and the tensor of parameters that follows it.

    Raises InvalidGraphError where the inputs are not those of the terms.
    """
    values = list(node.present_inputs)
    found: list[tuple[Value, Value | None]] = []
    for term in terms:
        if len(values) < 1 + term.run_time:
            raise InvalidGraphError(f"'{node.name}' lacks an operand")
        x, scale = values.pop(0), values.pop(0) if term.run_time else None
        if scale is not None and (scale.type.shape, scale.type.dtype) != ((3,), DType.INT32):
            raise InvalidGraphError(f"'{node.name}': '{scale.name}' holds no parameters")
        if term.floats and x.type.dtype is not DType.INT32:
            raise InvalidGraphError(f"'{node.name}': '{x.name}' holds no bits of float32")
        if term.channels > 1 and x.type.shape[term.axis] != term.channels:
            raise InvalidGraphError(f"'{node.name}': {term.channels} channels of {x.type}")
        found.append((x, scale))
    if values:
        raise InvalidGraphError(f"'{node.name}' has {len(values)} operands too many")
    return found


def term_reals(
    node: Node, terms: tuple[RealTerm, ...], inputs: tuple[AnyArray, ...]
) -> list[Float32]:
    """The reals of every term, from the arrays of the node's inputs."""
    arrays = dict(zip(node.present_inputs, inputs, strict=True))
    return [
        term.reals(arrays[x], None if scale is None else scale_of(arrays[scale]))
        for term, (x, scale) in zip(terms, operands_of(node, terms), strict=True)
    ]
