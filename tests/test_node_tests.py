"""The quantized-operator node tests of the onnx package, through compilation and C on this machine.

Scales, zero points and weights become initializers, since a compiler needs them. A test that cannot
be compiled is listed in docs/node-tests.md with its reason, and that list is exact.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from agreement import Model
from codegen.host import WARNINGS, Instance, write
from onnx import numpy_helper

from tinyq.codegen import GenerateOptions, generate
from tinyq.errors import TinyqError
from tinyq.ir import AnyArray
from tinyq.plan import plan
from tinyq.select import Goal, select
from tinyq.target import load_core

OPERATORS = (
    "qlinearconv", "qlinearmatmul", "quantizelinear", "dequantizelinear", "convinteger",
    "matmulinteger", "dynamicquantizelinear",
)  # fmt: skip
COMPUTED = {"x", "a", "A"}
LIST = Path(__file__).parents[1] / "docs" / "node-tests.md"


@dataclass(frozen=True, eq=False)
class NodeTest:
    model: onnx.ModelProto
    inputs: dict[str, AnyArray]
    outputs: tuple[AnyArray, ...]


def collect() -> dict[str, NodeTest]:
    """Tests by name; two activations of a matrix product stay inputs when the second has 3 axes."""
    import onnx.backend.test.case.node as cases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator in OPERATORS:
            importlib.import_module(f"onnx.backend.test.case.node.{operator}")
    found = {}
    for case in cases._NodeTestCases:
        if any(case.name.startswith(f"test_{operator}") for operator in OPERATORS):
            found[case.name] = freeze(case)
    return found


def freeze(case: object) -> NodeTest:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)  # type: ignore[attr-defined]
    arrays, wanted = case.data_sets[0]  # type: ignore[attr-defined]
    computed = {}
    kept = []
    for info, array in zip(list(model.graph.input), arrays, strict=True):
        if info.name in COMPUTED or (info.name == "b" and np.ndim(array) > 2):
            computed[info.name] = np.asarray(array)
            kept.append(info)
        else:
            proto = array if isinstance(array, onnx.TensorProto) else numpy_helper.from_array(array)
            proto.name = info.name
            model.graph.initializer.append(proto)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    # The operators are those of opset 13 and later; the cases name the opset that introduced them.
    model.opset_import[0].version = max(13, model.opset_import[0].version)
    return NodeTest(model, computed, tuple(np.asarray(w) for w in wanted))


TESTS = collect()


def listed() -> dict[str, str]:
    """Names and codes of the table of tests that are not compiled."""
    rows = re.findall(r"^\| `(test_\w+)` \| (TQ\d+) \|", LIST.read_text(), re.MULTILINE)
    return dict(rows)


def refusal(test: NodeTest) -> str:
    """The code with which compiling is refused, or nothing."""
    try:
        _ = Model("node", test.model).graph
    except TinyqError as problem:
        return problem.diagnostics[0].code
    return ""


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    return {name: code for name, test in TESTS.items() if (code := refusal(test))}


def test_the_list_of_refused_tests_is_exact(refused: dict[str, str]) -> None:
    assert refused == listed()


EDGES = """
#include "{name}.h"
void quantize_edge(const float *x, void *y);
void dequantize_edge(const void *x, float *y);
void quantize_edge(const float *x, void *y) {{ {quantize} }}
void dequantize_edge(const void *x, float *y) {{ {dequantize} }}
"""


def build(name: str, model: Model, folder: Path) -> Instance:
    """The network with float edges, and two functions that call them."""
    schedule = select(model.graph, load_core("cortex-m4"), Goal("balanced"))
    program = generate(schedule, plan(schedule), name, GenerateOptions(io="float"))
    write(program, folder)
    header = program.files[f"{name}.h"].decode()
    calls = {}
    for edge, wanted in (("quantize", "quantize_input_0"), ("dequantize", "dequantize_output_0")):
        present = f"{name}_{wanted}(" in header
        calls[edge] = f"{name}_{wanted}(x, y);" if present else "(void)x; (void)y;"
    (folder / "edges.c").write_text(EDGES.format(name=name, **calls))
    library = folder / "lib.so"
    sources = [str(path) for path in sorted(folder.glob("*.c"))]
    command = ["gcc", *WARNINGS, "-O0", "-fPIC", "-shared", *sources, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Instance(library, program)


@pytest.mark.parametrize("name", TESTS)
def test_node(name: str, refused: dict[str, str], tmp_path: Path) -> None:
    if name in refused:
        return  # Its refusal is what test_the_list_of_refused_tests_is_exact checks.
    test = TESTS[name]
    model = Model("node", test.model)
    instance = build("node", model, tmp_path)
    arrays = []
    for value in model.graph.inputs:
        array = test.inputs[value.name]
        if array.dtype == np.float32:
            real, array = np.ascontiguousarray(array), np.zeros(array.shape, value.type.dtype.numpy)
            instance.lib.quantize_edge(
                real.ctypes.data_as(ctypes.c_void_p), array.ctypes.data_as(ctypes.c_void_p)
            )
        arrays.append(array)
    results = instance.run(*arrays)
    for result, wanted in zip(results, test.outputs, strict=True):
        got = result
        if wanted.dtype == np.float32 and result.dtype != np.float32:
            got = np.zeros(wanted.shape, np.float32)
            instance.lib.dequantize_edge(
                result.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p)
            )
        assert got.dtype == wanted.dtype
        assert np.array_equal(got, wanted)
