"""Networks quantized by torchao (PT2E), Brevitas (QCDQ) and onnxruntime, compiled and verified.

The network of torchao and Brevitas: convolutions with BatchNorm and Relu, a depthwise one with
Relu6, a residual Add, a pool and a linear layer. Its C runs in QEMU, and every output integer is
onnxruntime's. The mean is of nine values: torchao gives it its input's scale, so that means of an
even number lie halfway between integers, where the order of onnxruntime's additions decides.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ptq.ptq_models import small_cnn

import tinyq
from tinyq.verification.verify import VerifyOptions

pytestmark = [pytest.mark.torch, pytest.mark.qemu]
torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Exporters and packages built for other machines warn at length."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


class Net(torch.nn.Module):  # type: ignore[misc]
    """x [1, 3, 12, 12] to 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = torch.nn.functional
        y = torch.relu(self.norm1(self.conv1(x)))
        z = f.relu6(self.norm2(self.conv2(y)))
        y = f.max_pool2d(torch.relu(y + self.conv3(z)), 4)
        return self.linear(f.adaptive_avg_pool2d(y, 1).flatten(1))


def samples() -> torch.Tensor:
    return torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def trained(net: torch.nn.Module) -> torch.nn.Module:
    """``net`` with statistics in its BatchNorms (and observers, if it has any), for evaluation."""
    net.train()
    for _ in range(10):
        net(samples())
    return net.eval()


def verified(proto: onnx.ModelProto, folder: Path) -> None:
    onnx.save(proto, folder / "model.onnx")
    tinyq.compile(folder / "model.onnx", output=folder / "net", target="cortex-m4")
    report = tinyq.verify(folder / "net", VerifyOptions(random=20))
    assert report.equal
    assert report.outputs_compared == 20 * 5


@pytest.mark.parametrize("per_channel", [True, False])
def test_torchao_pt2e(per_channel: bool, tmp_path: Path) -> None:
    """prepare_pt2e and convert_pt2e with the quantizer of XNNPACK, then torch.onnx.export."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    torch.manual_seed(0)
    x = samples()
    exported = torch.export.export(trained(Net()), (x[:1],)).module()
    config = get_symmetric_quantization_config(is_per_channel=per_channel)
    prepared = prepare_pt2e(exported, XNNPACKQuantizer().set_global(config))
    for sample in x.split(1):
        prepared(sample)
    program = torch.onnx.export(
        convert_pt2e(prepared), (x[:1],), dynamo=True, opset_version=18, verbose=False
    )
    verified(program.model_proto, tmp_path)


def brevitas_net(bits: int, with_bias: bool) -> torch.nn.Module:
    """The network in Brevitas' layers, with a flatten in place of the mean, which it leaves float.

    Edges have 8 bits, the rest ``bits``; biases are int32 if ``with_bias``, else float.
    """
    import brevitas.nn as qnn
    from brevitas.quant import Int8WeightPerChannelFloat, Int32Bias

    weights = {
        "weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": bits, "bias": True,
        "bias_quant": Int32Bias if with_bias else None, "return_quant_tensor": True,
    }  # fmt: skip
    edge = {"bit_width": 8, "return_quant_tensor": True}
    inner = {"bit_width": bits, "return_quant_tensor": True}

    class Quantized(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.input = qnn.QuantIdentity(**edge)
            self.conv1 = qnn.QuantConv2d(3, 8, 3, padding=1, **weights)
            self.norm1 = torch.nn.BatchNorm2d(8)
            self.relu1 = qnn.QuantReLU(**inner)
            self.conv2 = qnn.QuantConv2d(8, 8, 3, padding=1, groups=8, **weights)
            self.relu2 = qnn.QuantReLU(**inner)
            self.conv3 = qnn.QuantConv2d(8, 8, 1, **weights)
            self.add = qnn.QuantEltwiseAdd(return_quant_tensor=True)
            self.relu3 = qnn.QuantReLU(**inner)
            self.pool = torch.nn.MaxPool2d(2)
            self.linear = qnn.QuantLinear(8 * 36, 5, **weights)
            self.output = qnn.QuantIdentity(bit_width=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.relu1(self.norm1(self.conv1(self.input(x))))
            z = self.relu2(self.conv2(y))
            y = self.pool(self.relu3(self.add(y, self.conv3(z))))
            return self.output(self.linear(y.flatten(1)))

    return Quantized()


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_brevitas_qcdq(bits: int, dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("brevitas", reason="brevitas is not installed: `make test-brevitas`")
    from brevitas.export import export_onnx_qcdq

    torch.manual_seed(0)
    net = trained(brevitas_net(bits, with_bias=not dynamo))
    path = tmp_path / "exported.onnx"
    export_onnx_qcdq(
        net, samples()[:1], export_path=str(path), opset_version=18 if dynamo else 17, dynamo=dynamo
    )
    verified(onnx.load(path), tmp_path)


TYPES = {
    "int8": ("QInt8", "QInt8", False),
    "int8, per channel": ("QInt8", "QInt8", True),
    "uint8 and int8, per channel": ("QUInt8", "QInt8", True),
    "uint8": ("QUInt8", "QUInt8", False),
}


class Reader:
    """Calibration samples as onnxruntime takes them."""

    def __init__(self) -> None:
        self.feeds = iter([{"x": sample.numpy()} for sample in samples().split(1)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the same kind after onnxruntime's preprocessing."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = tmp_path_factory.mktemp("float")
    onnx.save(small_cnn(relu6=True), folder / "float.onnx")
    quant_pre_process(str(folder / "float.onnx"), str(folder / "ready.onnx"))
    before, after = (
        {node.op_type for node in onnx.load(folder / name).graph.node}
        for name in ("float.onnx", "ready.onnx")
    )
    assert "BatchNormalization" in before - after
    return folder / "ready.onnx"


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
def test_onnxruntime(
    types: tuple[str, str, bool], form: str, preprocessed: Path, tmp_path: Path
) -> None:
    from onnxruntime import quantization as q

    activation, weight, per_channel = types
    choices: dict[str, Any] = {
        "quant_format": q.QuantFormat[form], "per_channel": per_channel,
        "activation_type": q.QuantType[activation], "weight_type": q.QuantType[weight],
    }  # fmt: skip
    q.quantize_static(str(preprocessed), str(tmp_path / "q.onnx"), Reader(), **choices)
    verified(onnx.load(tmp_path / "q.onnx"), tmp_path)
