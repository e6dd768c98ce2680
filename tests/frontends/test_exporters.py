"""Models as the exporters write them: onnxruntime.quantization, PyTorch and tf2onnx."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from agreement import Model, compile_all, count_different, differences, draw_inputs, run_c
from onnx import helper, numpy_helper

from tinyq.frontends.onnx import standardise

NETWORKS = Path(__file__).parents[3] / "shared" / "models" / "mlperf-tiny"


class Float:
    """A float network under construction, opset 17."""

    def __init__(self, shape: tuple[int | str, ...]) -> None:
        self.rng = np.random.default_rng(5)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, *shape: int) -> str:
        spread = np.sqrt(2 / max(1, np.prod(shape[1:])))
        array = self.rng.normal(0, spread, shape).astype(np.float32)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, into: int, out: int, kernel: int = 3, stride: int = 1, group: int = 1,
             relu: str = "Relu") -> str:  # fmt: skip
        pad = kernel // 2
        y = self.op(
            "Conv", x, self.constant(out, into // group, kernel, kernel), self.constant(out),
            kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2, group=group,
        )  # fmt: skip
        return self.op(relu, y) if relu else y

    def model(self, y: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, None)], self.constants,
        )  # fmt: skip
        imports = [helper.make_opsetid("", 17)]
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=imports, ir_version=8)
        )


def small_cnn() -> onnx.ModelProto:
    n = Float(("batch", 3, 12, 12))
    y = n.op("MaxPool", n.conv("x", 3, 8), kernel_shape=[2, 2], strides=[2, 2])
    y = n.op("Flatten", n.conv(y, 8, 12, stride=2))
    y = n.op("Gemm", y, n.constant(10, 108), n.constant(10), transB=1)
    return n.model(n.op("Softmax", y, axis=-1))


def inverted_residual() -> onnx.ModelProto:
    """MobileNetV2's block: expand, depthwise, project, add; then the mean."""
    n = Float((1, 8, 10, 10))
    y = n.conv("x", 8, 24, 1)
    y = n.conv(n.conv(y, 24, 24, 3, group=24), 24, 8, 1, relu="")
    y = n.conv(n.op("Add", y, "x"), 8, 16, 1)
    y = n.op("Flatten", n.op("GlobalAveragePool", y))
    return n.model(n.op("MatMul", y, n.constant(16, 4)))


def residual() -> onnx.ModelProto:
    n = Float((1, 4, 9, 9))
    y = n.conv(n.conv("x", 4, 8, stride=2), 8, 8, relu="")
    y = n.op("Relu", n.op("Add", y, n.conv("x", 4, 8, 1, stride=2, relu="")))
    return n.model(n.op("Sigmoid", n.op("Concat", y, n.conv(y, 8, 4), axis=1)))


