"""Small float models with fixed weights, built node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


class Builder:
    """Collects nodes and initialisers; every method returns the tensor it made."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def const(self, value: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype=dtype)
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        return self.const(self.rng.normal(0, gain / np.sqrt(fan_in), shape))

    def conv(self, x: str, cin: int, cout: int, k: int = 3, bias: bool = True, **attrs: Any) -> str:
        group = attrs.get("group", 1)
        pad = attrs.pop("pad", k // 2)
        inputs = [x, self.weight(cout, cin // group, k, k, gain=1.5)]
        if bias:
            inputs.append(self.const(self.rng.normal(0, 0.1, cout)))
        return str(self.op("Conv", *inputs, pads=[pad] * 4, kernel_shape=[k, k], **attrs))

    def batchnorm(self, x: str, channels: int, spread: float = 0.3) -> str:
        rng = self.rng
        parts = (
            np.exp(rng.normal(0, spread, channels)), rng.normal(0, 0.3, channels),
            rng.normal(0, 0.3, channels), np.exp(rng.normal(0, spread, channels)),
        )  # fmt: skip
        return str(self.op("BatchNormalization", x, *(self.const(p) for p in parts)))

    def model(
        self, output: str | list[str], shape: list[Any], name: str = "x", dtype: int = 1
    ) -> onnx.ModelProto:
        outputs = [output] if isinstance(output, str) else output
        graph = helper.make_graph(
            self.nodes, "net",
            [helper.make_tensor_value_info(name, dtype, shape)],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            [numpy_helper.from_array(v, k) for k, v in self.constants.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def small_cnn(seed: int = 0, relu6: bool = False) -> onnx.ModelProto:
    """Conv, BatchNorm, depthwise, a residual Add, pooling, dense, Softmax: x [N, 3, 12, 12]."""
    b = Builder(seed)
    y = b.batchnorm(b.conv("x", 3, 8, bias=False), 8)
    y = b.op("Clip", y, b.const(0.0), b.const(6.0)) if relu6 else b.op("Relu", y)
    y = b.op("Relu", b.batchnorm(b.conv(y, 8, 8, group=8, strides=[2, 2]), 8))
    z = b.batchnorm(b.conv(y, 8, 8), 8)
    y = b.op("Relu", b.op("Add", y, z))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    y = b.op("Gemm", y, b.weight(5, 8, gain=3.0), b.const(np.zeros(5)), transB=1)
    return b.model(b.op("Softmax", y, axis=1), ["n", 3, 12, 12])


def mlp(seed: int = 0, batch: Any = "n") -> onnx.ModelProto:
    """MatMul + Add + Relu, twice, and a last MatMul: x [N, 16]."""
    b = Builder(seed)
    y = "x"
    for cin, cout in ((16, 24), (24, 12)):
        product = b.op("MatMul", y, b.weight(cin, cout))
        y = b.op("Relu", b.op("Add", product, b.const(b.rng.normal(0, 0.2, cout))))
    return b.model(b.op("MatMul", y, b.weight(12, 4)), [batch, 16])


def chain(scales: Array, batchnorm: bool = True, seed: int = 0) -> onnx.ModelProto:
    """Pointwise Conv, BatchNorm, Relu, pointwise Conv; channel i of the first is ``scales[i]``."""
    b = Builder(seed)
    n = len(scales)
    y = b.conv("x", 4, n, 1, bias=False)
    if batchnorm:
        parts = (scales, 0.5 * scales, np.zeros(n), np.ones(n))
        y = b.op("BatchNormalization", y, *(b.const(p) for p in parts))
    y = b.op("Relu", y)
    w = b.rng.normal(0, 1, (6, n, 1, 1)) / scales[None, :, None, None]
    y = b.op("Conv", y, b.const(w), b.const(np.zeros(6)), kernel_shape=[1, 1])
    return b.model(y, ["n", 4, 6, 6])


def samples(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def run(model: onnx.ModelProto, x: Array, optimize: bool = True) -> list[Array]:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # no sum saturates
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {session.get_inputs()[0].name: x}))


def run_inner(model: onnx.ModelProto, tensor: str, x: Array) -> Array:
    """Value of a float tensor inside the model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    return run(copy, x)[0]


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
