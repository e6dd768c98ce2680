"""Rewrites the Quant and BipolarQuant nodes of QONNX into standard QDQ form.

Source of their meaning: QONNX's ``docs/qonnx-custom-ops`` (IntQuant, once Quant, and BipolarQuant).
Quant computes ``(round(clip(x / scale + zero_point)) - zero_point) * scale``. What is written has
the same integers and scales; with an odd zero point, results on an exact half round to the other
neighbour, because QuantizeLinear rounds before it adds the zero point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from tinyq.errors import Diagnostic, TinyqError
from tinyq.frontends.onnx_nodes import QdqBuilder
from tinyq.frontends.prune import drop_unused

Float = npt.NDArray[np.float32]

DOMAINS = frozenset({"qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"})

_WIDEST_ACTIVATION = 8
_WIDEST_CONSTANT = 32


def _away(x: Float) -> Float:
    return np.asarray(np.sign(x) * np.ceil(np.abs(x)), np.float32)


def _half_away(x: Float) -> Float:
    return np.asarray(np.sign(x) * np.floor(np.abs(x) + 0.5), np.float32)


def _half_to_zero(x: Float) -> Float:
    return np.asarray(np.sign(x) * np.ceil(np.abs(x) - 0.5), np.float32)


_ROUNDING: dict[str, Callable[[Float], Float]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": _away,
    "DOWN": np.trunc,
    "HALF_UP": _half_away,
    "HALF_DOWN": _half_to_zero,
}


@dataclass(frozen=True, eq=False)
class _Quant:
    """A Quant node: scales and zero points as floats, ``low`` and ``high`` of its integers."""

    scale: Float
    zero: Float
    bits: int
    low: int
    high: int
    rounding: str

    @property
    def is_bipolar(self) -> bool:
        """QONNX gives -1 and 1 for one signed bit."""
        return self.bits == 1 and self.low < 0

    @property
    def dtype(self) -> type[np.signedinteger] | type[np.unsignedinteger]:
        """The narrowest standard type that holds the integers."""
        signed = self.low < 0 or bool(np.any(self.zero < 0))
        kinds = (np.int8, np.int16, np.int32) if signed else (np.uint8, np.uint16, np.int32)
        return next(k for k in kinds if np.iinfo(k).max >= self.high)

    def integers(self, x: Float) -> Float:
        """Of a constant."""
        ratio = (x / self.scale + self.zero).astype(np.float32)
        if self.is_bipolar:
            return np.where(ratio >= 0, np.float32(1), np.float32(-1))
        return _ROUNDING[self.rounding](np.clip(ratio, self.low, self.high))


def convert_qonnx(model: onnx.ModelProto) -> None:
    """Replace QONNX's nodes in place. Raises TinyqError with every one that has no QDQ form."""
    if not any(_is_qonnx(node) for node in model.graph.node):
        return
    constants = {t.name: t for t in model.graph.initializer}
    constants |= {
        node.output[0]: a.t
        for node in model.graph.node if node.op_type == "Constant"
        for a in node.attribute if a.name == "value"
    }  # fmt: skip
    known = set(constants)
    nodes: list[onnx.NodeProto] = []
    problems: list[Diagnostic] = []
    for node in model.graph.node:
        if not _is_qonnx(node):
            nodes.append(node)
            continue
        builder = QdqBuilder(node, constants)
        try:
            (_bipolar if node.op_type == "BipolarQuant" else _quant)(builder)
        except TinyqError as problem:
            problems += problem.diagnostics
        nodes += builder.nodes
    if problems:
        raise TinyqError(problems)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, tensor in constants.items():
        if name not in known:
            tensor.name = name
            model.graph.initializer.append(tensor)
    drop_unused(model)


def _is_qonnx(node: onnx.NodeProto) -> bool:
    return node.domain in DOMAINS and node.op_type in ("Quant", "IntQuant", "BipolarQuant")


def _refused(b: QdqBuilder, found: str, remedy: str = "") -> TinyqError:
    node = b.node
    name = node.name or f"{node.op_type}_{node.output[0]}"
    return TinyqError(Diagnostic("TQ203", found, remedy, name, node.op_type))


def _read(b: QdqBuilder) -> _Quant:
    """The node's parameters. Raises TQ203 and TQ204."""
    if len(b.node.input) != 4:
        raise _refused(b, f"{len(b.node.input)} inputs", "Quant has x, scale, zero point, bits.")
    scale, zero, width = (b.constant(b.input(k)).astype(np.float32) for k in (1, 2, 3))
    bits = int(width.reshape(-1)[0]) if width.size == 1 else 0
    if bits < 1 or bits != width.reshape(-1)[0] or bits > _WIDEST_CONSTANT:
        raise _refused(b, f"a width of {width.reshape(-1)[:3]} bits", "Whole bits, 1 to 32.")
    if np.any(zero != np.rint(zero)):
        raise _refused(b, "a zero point that is no integer", "Zero points must be integers.")
    mode = b.attr("rounding_mode", b"ROUND")
    rounding = (mode.decode() if isinstance(mode, bytes) else str(mode)).upper()
    if rounding not in _ROUNDING:
        raise _refused(b, f"rounding_mode={rounding}", f"Known: {', '.join(_ROUNDING)}.")
    narrow = int(bool(b.attr("narrow", 0)))
    if b.attr("signed", 1):
        low, high = -(1 << (bits - 1)) + narrow, (1 << (bits - 1)) - 1
        if bits == 1:
            low, high = -1, 1
    else:
        low, high = 0, (1 << bits) - 1 - narrow
    if high > np.iinfo(np.int32).max:
        raise _refused(b, "unsigned integers of 32 bits")
    return _Quant(scale, zero, bits, low, high, rounding)


