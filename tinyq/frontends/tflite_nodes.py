"""Writes ONNX nodes for TensorFlow Lite's operators: values, quantization, layout, activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tinyq.errors import error
from tinyq.frontends.tflite import Operation, Tensor, TfliteModel
from tinyq.ir import AnyArray, QuantParams
from tinyq.quant.fixed_point import away_from_zero

OPSET = 17
_BOUNDS = {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
"""ActivationFunctionType: NONE, RELU, RELU_N1_TO_1, RELU6, in real units."""


class OnnxWriter:
    """Collects nodes and initializers; every value of the file keeps its tensor's name."""

    def __init__(self, model: TfliteModel) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._count = 0
        self._named: set[str] = set()

    # --- values -----------------------------------------------------------------------------------

    def fresh(self, base: str) -> str:
        """A name that no tensor of the file has."""
        self._count += 1
        return f"{base}//{self._count}"

    def constant(self, array: AnyArray, base: str = "constant") -> str:
        """An initializer."""
        name = self.fresh(base)
        self.constants[name] = numpy_helper.from_array(np.array(array), name)
        return name

    def integers(self, tensor: Tensor) -> str:
        """The value of a tensor as stored; constants become initializers."""
        if tensor.data is not None and tensor.name not in self.constants:
            array = np.ascontiguousarray(tensor.data)
            self.constants[tensor.name] = numpy_helper.from_array(array, tensor.name)
        return tensor.name

    def emit(
        self, op: str, inputs: Sequence[str], output: str, name: str = "", **attributes: object
    ) -> str:
        """A node of one output, whose name is returned; the first to ask for a name gets it."""
        wanted = name or output
        named = wanted if wanted not in self._named else self.fresh(wanted)
        self._named.add(named)
        node = helper.make_node(op, list(inputs), [output], name=named, **attributes)
        self.nodes.append(node)
        return output

    def _parameters(self, quant: QuantParams, dtype: str) -> tuple[str, str]:
        shape = () if quant.is_per_tensor else (len(quant.scales),)
        scales = quant.scale_array().reshape(shape)
        zeros = np.asarray(quant.zero_points, dtype).reshape(shape)
        return self.constant(scales, "scale"), self.constant(zeros, "zero")

    def dequantize(self, integers: str, quant: QuantParams, dtype: str) -> str:
        """The reals of integers."""
        inputs = [integers, *self._parameters(quant, dtype)]
        if quant.axis is None:
            return self.emit("DequantizeLinear", inputs, self.fresh(integers))
        return self.emit("DequantizeLinear", inputs, self.fresh(integers), axis=quant.axis)

    def real(self, tensor: Tensor) -> str:
        """The reals of a tensor."""
        quant = _activation(tensor)
        return self.dequantize(self.integers(tensor), quant, tensor.dtype)

    def quantize(self, value: str, like: Tensor, output: str, activation: int = 0) -> str:
        """The integers of reals on the grid of ``like``, clamped by a fused activation."""
        low, high = activation_limits(like, activation)
        narrow = (low, high) != like.limits
        wide = self.fresh(output) if narrow else output
        self.emit("QuantizeLinear", [value, *self._parameters(_activation(like), like.dtype)], wide)
        if narrow:
            bounds = [self.constant(np.asarray(b, like.dtype), "bound") for b in (low, high)]
            self.emit("Clip", [wide, *bounds], output)
        return output

    # --- layout -----------------------------------------------------------------------------------

    def nchw(self, tensor: Tensor, op: Operation) -> str:
        """[N, H, W, C] integers as [N, C, H, W]."""
        if len(tensor.shape) != 4:
            raise error("TQ203", f"its input has rank {len(tensor.shape)}, not 4")
        value = self.integers(tensor)
        return self.emit("Transpose", [value], self.fresh(op.name), perm=(0, 3, 1, 2))

    def real_nchw(self, tensor: Tensor, op: Operation) -> str:
        """The reals of a tensor, channels first."""
        return self.dequantize(self.nchw(tensor, op), _activation(tensor), tensor.dtype)

    def finish_nchw(self, value: str, op: Operation, activation: int = 0) -> None:
        """Quantize channels-first reals and store them, channels last, as the output."""
        output = op.outputs[0]
        integers = self.quantize(value, output, self.fresh(output.name), activation)
        self.emit("Transpose", [integers], output.name, perm=(0, 2, 3, 1))

    def reshape(self, value: str, shape: Sequence[int], output: str) -> str:
        """The same elements in another shape."""
        return self.emit("Reshape", [value, self.constant(np.asarray(shape, np.int64))], output)

    # --- the whole --------------------------------------------------------------------------------

    def model_proto(self) -> onnx.ModelProto:
        """The network as written so far, checked by shape inference later."""
        inputs = [_info(t) for t in self.model.inputs]
        outputs = [_info(t) for t in self.model.outputs]
        for tensor in self.model.outputs:
            self.integers(tensor)
        graph = helper.make_graph(
            self.nodes, "network", inputs, outputs, list(self.constants.values())
        )
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="tinyq")


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)


def _activation(tensor: Tensor) -> QuantParams:
    quant = tensor.parameters
    if not quant.is_per_tensor or tensor.dtype not in ("int8", "uint8"):
        raise error("TQ204", f"'{tensor.name}' is {tensor.dtype}, {len(quant.scales)} scales")
    return quant


def activation_limits(tensor: Tensor, activation: int) -> tuple[int, int]:
    """Smallest and largest stored integer that a fused activation leaves.

    Bounds are quantized as TensorFlow Lite does: divided in float32, rounded half away from zero.
    """
    if activation not in _BOUNDS:
        raise error("TQ203", f"fused activation {activation}", "NONE and the RELUs are supported.")
    low, high = tensor.limits
    quant = tensor.parameters
    for real, is_low in zip(_BOUNDS[activation], (True, False), strict=True):
        if real is None:
            continue
        level = float(np.float32(real) / np.float32(quant.scale))
        bound = int(away_from_zero(np.float64(level))) + quant.zero_point
        low, high = (max(low, bound), high) if is_low else (low, min(high, bound))
    return low, high
