"""The operators' tables on an emulated core, all in one firmware.

The oracle is the integer reference, which the tables' own tests compare with onnxruntime.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import test_conv
import test_conv_transpose
import test_dense
import test_elementwise
import test_int16
import test_lookup
import test_movement
import test_pools
from agreement import Model, draw_inputs
from onnx import helper
from qdq import Qdq

from tinyq.build import load_network
from tinyq.codegen import GenerateOptions, generate, write_program
from tinyq.emulate.network import run_network
from tinyq.plan import plan
from tinyq.select import Goal, select
from tinyq.target import load_core

TABLES = (
    test_conv.MODELS, test_conv_transpose.MODELS, test_dense.MODELS, test_elementwise.MODELS,
    test_int16.MODELS, test_lookup.MODELS, test_movement.MODELS, test_pools.MODELS,
)  # fmt: skip
EMULATED = (
    ("cortex-m4", "ort"), ("cortex-m3", "ort"), ("cortex-m55", "ort"), ("cortex-m4", "cmsis-nn"),
    ("cortex-m3", "tflite"),
)  # fmt: skip
DRAWS = 4
LONG_SOFTMAX = "softmax_many"


def arg_max() -> Qdq:
    b = Qdq()
    b.output(b.op("ArgMax", b.input((1, 3, 7)), axis=2, keepdims=0))
    return b


BILINEAR: tuple[dict[str, Any], ...] = (
    {"sizes": (1, 3, 8, 10)},
    {"sizes": (1, 3, 3, 2)},
    {"sizes": (1, 3, 7, 9), "coordinate_transformation_mode": "align_corners"},
    {"sizes": (1, 3, 6, 5), "coordinate_transformation_mode": "asymmetric"},
)


def bilinear(sizes: tuple[int, ...], **attributes: str) -> Qdq:
    """What only the oracle tflite knows."""
    b = Qdq()
    x, wanted = b.x((1, 3, 4, 5), 0.05, 3), b.const(np.array(sizes, np.int64))
    return b.end(b.op("Resize", x, "", "", wanted, mode="linear", **attributes), 0.05, 3)


@cache
def everything(arithmetic: str) -> Model:
    """All models of the tables as one, their names kept apart.

    Two roundings are for 8 bits alone, and for softmax over at most 511 elements (TQ206).
    """
    tables = [t for t in TABLES if arithmetic == "ort" or t is not test_int16.MODELS]
    if arithmetic == "tflite":  # products have the arithmetic of cmsis-nn
        tables = [test_pools.MODELS]
    parts = [
        model.proto
        for models in tables
        for name, model in models.items()
        if arithmetic == "ort" or name != LONG_SOFTMAX
        if arithmetic != "tflite" or not name.startswith("softmax")  # TQ203: other scales
    ]
    parts.append(arg_max().model())
    if arithmetic == "tflite":
        parts += [bilinear(**resize).model() for resize in BILINEAR]
    graphs = [onnx.compose.add_prefix(part, f"m{k}_").graph for k, part in enumerate(parts)]
    whole = helper.make_graph(
        [node for g in graphs for node in g.node],
        "tables",
        [value for g in graphs for value in g.input],
        [value for g in graphs for value in g.output],
        [value for g in graphs for value in g.initializer],
    )
    opset = max(i.version for part in parts for i in part.opset_import if not i.domain)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(whole, opset_imports=imports, ir_version=10)
    return Model("tables", proto, arithmetic)


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("target", "arithmetic"),
    EMULATED,
)
def test_tables(target: str, arithmetic: str, tmp_path: Path) -> None:
    model = everything(arithmetic)
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    chosen = select(model.graph, load_core(target), Goal.SPEED)
    options = GenerateOptions(model=model.proto.SerializeToString())
    write_program(generate(chosen, plan(chosen), "tables", options), tmp_path / "tables")
    graph = model.graph
    drawn = draw_inputs(graph, DRAWS)
    inputs = [np.stack([x[value.name] for x in drawn]) for value in graph.inputs]
    trace = run_network(load_network(tmp_path / "tables"), inputs).trace
    for k, x in enumerate(drawn):
        wanted = model.reference(x)
        wrong = [
            value.name
            for value, got, y in zip(graph.outputs, trace.outputs, wanted, strict=True)
            if not np.array_equal(got[k].reshape(y.shape), y)
        ]
        assert wrong == []
