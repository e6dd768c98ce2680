"""Lowers what onnxruntime's dynamic quantization writes: scales that are found at run time.

DynamicQuantizeLinear gives integers, a scale and a zero point; MatMulInteger and ConvInteger sum
products of the integers; Cast, Mul, Add and Relu make reals (float32) of the sums again. Here the
scale and zero point are one tensor, and reals stay the integers that they are computed from until
a quantizer reads them. Only a sum or a mean of reals is computed as such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tinyq.errors import Diagnostic, TinyqError
from tinyq.ir import AnyArray, DType, Graph, Node, QuantParams, TensorType, Value
from tinyq.ops.accumulate import LARGEST_OPERAND, fits_accumulator
from tinyq.ops.conv2d_dynamic import Conv2dDynamicAttrs
from tinyq.ops.layout import from_nhwc, to_nhwc
from tinyq.ops.linear import Int64, storable
from tinyq.ops.lowering import Emitter
from tinyq.ops.quantize_real import QuantizeRealAttrs
from tinyq.ops.real_mean import RealMeanAttrs
from tinyq.ops.real_sum import RealSumAttrs
from tinyq.ops.reals import LARGEST_REAL, SCALE_TYPE, Float32, RealTerm
from tinyq.ops.transpose import TransposeAttrs
from tinyq.ops.windows import onnx_window

SOURCES = ("MatMulInteger", "ConvInteger")
OPERATORS = ("DynamicQuantizeLinear", *SOURCES)
_FOLLOWING = frozenset(
    {
        "Cast", "Mul", "Add", "Relu", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
        "AveragePool", "GlobalAveragePool",
    }
)  # fmt: skip
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_RANGE = (
    "Give the input a range: tinyq compile --input-scale, or tinyq quantize --dynamic, which "
    "writes a QuantizeLinear/DequantizeLinear pair after it."
)


@dataclass(frozen=True, eq=False)
class Real:
    """A float tensor of the model: how it comes from ``value`` (and ``scale``), in its shape.

    bound: no element is larger in size.
    """

    term: RealTerm
    value: Value
    scale: Value | None
    bound: float

    @property
    def operands(self) -> tuple[Value, ...]:
        """What an operator on it reads."""
        return (self.value,) if self.scale is None else (self.value, self.scale)


class DynamicLowering:
    """Rules for the part of a QDQ graph that dynamic quantization wrote.

    ``integers`` are the integer values of the model's tensors, ``refused`` those that cannot be
    computed for a reason that was given; both are shared with the other rules. ``values``: all that
    dynamic quantization computes.
    """

    def __init__(
        self, graph: Graph, emitter: Emitter, integers: dict[Value, Value], refused: set[Value]
    ) -> None:
        self.graph = graph
        self.emitter = emitter
        self.integers = integers
        self.refused = refused
        self.scales: dict[Value, Value] = {}
        self.bounds: dict[Value, float] = {}
        self.reals: dict[Value, Real] = {}
        self.values = _dynamic_values(graph)
        self.rules: dict[str, Callable[[Node], Real]] = {
            "DequantizeLinear": self._dequantized,
            "Mul": self._scaled,
            "Add": self._sum,
            "Relu": self._relu,
            "Transpose": self._transpose,
            "AveragePool": self._mean,
            "GlobalAveragePool": self._mean,
            **dict.fromkeys(_RESHAPES, self._reshape),
        }

    def covers(self, node: Node) -> bool:
        """Whether ``node`` belongs to the dynamic part: it is lowered here or through here."""
        return node.op in OPERATORS or any(value in self.values for value in node.outputs)

    def lower(self, node: Node) -> None:
        """Emit a DynamicQuantizeLinear, or the sums of MatMulInteger or ConvInteger.

        Other nodes wait for what reads them. Refusals go to the emitter.
        """
        try:
            if any(value in self.refused for value in node.present_inputs):
                self.refused.update(node.outputs)
            elif node.op == "DynamicQuantizeLinear":
                self._quantize(node)
            elif node.op in SOURCES:
                self.integers[node.output] = self._accumulate(node)
        except TinyqError as problem:
            self.emitter.refusals += problem.diagnostics
            self.refused.update(node.outputs)

    def refuse_input(self, value: Value) -> None:
        """A float input without a range: what reads it is refused with it."""
        self.emitter.refusals.append(
            Diagnostic("TQ202", f"the float input '{value.name}' has no range", _RANGE, value.name,
                       "input")
        )  # fmt: skip
        pending = [value]
        while pending:
            current = pending.pop()
            if current not in self.refused:
                self.refused.add(current)
                pending += [v for node in self.graph.uses(current) for v in node.outputs]

    def quantize_static(self, node: Node, quant: QuantParams) -> Value:
        """int8 of the reals that a QuantizeLinear reads; ``quant`` is that of int8."""
        real = self._real(node.input(0), node)
        out = TensorType(node.output.type.shape, DType.INT8, quant)
        attrs = QuantizeRealAttrs(real.term, quant)
        return self.emitter.emit("quantize_real", node.name, real.operands, out, attrs)

    def output(self, value: Value) -> tuple[Value, Value]:
        """A float output of the network: quantized at run time, and its parameters."""
        node = self.graph.producers[value]
        return self._emit_quantize(f"{node.name}:output", self._real(value, node))

    # --- quantizers -------------------------------------------------------------------------------

    def _quantize(self, node: Node) -> None:
        """Reals are quantized before they are moved: the range is the same, the bytes are fewer."""
        if self.emitter.oracle != "ort":
            found = f"dynamic quantization with --oracle {self.emitter.oracle}"
            raise _refused("TQ203", node, found, "Scales found at run time follow onnxruntime: "
                           "use --oracle ort.")  # fmt: skip
        moves: list[Node] = []
        value = node.input(0)
        while (source := self.graph.producers.get(value)) is not None and source.op in _RESHAPES:
            moves.append(source)
            value = source.input(0)
        real = self._real(value, node)
        result, scale = self._emit_quantize(node.name, real)
        for move in reversed(moves):
            shape = result.type.with_shape(move.output.type.shape)
            result = self.emitter.emit("reshape", f"{move.name}:int8", (result,), shape)
        self.integers[node.output] = result
        for parameter in node.outputs[1:]:
            self.scales[parameter] = scale
        self.bounds[scale] = 2 * real.bound / 255

    def _emit_quantize(self, name: str, real: Real) -> tuple[Value, Value]:
        emitter = self.emitter
        unique = emitter.unique(name)
        result = Value(
            emitter.unique(f"{unique}:out"), TensorType(real.value.type.shape, DType.INT8)
        )
        scale = Value(emitter.unique(f"{unique}:scale"), SCALE_TYPE)
        attrs = QuantizeRealAttrs(real.term)
        node = Node("quantize_real", unique, real.operands, (result, scale), attrs)
        emitter.nodes.append(node)
        return result, scale

    # --- sums of products -------------------------------------------------------------------------

    def _accumulate(self, node: Node) -> Value:
        x = self.integers.get(node.input(0))
        zero = node.optional_input(2)
        scale = None if zero is None else self.scales.get(zero)
        if x is None or scale is None:
            raise _refused("TQ202", node, "its first input is not that of a DynamicQuantizeLinear "
                           "with its zero point", _RANGE)  # fmt: skip
        if not node.input(1).is_constant:
            raise _refused("TQ203", node, "its weights are computed at run time")
        centred = self._centred(node)
        if node.op == "MatMulInteger":
            return self._dense(node, x, scale, centred)
        return self._conv(node, x, scale, centred)

    def _centred(self, node: Node) -> Int64:
        """Weights less their zero points, int64 in the model's shape."""
        weights = node.input(1).array.astype(np.int64)
        zero = node.optional_input(3)
        if zero is None:
            return weights
        if not zero.is_constant:
            raise _refused("TQ204", node, "the weights' zero point is computed at run time")
        points = zero.array.astype(np.int64).reshape(-1)
        axis = 1 if node.op == "MatMulInteger" else 0
        if points.size not in (1, weights.shape[axis % weights.ndim]):
            raise _refused("TQ204", node, f"{points.size} zero points of weights "
                           f"{list(weights.shape)}")  # fmt: skip
        shape = [1] * weights.ndim
        shape[axis % weights.ndim] = -1
        centred = weights - points.reshape(shape if points.size > 1 else [1] * weights.ndim)
        return np.asarray(centred, np.int64)

    def _stored(self, node: Node, weights: Int64) -> Value:
        stored = storable(weights)
        if stored is None or not fits_accumulator(weights):
            raise _refused("TQ205", node, "the sum of |weights| times 255 exceeds 2^31 - 1")
        return self.emitter.constant(f"{node.name}:weights", stored)

    def _dense(self, node: Node, x: Value, scale: Value, weights: Int64) -> Value:
        if weights.ndim != 2:
            raise _refused("TQ203", node, f"weights of {weights.ndim} axes", "2 are supported.")
        w = self._stored(node, weights.T)
        out = TensorType(node.output.type.shape, DType.INT32)
        return self.emitter.emit("dense_dynamic", node.name, (x, scale, w), out)

    def _conv(self, node: Node, x: Value, scale: Value, weights: Int64) -> Value:
        rank = len(x.type.shape)
        if rank not in (3, 4):
            found = f"{rank - 2} spatial dimensions"
            raise _refused("TQ203", node, found, "1 and 2 are supported.")
        window = onnx_window(node, x.type.shape[2:], weights.shape[2:])
        oihw = weights if rank == 4 else weights[:, :, None, :]
        w = self._stored(node, oihw.transpose(0, 2, 3, 1))
        attrs = Conv2dDynamicAttrs(window, int(node.attrs.get("group", 1)))
        shape = node.output.type.shape
        nhwc = (shape[0], *((1,) if rank == 3 else ()), *shape[2:], shape[1])
        operands = (to_nhwc(self.emitter, node.name, x), scale, w)
        out = TensorType(nhwc, DType.INT32)
        y = self.emitter.emit("conv2d_dynamic", node.name, operands, out, attrs)
        return from_nhwc(self.emitter, node.name, y, shape)

    # --- reals ------------------------------------------------------------------------------------

    def _real(self, value: Value, reader: Node) -> Real:
        """How ``value`` is computed. Raises TinyqError where it cannot be."""
        if value in self.reals:
            return self.reals[value]
        node = self.graph.producers.get(value)
        if node is None:
            raise _refused("TQ202", reader, f"its input '{value.name}' is not quantized", _RANGE)
        rule = self.rules.get(node.op)
        if rule is None:
            raise _refused("TQ202", node, f"it is computed in float before {reader.op} "
                           f"'{reader.name}'", "Quantize the tensor before it and after it by "
                           "QuantizeLinear/DequantizeLinear pairs.")  # fmt: skip
        found = rule(node)
        if not found.bound < LARGEST_REAL:
            raise _refused("TQ204", node, f"its reals could be as large as {found.bound:.3g}",
                           "Scale the weights or the input down.")  # fmt: skip
        self.reals[value] = found
        return found

    def _dequantized(self, node: Node) -> Real:
        x = self.integers.get(node.input(0))
        quant = None if x is None else x.type.quant
        if x is None or quant is None or not quant.is_per_tensor:
            raise _refused("TQ204", node, "an activation without one constant scale")
        term = RealTerm(zero_point=quant.zero_point, scales=quant.scale_array())
        return Real(term, x, None, quant.scale * 2 * max(map(abs, x.type.dtype.limits)))

    def _scaled(self, node: Node) -> Real:
        """Mul(Cast(sums), Mul(scale of the input, scales of the weights))."""
        for cast, factor in (node.present_inputs, node.present_inputs[::-1]):
            source = self.graph.producers.get(cast)
            product = self.graph.producers.get(factor)
            if source is None or source.op != "Cast" or source.input(0) not in self.integers:
                continue
            sums = self.graph.producers[source.input(0)]
            if sums.op not in SOURCES or product is None or product.op != "Mul":
                continue
            return self._scaled_sums(node, sums, product)
        raise _refused("TQ203", node, "a product of reals other than an integer sum's scaling")

    def _scaled_sums(self, node: Node, sums: Node, product: Node) -> Real:
        parameters = [v for v in product.present_inputs if v in self.scales]
        constants = [v for v in product.present_inputs if v.is_constant]
        wanted = self.scales[sums.input(2)]
        if len(parameters) != 1 or len(constants) != 1 or self.scales[parameters[0]] is not wanted:
            raise _refused("TQ204", product, "the scale is not that of the layer's input times a "
                           "constant")  # fmt: skip
        weights = np.asarray(constants[0].array, np.float32)
        if not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise _refused("TQ204", product, f"the scale {weights.min():g} of the weights")
        value = self.integers[sums.output]
        axis = len(value.type.shape) - 1 if sums.op == "MatMulInteger" else 1
        scales = _along(weights, axis, node.output.type.shape)
        if scales is None:
            raise _refused("TQ204", product, "scales along another axis than the output's")
        centred = np.abs(self._centred(sums))
        depth = centred.sum(axis=0 if sums.op == "MatMulInteger" else (1, 2, 3)[: centred.ndim - 1])
        bound = float(depth.max()) * LARGEST_OPERAND * float(scales.max()) * self.bounds[wanted]
        return Real(RealTerm(axis=axis, scales=scales, run_time=True), value, wanted, bound)

    def _sum(self, node: Node) -> Real:
        a, b = node.present_inputs
        if a.is_constant or b.is_constant:
            constant, other = (a, b) if a.is_constant else (b, a)
            return self._biased(node, self._real(other, node), constant)
        terms = self._real(a, node), self._real(b, node)
        if terms[0].value.type.shape != terms[1].value.type.shape:
            raise _refused("TQ203", node, "a sum of tensors of different shapes")
        attrs = RealSumAttrs((terms[0].term, terms[1].term), self._relu_follows(node))
        operands = (*terms[0].operands, *terms[1].operands)
        out = TensorType(node.output.type.shape, DType.INT32)
        value = self.emitter.emit("real_sum", node.name, operands, out, attrs)
        return Real(RealTerm(floats=True), value, None, terms[0].bound + terms[1].bound)

    def _relu_follows(self, node: Node) -> bool:
        users = self.graph.uses(node.output)
        return len(users) == 1 and users[0].op == "Relu" and node.output not in self.graph.outputs

    def _biased(self, node: Node, real: Real, constant: Value) -> Real:
        term, array = real.term, np.asarray(constant.array, np.float32)
        if term.floats or term.bias is not None or term.relu or not np.all(np.isfinite(array)):
            raise _refused("TQ203", node, "a constant is added to what is not a layer's sums")
        shape = real.value.type.shape
        axis = term.axis if term.channels > 1 or term.run_time else len(shape) - 1
        bias = _along(array, axis, shape)
        if bias is None or node.output.type.shape != shape:
            raise _refused("TQ203", node, f"a bias {list(array.shape)} that varies along another "
                           "axis than the output's")  # fmt: skip
        bound = real.bound + float(np.abs(bias).max())
        return replace(real, term=replace(term, axis=axis, bias=bias), bound=bound)

    def _relu(self, node: Node) -> Real:
        real = self._real(node.input(0), node)
        if real.term.floats:
            source = self.graph.producers[node.input(0)]
            if source.op == "Add" and self._relu_follows(source):
                return real
            raise _refused("TQ203", node, f"a Relu of reals after {source.op}")
        return replace(real, term=replace(real.term, relu=True))

    def _bits(self, node: Node, real: Real) -> Real:
        """The reals as bits, computed."""
        if real.term.floats:
            return real
        out = TensorType(real.value.type.shape, DType.INT32)
        attrs = RealSumAttrs((real.term,))
        value = self.emitter.emit("real_sum", f"{node.name}:reals", real.operands, out, attrs)
        return Real(RealTerm(floats=True), value, None, real.bound)

    def _transpose(self, node: Node) -> Real:
        real = self._real(node.input(0), node)
        rank = len(real.value.type.shape)
        perm = tuple(node.attrs.get("perm") or reversed(range(rank)))
        out = real.value.type.with_shape(node.output.type.shape)
        attrs = TransposeAttrs(perm)
        value = self.emitter.emit("transpose", node.name, (real.value,), out, attrs)
        axis = perm.index(real.term.axis) if real.term.channels > 1 else 0
        return replace(real, term=replace(real.term, axis=axis), value=value)

    def _reshape(self, node: Node) -> Real:
        """Reals in another shape; with channels they have to be computed first."""
        real = self._real(node.input(0), node)
        if real.term.channels > 1:
            real = self._bits(node, real)
        out = real.value.type.with_shape(node.output.type.shape)
        value = self.emitter.emit("reshape", node.name, (real.value,), out)
        return replace(real, term=replace(real.term, axis=0), value=value)

    def _mean(self, node: Node) -> Real:
        lanes = _lanes(node)
        real = self._bits(node, self._real(node.input(0), node))
        shape = real.value.type.shape
        nhwc = to_nhwc(self.emitter, node.name, real.value)
        out = TensorType((shape[0], 1, 1, shape[1]), DType.INT32)
        mean = self.emitter.emit("real_mean", node.name, (nhwc,), out, RealMeanAttrs(lanes))
        value = from_nhwc(self.emitter, node.name, mean, node.output.type.shape)
        return Real(RealTerm(floats=True), value, None, real.bound)


