"""Rewrites the QOperator form of ONNX into QDQ form, so that one form is left to lower.

QLinearConv and its kin (ONNX standard) and the ``com.microsoft`` operators of onnxruntime compute
what DequantizeLinear, the float operator and QuantizeLinear compute; each becomes those nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tinyq.errors import error

MICROSOFT = "com.microsoft"


class QdqBuilder:
    """Emits the nodes that replace one QOperator node; names derive from that node's."""

    def __init__(self, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
        self.node = node
        self.constants = constants
        self.nodes: list[onnx.NodeProto] = []
        self._count = 0

    def attr(self, name: str, default: object = None) -> object:
        """Value of the node's attribute, or ``default``."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def input(self, index: int) -> str:
        """Name of an input; empty when it is omitted."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def fresh(self, role: str) -> str:
        """A new value name."""
        self._count += 1
        return f"{self.node.output[0]}__{role}{self._count}"

    def emit(self, op: str, inputs: Iterable[str], output: str, **attributes: object) -> str:
        """Add a node of one output and return that output's name."""
        kept = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], name=f"{output}__{op}", **kept)
        )
        return output

    def dequantize(self, first: int, axis: int | None = None) -> str:
        """DequantizeLinear of inputs ``first`` (x), ``first+1`` (scale), ``first+2`` (zero)."""
        names = [self.input(first + k) for k in range(3)]
        if axis is not None and self._is_scalar(names[1]):
            axis = None
        return self.emit("DequantizeLinear", filter(None, names), self.fresh("dq"), axis=axis)

    def quantize(self, value: str, scale: str, zero: str) -> None:
        """QuantizeLinear of ``value`` into the node's own output."""
        inputs = [value, scale, zero] if zero else [value, scale]
        self.emit("QuantizeLinear", inputs, self.node.output[0])

    def bias(self, index: int, x_scale: str, w_scale: str) -> str:
        """DequantizeLinear of an int32 bias, whose scale is the product of the other two."""
        scales = [self.constant(name) for name in (x_scale, w_scale)]
        product = (scales[0].ravel() * scales[1].ravel()).astype(np.float32)
        if product.size == 1:
            product = product.reshape(())
        name = self.fixed("bias_scale", product)
        axis = 0 if product.ndim else None
        return self.emit("DequantizeLinear", [self.input(index), name], self.fresh("dq"), axis=axis)

    def _is_scalar(self, name: str) -> bool:
        return int(np.prod(self.constant(name).shape, dtype=np.int64)) == 1

    def is_constant(self, name: str) -> bool:
        """Whether a value is known."""
        return name in self.constants

    def fixed(self, role: str, array: np.ndarray) -> str:
        """Add a constant and return its name."""
        name = self.fresh(role)
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def constant(self, name: str) -> np.ndarray:
        """A known value. Raises TQ204."""
        if name not in self.constants:
            raise error(
                "TQ204",
                f"the quantization parameter '{name}' is computed at run time",
                "Scales and zero points must be constants.",
                node=self.node.name,
                operator=self.node.op_type,
            )
        return np.asarray(numpy_helper.to_array(self.constants[name]))


def _copied(b: QdqBuilder, *skip: str) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in b.node.attribute if a.name not in skip}


def _qlinear_conv(b: QdqBuilder) -> None:
    if b.attr("channels_last", 0):
        raise error(
            "TQ203",
            "channels_last=1",
            "Export with channels first.",
            node=b.node.name,
            operator=b.node.op_type,
        )
    inputs = [b.dequantize(0), b.dequantize(3, axis=0)]
    if b.input(8):
        inputs.append(b.bias(8, b.input(1), b.input(4)))
    y = b.emit("Conv", inputs, b.fresh("conv"), **_copied(b, "channels_last"))
    b.quantize(y, b.input(6), b.input(7))


def _qlinear_matmul(b: QdqBuilder) -> None:
    y = b.emit("MatMul", [b.dequantize(0), b.dequantize(3, axis=1)], b.fresh("matmul"))
    b.quantize(y, b.input(6), b.input(7))


def _qgemm(b: QdqBuilder) -> None:
    axis = 0 if b.attr("transB", 0) else 1
    inputs = [b.dequantize(0), b.dequantize(3, axis=axis)]
    if b.input(6):
        inputs.append(b.bias(6, b.input(1), b.input(4)))
    y = b.emit("Gemm", inputs, b.fresh("gemm"), **_copied(b))
    if b.input(7):
        b.quantize(y, b.input(7), b.input(8))
    else:
        b.nodes[-1].output[0] = b.node.output[0]


def _binary(op: str) -> Callable[[QdqBuilder], None]:
    def rewrite(b: QdqBuilder) -> None:
        y = b.emit(op, [b.dequantize(0), b.dequantize(3)], b.fresh(op.lower()))
        b.quantize(y, b.input(6), b.input(7))

    return rewrite


def _unary(op: str, *skip: str) -> Callable[[QdqBuilder], None]:
    def rewrite(b: QdqBuilder) -> None:
        if b.attr("channels_last", 0):
            raise error(
                "TQ203",
                "channels_last=1",
                "Export with channels first.",
                node=b.node.name,
                operator=b.node.op_type,
            )
        y = b.emit(op, [b.dequantize(0)], b.fresh(op.lower()), **_copied(b, "channels_last", *skip))
        b.quantize(y, b.input(3), b.input(4))

    return rewrite


def _qlinear_concat(b: QdqBuilder) -> None:
    inputs = [b.dequantize(k) for k in range(2, len(b.node.input), 3)]
    y = b.emit("Concat", inputs, b.fresh("concat"), **_copied(b))
    b.quantize(y, b.input(0), b.input(1))


_REWRITES: dict[tuple[str, str], Callable[[QdqBuilder], None]] = {
    ("", "QLinearConv"): _qlinear_conv,
    (MICROSOFT, "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _qlinear_matmul,
    (MICROSOFT, "QGemm"): _qgemm,
    (MICROSOFT, "QLinearAdd"): _binary("Add"),
    (MICROSOFT, "QLinearMul"): _binary("Mul"),
    (MICROSOFT, "QLinearAveragePool"): _unary("AveragePool"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (MICROSOFT, "QLinearSoftmax"): _unary("Softmax", "opset"),
    (MICROSOFT, "QLinearConcat"): _qlinear_concat,
}
"""How each QOperator node is written in QDQ form, by domain and operator."""

QOPERATORS: tuple[str, ...] = tuple(sorted({op for _, op in _REWRITES}))


def to_qdq(
    nodes: Iterable[onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> Iterator[onnx.NodeProto]:
    """The nodes in QDQ form; ``constants`` gains the bias scales that are computed."""
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        rewrite = _REWRITES.get((domain, node.op_type))
        if rewrite is not None:
            builder = QdqBuilder(node, constants)
            rewrite(builder)
            yield from builder.nodes
        elif domain == MICROSOFT and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            plain = onnx.NodeProto()
            plain.CopyFrom(node)
            plain.domain = ""
            yield plain
        else:
            yield node
