"""Whole networks, quantized by tinyq and by onnxruntime: each compiles exactly or is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from agreement import Model, assert_c, differences, draw_inputs
from onnxruntime import quantization as q
from onnxruntime.quantization.shape_inference import quant_pre_process
from ptq_networks import NETWORKS

from tinyq.errors import TinyqError
from tinyq.ptq import from_arrays, inputs_of, quantize


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def drawn(model: onnx.ModelProto, count: int) -> np.ndarray:
    shape = inputs_of(model)[0].shape
    return np.random.default_rng(9).normal(size=(count, *shape)).astype(np.float32)


def by_tinyq(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    return quantize(model, from_arrays(inputs_of(model), {"x": drawn(model, 64)})).model


class Reader:
    """Samples as onnxruntime takes them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.feeds = iter([{"x": x[None]} for x in drawn(model, 16)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def by_onnxruntime(
    form: str, activations: str
) -> Callable[[onnx.ModelProto, Path], onnx.ModelProto]:
    def make(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        float_path, ready, path = (str(folder / f"{name}.onnx") for name in ("f", "r", "q"))
        onnx.save(model, float_path)
        quant_pre_process(float_path, ready, skip_symbolic_shape=True)
        q.quantize_static(
            ready, path, Reader(model), quant_format=q.QuantFormat[form], per_channel=True,
            activation_type=q.QuantType[activations], weight_type=q.QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(path)

    return make


WAYS: dict[str, Callable[[onnx.ModelProto, Path], onnx.ModelProto]] = {
    "tinyq": by_tinyq,
    "QDQ, int8": by_onnxruntime("QDQ", "QInt8"),
    "QOperator, uint8": by_onnxruntime("QOperator", "QUInt8"),
}
REFUSED = {
    ("division", "QDQ, int8"): "TQ203",
    ("division", "QOperator, uint8"): "TQ203",
    ("bilinear_resize", "tinyq"): "TQ601",
    ("bilinear_resize", "QDQ, int8"): "TQ203",
    ("bilinear_resize", "QOperator, uint8"): "TQ203",
    ("layer_norm", "tinyq"): "TQ601",
    ("layer_norm", "QDQ, int8"): "TQ201",
    ("layer_norm", "QOperator, uint8"): "TQ201",
    # onnxruntime quantizes no Sub, Min, Max or PRelu: several operators meet in float.
    ("mean_over_channels", "QDQ, int8"): "TQ202",
    ("mean_over_channels", "QOperator, uint8"): "TQ202",
    ("extremes", "QDQ, int8"): "TQ202",
    ("extremes", "QOperator, uint8"): "TQ202",
    # This form leaves the weights of transposed convolutions in float.
    ("unet", "QOperator, uint8"): "TQ202",
    ("convolutional_autoencoder", "QOperator, uint8"): "TQ202",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_exactly_or_is_refused(name: str, way: str, tmp_path: Path) -> None:
    code = REFUSED.get((name, way))
    if code is None:
        model = Model(name, WAYS[way](NETWORKS[name](), tmp_path))
        assert differences(model, draw_inputs(model.graph, 6)) == 0
        return
    with pytest.raises(TinyqError) as caught:
        _ = Model(name, WAYS[way](NETWORKS[name](), tmp_path)).graph
    assert {d.code for d in caught.value.diagnostics} == {code}
    assert all(d.node for d in caught.value.diagnostics)


def test_their_c_equals_the_reference(tmp_path: Path) -> None:
    made = {
        name: Model(name, by_tinyq(build(), tmp_path))
        for name, build in NETWORKS.items()
        if (name, "tinyq") not in REFUSED
    }
    assert_c(made, tmp_path, "cortex-m4")
