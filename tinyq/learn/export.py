"""Write a converted network as a QDQ ONNX file that computes the same integers.

The graph is built here, operator by operator, rather than by torch.onnx: that exporter drops
quant_min and quant_max without a word, so that low-bit activations come out wrong, and it knows
neither level tables nor weights that are already integers. Low-bit activations are QuantizeLinear,
Clip, DequantizeLinear; tables are QuantizeLinear, Cast, Gather, DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from tinyq.errors import error
from tinyq.learn.convert import convert, is_converted
from tinyq.learn.layers import IntegerConv2d
from tinyq.learn.quantizers import ActQuantizer, AffineActQuantizer, TableActQuantizer
from tinyq.learn.trace import (
    PASS_THROUGH,
    Op,
    module_of,
    operations,
    origin_of,
    shape_of,
    tensor_inputs,
    trace,
)

OPSET = 17
OPSET_INT16 = 21  # the first in which DequantizeLinear takes int16


def export(model: nn.Module, path: str | Path) -> Path:
    """Write a prepared or converted network to ``path``; the batch dimension is symbolic.

    Weights are int8 initialisers holding levels times one factor a layer (int16, and opset 21, when
    a level needs it), biases int32, input and output float with QuantizeLinear and DequantizeLinear
    at the edges. Raises what :func:`convert` raises, and TQ703 when the file cannot be written.
    """
    traced = model if is_converted(model) else convert(model)
    assert isinstance(traced, fx.GraphModule)
    return _write(_Writer(traced), path)


def export_float(model: nn.Module, path: str | Path, example: Tensor) -> Path:
    """Write what a float network computes in eval mode to ``path``; it is not changed.

    ``example`` is an input [N, ...], float32. Raises TQ650, TQ651 and TQ657 for networks and
    examples that cannot be taken, and TQ703 when the file cannot be written.
    """
    if origin_of(model) is not None:
        raise error("TQ657", "the network is prepared already", "Write it with tinyq.learn.export.")
    return _write(_Writer(trace(model, example, trains=False)), path)


def _write(writer: _Writer, path: str | Path) -> Path:
    import onnx

    proto = writer.build()
    onnx.checker.check_model(proto, full_check=True)
    target = Path(path)
    try:
        target.write_bytes(proto.SerializeToString(deterministic=True))
    except OSError as problem:
        raise error("TQ703", problem.strerror or str(problem), file=str(target)) from None
    return target


class _Writer:
    """Collects nodes and initialisers while walking the graph once."""

    def __init__(self, traced: fx.GraphModule):
        self.traced = traced
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names: dict[fx.Node, str] = {}
        self.quantized: dict[fx.Node, ActQuantizer] = {}
        self.opset = OPSET

    def build(self) -> Any:
        """Return the ONNX model."""
        from onnx import TensorProto, helper

        inputs = []
        for node, op in operations(self.traced):
            if node.op == "placeholder":
                self.names[node] = str(node.target)
                shape = ["N", *shape_of(node)[1:]]
                inputs.append(
                    helper.make_tensor_value_info(str(node.target), TensorProto.FLOAT, shape)
                )
                continue
            self.emit(node, op)
        results = self._results()
        outputs = [
            helper.make_tensor_value_info(self.names[n], TensorProto.FLOAT, ["N", *shape_of(n)[1:]])
            for n in results
        ]
        graph = helper.make_graph(
            self.nodes, "tinyq", inputs, outputs, initializer=self.initializers
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=10 if self.opset > OPSET else 8,
            producer_name="tinyq",
        )

    def _results(self) -> list[fx.Node]:
        (out,) = [n for n in self.traced.graph.nodes if n.op == "output"]
        return list(out.all_input_nodes)

    def emit(self, node: fx.Node, op: Op) -> None:
        """Write what ``node`` computes."""
        module = module_of(self.traced, node)
        if isinstance(module, ActQuantizer):
            self.names[node] = self._quantizer(node, module)
            self.quantized[node] = module
        elif op.kind == "identity":
            source = tensor_inputs(node)[0]
            self.names[node] = self.names[source]
            if source in self.quantized:
                self.quantized[node] = self.quantized[source]
        else:
            self.names[node] = _EMIT[op.kind](self, node, op)
            if op.kind in PASS_THROUGH and tensor_inputs(node)[0] in self.quantized:
                quantizer = self.quantized[tensor_inputs(node)[0]]
                self.quantized[node] = quantizer
                self.names[node] = self._requantize(node, quantizer)

    def add(
        self, kind: str, node: fx.Node, inputs: list[str], suffix: str = "", **attrs: Any
    ) -> str:
        """Append an ONNX node and return its output's name."""
        from onnx import helper

        name = f"{node.name}{suffix}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attrs))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """Append an initialiser and return its name."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def inputs(self, node: fx.Node) -> list[str]:
        """Names of the tensors that ``node`` reads."""
        return [self.names[n] for n in tensor_inputs(node)]

    def _scale(self, name: str, step: Tensor) -> str:
        return self.constant(name, step.detach().cpu().numpy().astype(np.float32))

    def _affine(self, node: fx.Node, quantizer: ActQuantizer) -> tuple[str, str]:
        """Scale and zero point; signed values lie 128 higher in uint8.

        One type everywhere: onnxruntime has integer kernels for uint8 to uint8 and int8 to int8,
        and computes in float where a layer reads one and writes the other.
        """
        scale = self._scale(f"{node.name}_scale", quantizer.exported_step())
        zero = np.array(quantizer.exported_zero, np.uint8)
        return scale, self.constant(f"{node.name}_zero", zero)

    def _requantize(self, node: fx.Node, quantizer: ActQuantizer) -> str:
        """Integers again after an operator that only moved them."""
        scale, zero = self._affine(node, quantizer)
        q = self.add("QuantizeLinear", node, [self.names[node], scale, zero], "_q")
        return self.add("DequantizeLinear", node, [q, scale, zero], "_dq")

    def _quantizer(self, node: fx.Node, quantizer: ActQuantizer) -> str:
        source = self.inputs(node)[0]
        scale, zero = self._affine(node, quantizer)
        if isinstance(quantizer, TableActQuantizer):
            q = self._table(node, quantizer, source)
            return self.add("DequantizeLinear", node, [q, scale, zero])
        assert isinstance(quantizer, AffineActQuantizer)
        q = self.add("QuantizeLinear", node, [source, scale, zero], "_q")
        if quantizer.bits < 8:
            offset = _offset(quantizer)
            low = self.constant(f"{node.name}_low", np.array(quantizer.low + offset, np.uint8))
            high = self.constant(f"{node.name}_high", np.array(quantizer.high + offset, np.uint8))
            q = self.add("Clip", node, [q, low, high], "_clip")
        return self.add("DequantizeLinear", node, [q, scale, zero])

    def _table(self, node: fx.Node, quantizer: TableActQuantizer, source: str) -> str:
        """Level of each value: an 8-bit integer on a finer grid, looked up."""
        from onnx import TensorProto

        offset = _offset(quantizer)
        fine = self._scale(f"{node.name}_fine", quantizer.rounded_step())
        zero = self.constant(f"{node.name}_fine_zero", np.array(offset, np.uint8))
        levels = (quantizer.lookup().numpy() + offset).astype(np.uint8)
        table = self.constant(f"{node.name}_table", levels)
        q = self.add("QuantizeLinear", node, [source, fine, zero], "_q")
        index = self.add("Cast", node, [q], "_index", to=TensorProto.INT32)
        return self.add("Gather", node, [table, index], "_level", axis=0)

    def _integer_weights(self, node: fx.Node, layer: IntegerConv2d) -> list[str]:
        weight = layer.weight_int.cpu().numpy()
        dtype = np.int8 if weight.min() >= -128 and weight.max() <= 127 else np.int16
        if dtype == np.int16:
            self.opset = OPSET_INT16
        scale = self._scale(f"{node.name}_weight_scale", layer.weight_step)
        zero = self.constant(f"{node.name}_weight_zero", np.zeros(len(weight), dtype))
        w = self.constant(f"{node.name}_weight_int", weight.astype(dtype))
        w = self.add("DequantizeLinear", node, [w, scale, zero], "_weight", axis=0)
        bias_scale = self._scale(f"{node.name}_bias_scale", layer.input_step * layer.weight_step)
        bias_zero = self.constant(f"{node.name}_bias_zero", np.zeros(len(weight), np.int32))
        b = self.constant(f"{node.name}_bias_int", layer.bias_int.cpu().numpy())
        b = self.add("DequantizeLinear", node, [b, bias_scale, bias_zero], "_bias", axis=0)
        return [w, b]

    def weights(self, node: fx.Node) -> list[str]:
        """Weight and bias of a convolution or dense layer, integer or float."""
        module = module_of(self.traced, node)
        if isinstance(module, IntegerConv2d):
            return self._integer_weights(node, module)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        names = [self.constant(f"{node.name}_weight", module.weight.detach().cpu().numpy())]
        if module.bias is not None:
            names.append(self.constant(f"{node.name}_bias", module.bias.detach().cpu().numpy()))
        return names


