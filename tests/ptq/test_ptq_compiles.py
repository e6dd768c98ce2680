"""What the quantizer writes, the compiler reads: no float operator is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ptq_models import mlp, samples, small_cnn

from tinyq.api import CompileOptions, lower_model
from tinyq.ptq import PtqConfig, from_arrays, inputs_of, quantize

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "integer edges": {"io": "integer"},
    "uint8": {"activations": "uint8"},
    "symmetric": {"symmetric": True},
    "per tensor": {"per_channel": False},
    "int16": {"activations": "int16"},
    "int4": {"weights": "int4", "bias_correction": True},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("build", [mlp, small_cnn])
def test_lowers_to_integers(build: Any, name: str, tmp_path: Path) -> None:
    model = build()
    x = samples(64, *inputs_of(model)[0].shape)
    result = quantize(model, from_arrays(inputs_of(model), {"x": x}), PtqConfig(**OPTIONS[name]))
    result.save(tmp_path / "model.onnx")
    graph, _, _ = lower_model(tmp_path / "model.onnx", CompileOptions(target="cortex-m4"))
    types = {v.type.dtype.value for node in graph.nodes for v in node.outputs}
    if name == "int16":
        assert types == {"int16"}
    else:
        assert types <= {"int8", "uint8"}  # uint8 at the edges, where the model has it