class Calibration:
    def __init__(self, model: onnx.ModelProto) -> None:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        shape = tuple(d.dim_value or 1 for d in dims)
        rng = np.random.default_rng(9)
        self.feeds = iter([{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(6)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


ARCHITECTURES: dict[str, Callable[[], onnx.ModelProto]] = {
    "small_cnn": small_cnn,
    "inverted_residual": inverted_residual,
    "residual": residual,
}
FORMATS = ("QDQ", "QOperator")
TYPES = (("QInt8", "QInt8", False), ("QUInt8", "QInt8", True), ("QUInt8", "QUInt8", False))
CASES = [
    (f"{name}-{form}-{activation}-{weight}{'-channels' * channels}", name, form, activation, weight,
     channels)
    for name, form, (activation, weight, channels) in itertools.product(
        ARCHITECTURES, FORMATS, TYPES
    )
]  # fmt: skip


def quantized(
    name: str, form: str, activation: str, weight: str, channels: bool, folder: Path,
    float_model: onnx.ModelProto | None = None,
) -> onnx.ModelProto:  # fmt: skip
    from onnxruntime import quantization as q

    model = float_model or ARCHITECTURES[name]()
    path = folder / f"{name}.onnx"
    logging.disable(logging.WARNING)
    q.quantize_static(
        model, path, Calibration(model), quant_format=getattr(q.QuantFormat, form),
        activation_type=getattr(q.QuantType, activation), weight_type=getattr(q.QuantType, weight),
        per_channel=channels,
    )  # fmt: skip
    logging.disable(logging.NOTSET)
    return onnx.load(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {case[0]: Model(case[0], quantized(*case[1:], folder)) for case in CASES}


@pytest.mark.parametrize("name", [case[0] for case in CASES])
def test_onnxruntime_quantization(name: str, models: dict[str, Model]) -> None:
    model = models[name]
    assert differences(model, draw_inputs(model.graph, 6)) == 0
    transposes = [node for node in model.graph.nodes if node.op == "transpose"]
    assert len(transposes) <= len(model.graph.inputs) + len(model.graph.outputs)


def test_their_c_equals_the_reference(models: dict[str, Model], tmp_path: Path) -> None:
    graphs = {f"m{k}": model.graph for k, model in enumerate(models.values())}
    for name, instance in compile_all(graphs, tmp_path).items():
        for x in draw_inputs(graphs[name], 4):
            wanted = models[CASES[int(name[1:])][0]].reference(x)
            assert count_different(run_c(instance, graphs[name], x), wanted) == 0


@pytest.mark.parametrize("opset_version", [17, 21])
@pytest.mark.parametrize("weight", ["QInt4", "QUInt4"])
def test_onnxruntime_quantization_to_four_bits(
    weight: str, opset_version: int, tmp_path: Path
) -> None:
    """Below opset 21 onnxruntime writes the nodes in a domain of its own."""
    for name in ("small_cnn", "inverted_residual"):
        float_model = ARCHITECTURES[name]()
        float_model.opset_import[0].version = opset_version
        proto = quantized(name, "QDQ", "QUInt8", weight, True, tmp_path, float_model)
        kinds = {t.data_type for t in proto.graph.initializer}
        assert kinds & {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
        standardise(proto)
        model = Model(name, proto)
        assert differences(model, draw_inputs(model.graph, 6)) == 0
        layer = next(n for n in model.graph.nodes if n.op in ("conv2d", "dense"))
        assert np.abs(layer.input(1).array.astype(int)).max() <= 15


@pytest.mark.torch
@pytest.mark.parametrize("dynamo", [False, True])
def test_torch_onnx_export(dynamo: bool) -> None:
    """Fake quantization as PyTorch exports it: Q and DQ around Conv, Linear, Add, Hardswish."""
    torch = pytest.importorskip("torch")
    fake = torch.fake_quantize_per_tensor_affine

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
            self.linear = torch.nn.Linear(6 * 4 * 4, 5)

        def forward(self, x):
            x = fake(x, 0.03, 4, -128, 127)
            scales = torch.full((6,), 0.003)
            zeros = torch.zeros(6, dtype=torch.int32)
            w = torch.fake_quantize_per_channel_affine(
                self.conv.weight, scales, zeros, 0, -128, 127
            )
            y = torch.nn.functional.conv2d(x, w, self.conv.bias, padding=1)
            y = fake(torch.relu(y), 0.02, -128, -128, 127)
            y = fake(torch.nn.functional.max_pool2d(y, 2), 0.02, -128, -128, 127)
            w = fake(self.linear.weight, 0.002, 0, -128, 127)
            y = fake(
                torch.nn.functional.linear(y.flatten(1), w, self.linear.bias), 0.04, 3, -128, 127
            )
            return fake(torch.nn.functional.hardswish(y), 0.02, -100, -128, 127)

    buffer = io.BytesIO()
    logging.disable(logging.WARNING)
    program = torch.onnx.export(
        Net().eval(), (torch.zeros(1, 3, 8, 8),), None if dynamo else buffer, dynamo=dynamo,
        opset_version=18 if dynamo else 17, verbose=False,
    )  # fmt: skip
    logging.disable(logging.NOTSET)
    proto = program.model_proto if dynamo else onnx.load_from_string(buffer.getvalue())
    model = Model("torch", proto)
    assert differences(model, draw_inputs(model.graph, 8)) == 0


@pytest.mark.parametrize("name", ["ad", "ic", "kws", "sww", "vww"])
def test_tf2onnx(name: str) -> None:
    path = NETWORKS / f"{name}_int8.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    model = Model(name, onnx.load(path))
    assert differences(model, draw_inputs(model.graph, 3)) == 0