def _offset(quantizer: ActQuantizer) -> int:
    return 128 if quantizer.signed else 0


def _conv(w: _Writer, node: fx.Node, op: Op) -> str:
    module = module_of(w.traced, node)
    if isinstance(module, IntegerConv2d):
        assert module.conv is not None
        stride, padding, dilation, groups = module.conv
    else:
        assert isinstance(module, nn.Conv2d)
        stride, padding, dilation, groups = (
            module.stride, module.padding, module.dilation, module.groups,
        )  # fmt: skip
    weights = w.weights(node)
    weight = module.weight_int if isinstance(module, IntegerConv2d) else module.weight
    return w.add(
        "Conv",
        node,
        [*w.inputs(node), *weights],
        kernel_shape=list(weight.shape[2:]),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
    )


def _linear(w: _Writer, node: fx.Node, op: Op) -> str:
    return w.add("Gemm", node, [*w.inputs(node), *w.weights(node)], transB=1)


def _batch_norm(w: _Writer, node: fx.Node, op: Op) -> str:
    norm = module_of(w.traced, node)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    ones = torch.ones_like(norm.running_mean)
    parts = {
        "gamma": ones if norm.weight is None else norm.weight,
        "beta": 0 * ones if norm.bias is None else norm.bias,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }
    names = [w.constant(f"{node.name}_{k}", v.detach().cpu().numpy()) for k, v in parts.items()]
    return w.add("BatchNormalization", node, [*w.inputs(node), *names], epsilon=norm.eps)