def _quant(b: QdqBuilder) -> None:
    q = _read(b)
    if b.is_constant(b.input(0)):
        _store(b, q, b.constant(b.input(0)).astype(np.float32))
    elif q.is_bipolar:
        _sign(b, q.scale)
    else:
        _activation(b, q)


def _bipolar(b: QdqBuilder) -> None:
    scale = b.constant(b.input(1)).astype(np.float32)
    q = _Quant(scale, np.zeros((), np.float32), 1, -1, 1, "ROUND")
    if b.is_constant(b.input(0)):
        _store(b, q, b.constant(b.input(0)).astype(np.float32))
    else:
        _sign(b, scale)


def _store(b: QdqBuilder, q: _Quant, x: Float) -> None:
    """A constant becomes integers and their DequantizeLinear."""
    integers = q.integers(x)
    if integers.size and not np.all(np.isfinite(integers)):
        raise _refused(b, "weights or scales that are not finite")
    stored = b.fixed("integers", integers.astype(q.dtype))
    parameters, axis = _parameters(b, q, x.ndim)
    b.emit("DequantizeLinear", [stored, *parameters], b.node.output[0], axis=axis)


def _activation(b: QdqBuilder, q: _Quant) -> None:
    """QuantizeLinear, a Clip where the integers fill no whole type, DequantizeLinear."""
    if q.bits > _WIDEST_ACTIVATION:
        raise _refused(b, f"an activation of {q.bits} bits", "At most 8 bits.")
    if q.rounding not in ("ROUND", "HALF_EVEN"):
        raise _refused(
            b, f"rounding_mode={q.rounding} of an activation", "QDQ rounds halves to even."
        )
    parameters, axis = _parameters(b, q, None)
    stored = b.emit("QuantizeLinear", [b.input(0), *parameters], b.fresh("integers"), axis=axis)
    limits = np.iinfo(q.dtype)
    if (q.low, q.high) != (limits.min, limits.max):
        bounds = [b.fixed("bound", np.asarray(v, q.dtype)) for v in (q.low, q.high)]
        stored = b.emit("Clip", [stored, *bounds], b.fresh("clipped"))
    b.emit("DequantizeLinear", [stored, *parameters], b.node.output[0], axis=axis)


def _sign(b: QdqBuilder, scale: Float) -> None:
    """An activation of -1 and 1, zero giving 1: the sign of a sign that is moved by a half."""
    if scale.size != 1:
        raise _refused(b, "an activation with several scales")
    half = b.fixed("half", np.asarray(0.5, np.float32))
    moved = b.emit("Add", [b.emit("Sign", [b.input(0)], b.fresh("sign")), half], b.fresh("moved"))
    real = b.emit("Sign", [moved], b.fresh("sign"))
    unit = [b.fixed("one", np.asarray(1, np.float32)), b.fixed("zero", np.asarray(0, np.int8))]
    stored = b.emit("QuantizeLinear", [real, *unit], b.fresh("integers"))
    steps = [b.fixed("scale", scale.reshape(())), unit[1]]
    b.emit("DequantizeLinear", [stored, *steps], b.node.output[0])


def _parameters(b: QdqBuilder, q: _Quant, rank: int | None) -> tuple[list[str], int | None]:
    """Names of scale and zero point, and the axis that they vary along."""
    if np.any(q.zero < np.iinfo(q.dtype).min) or np.any(q.zero > np.iinfo(q.dtype).max):
        raise _refused(b, f"a zero point outside of {np.dtype(q.dtype)}")
    shape = np.broadcast_shapes(q.scale.shape, q.zero.shape)
    axes = [k for k, size in enumerate(shape) if size > 1]
    if len(axes) > 1:
        found = f"scales of shape {list(shape)}"
        raise _refused(b, found, "One scale, or one for every index of one axis.")
    axis = axes[0] if axes else None
    given = [np.broadcast_to(a, shape) for a in (q.scale, q.zero)]
    flat = [a.reshape(() if axis is None else -1) for a in given]
    names = [b.fixed("scale", flat[0]), b.fixed("zero", flat[1].astype(q.dtype))]
    return names, axis if axis is None or rank is None else axis + rank - len(shape)