def _lanes(node: Node) -> int:
    """How many sums onnxruntime keeps for the mean of an image, see docs/arithmetic.md."""
    shape = node.input(0).type.shape
    if len(shape) == 4 and node.op == "GlobalAveragePool":
        return 4
    if len(shape) == 4:
        window = onnx_window(node, shape[2:])
        if window.kernel_hw == shape[2:] and not any(window.pads):
            if window.stride_hw[1] > 2:
                return 1
            if window.stride_hw[1] == 1 and shape[3] % 4 == 0:
                return 4
    raise _refused(
        "TQ203", node,
        "a mean of reals that is not over a whole image, or whose order of additions is not known",
        "GlobalAveragePool of [N, C, H, W] is supported, and AveragePool of the image's size with "
        "strides of the image's size, at least 3 wide.",
    )  # fmt: skip


def _dynamic_values(graph: Graph) -> frozenset[Value]:
    """Every float value that is computed from integer sums or from a scale found at run time."""
    found: set[Value] = set()
    for node in graph.nodes:
        reads = any(value in found for value in node.present_inputs)
        if node.op in OPERATORS or (reads and node.op in _FOLLOWING):
            found.update(node.outputs)
    return frozenset(found)


def _along(array: AnyArray, axis: int, shape: tuple[int, ...]) -> Float32 | None:
    """float32 [1] or [C] of an array that broadcasts to ``shape``; None if not along ``axis``."""
    if array.size == 1:
        return array.reshape(1).astype(np.float32)
    rank = len(shape)
    full = (1,) * (rank - array.ndim) + array.shape
    wanted = tuple(shape[k] if k == axis else 1 for k in range(rank))
    return array.reshape(-1).astype(np.float32) if full == wanted else None


def _refused(code: str, node: Node, found: str, remedy: str = "") -> TinyqError:
    return TinyqError([Diagnostic(code, found, remedy, node.name, node.op)])