def _pool(w: _Writer, node: fx.Node, op: Op) -> str:
    attrs: dict[str, Any] = {
        "kernel_shape": list(op.kernel_hw),
        "strides": list(op.stride_hw),
        "pads": [*op.pad_hw, *op.pad_hw],
        "ceil_mode": int(op.ceil_mode),
    }
    if op.kind == "avg_pool":
        return w.add(
            "AveragePool",
            node,
            w.inputs(node),
            count_include_pad=int(op.count_include_pad),
            **attrs,
        )
    return w.add("MaxPool", node, w.inputs(node), dilations=list(op.dilation_hw), **attrs)


def _global_average(w: _Writer, node: fx.Node, op: Op) -> str:
    name = w.add("GlobalAveragePool", node, w.inputs(node), "" if op.keep else "_pool")
    return name if op.keep else w.add("Flatten", node, [name], axis=1)


def _reshape(w: _Writer, node: fx.Node, op: Op) -> str:
    shape = w.constant(f"{node.name}_shape", np.array([0, *shape_of(node)[1:]], np.int64))
    return w.add("Reshape", node, [*w.inputs(node), shape])


def _clip(w: _Writer, node: fx.Node, op: Op) -> str:
    low = w.constant(f"{node.name}_low", np.array(op.low, np.float32))
    high = w.constant(f"{node.name}_high", np.array(op.high, np.float32))
    return w.add("Clip", node, [*w.inputs(node), low, high])


def _same(kind: str) -> Callable[[_Writer, fx.Node, Op], str]:
    return lambda w, node, op: w.add(kind, node, w.inputs(node))


_EMIT: dict[str, Callable[[_Writer, fx.Node, Op], str]] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_avg_pool": _global_average,
    "reshape": _reshape,
    "clip": _clip,
    "relu": _same("Relu"),
    "sigmoid": _same("Sigmoid"),
    "tanh": _same("Tanh"),
    "hard_swish": _same("HardSwish"),
    "add": _same("Add"),
    "sub": _same("Sub"),
    "mul": _same("Mul"),
    "hard_sigmoid": lambda w, n, op: w.add("HardSigmoid", n, w.inputs(n), alpha=1 / 6, beta=0.5),
    "leaky_relu": lambda w, n, op: w.add("LeakyRelu", n, w.inputs(n), alpha=op.slope),
    "softmax": lambda w, n, op: w.add("Softmax", n, w.inputs(n), axis=op.dim),
    "cat": lambda w, n, op: w.add("Concat", n, w.inputs(n), axis=op.dim),
}
