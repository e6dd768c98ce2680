"""Model files that cannot be compiled: the code of each refusal, and every node at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from qdq import Qdq

from tinyq.api import CompileOptions, lower_model
from tinyq.errors import TinyqError


def refused(path: Path, **options: object) -> TinyqError:
    with pytest.raises(TinyqError) as caught:
        lower_model(path, CompileOptions("cortex-m4", **options))  # type: ignore[arg-type]
    return caught.value


def good() -> onnx.ModelProto:
    b = Qdq()
    w = b.weights(np.ones((2, 3, 3, 3)), 0.1)
    return b.end(b.op("Conv", b.x((1, 3, 5, 5)), w)).model()


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {}


def file_case(code: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        FILES[make.__name__] = (make, code)
        return make

    return register


@file_case("TQ101")
def missing(folder: Path) -> Path:
    return folder / "nowhere.onnx"


@file_case("TQ101")
def is_a_folder(folder: Path) -> Path:
    return folder


@file_case("TQ102")
def empty(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(b"")
    return path


@file_case("TQ102")
def text(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_text("This is no network.\n" * 20)
    return path


@file_case("TQ102")
def truncated(folder: Path) -> Path:
    path = saved(good(), folder)
    path.write_bytes(path.read_bytes()[:-37])
    return path


@file_case("TQ104")
def old_opset(folder: Path) -> Path:
    model = good()
    model.opset_import[0].version = 11
    return saved(model, folder)


@file_case("TQ104")
def future_opset(folder: Path) -> Path:
    model = good()
    model.opset_import[0].version = 999
    return saved(model, folder)


@file_case("TQ105")
def external_data_missing(folder: Path) -> Path:
    b = Qdq()
    w = b.weights(np.ones((2, 3, 3, 3)), 0.1)
    model = b.end(b.op("Conv", b.x((1, 3, 5, 5)), w)).model()
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").unlink()
    return path


@file_case("TQ103")
def value_without_source(folder: Path) -> Path:
    model = good()
    model.graph.node[-1].input[0] = "never"
    return saved(model, folder)


@file_case("TQ103")
def shapes_that_disagree(folder: Path) -> Path:
    b = Qdq()
    w = b.weights(np.ones((2, 4, 3, 3)), 0.1)
    return saved(b.end(b.op("Conv", b.x((1, 3, 5, 5)), w)).model(), folder)


@file_case("TQ103")
def sizes_that_disagree(folder: Path) -> Path:
    b = Qdq()
    return saved(
        b.end(b.op("MatMul", b.x((1, 4)), b.weights(np.ones((5, 2)), 0.1))).model(), folder
    )


@file_case("TQ106")
def dynamic_shape(folder: Path) -> Path:
    b = Qdq()
    return saved(b.end(b.op("Relu", b.x(("N", 3, "H", "W")))).model(), folder)


@file_case("TQ106")
def shape_computed_at_run_time(folder: Path) -> Path:
    b = Qdq()
    shape = b.input((2,), "int64")
    return saved(b.end(b.op("Reshape", b.x((1, 12)), shape)).model(), folder)


@file_case("TQ202")
def float_model(folder: Path) -> Path:
    b = Qdq()
    x = b.input((1, 3, 5, 5), "float32")
    b.output(b.op("Relu", b.op("Conv", x, b.const(np.ones((2, 3, 3, 3), np.float32)))))
    return saved(b.model(), folder)


@file_case("TQ202")
def float_in_the_middle(folder: Path) -> Path:
    b = Qdq()
    y = b.op("Conv", b.x((1, 3, 5, 5)), b.weights(np.ones((2, 3, 3, 3)), 0.1))
    return saved(b.end(b.op("GlobalAveragePool", y)).model(), folder)


@file_case("TQ204")
def half_precision(folder: Path) -> Path:
    b = Qdq(opset=21)
    scale = b.const(np.asarray(0.1, np.float16))
    zero = b.const(np.asarray(0, np.int8))
    x = b.op("DequantizeLinear", b.input((1, 9)), scale, zero)
    b.output(b.op("QuantizeLinear", b.op("Relu", x), scale, zero))
    return saved(b.model(), folder)


@file_case("TQ204")
def scale_of_zero(folder: Path) -> Path:
    b = Qdq()
    return saved(b.end(b.op("Relu", b.x((1, 9), 0.0))).model(), folder)


@file_case("TQ204")
def scale_not_a_number(folder: Path) -> Path:
    b = Qdq()
    return saved(b.end(b.op("Relu", b.x((1, 9))), float("nan")).model(), folder)


@file_case("TQ201")
def unknown_operator(folder: Path) -> Path:
    b = Qdq()
    return saved(b.end(b.op("GridThing", b.x((1, 9)), domain="com.microsoft")).model(), folder)


@file_case("TQ201")
def loop(folder: Path) -> Path:
    b = Qdq()
    x = b.x((1, 9))
    body = helper.make_graph([], "body", [], [])
    b.nodes.append(helper.make_node("If", [b.const(np.asarray(True))], ["branch"], name="if",
                                    then_branch=body, else_branch=body))  # fmt: skip
    b.nodes.append(helper.make_node("Add", [x, "branch"], ["sum"], name="sum"))
    return saved(b.end("sum").model(), folder)


@pytest.mark.parametrize("name", FILES)
def test_one_clear_error(name: str, tmp_path: Path) -> None:
    make, code = FILES[name]
    problem = refused(make(tmp_path))
    assert code in {d.code for d in problem.diagnostics}, str(problem)
    assert all(d.remedy or d.info.remedy for d in problem.diagnostics)
    assert problem.exit_status in (3, 4)


def test_every_node_is_reported_at_once(tmp_path: Path) -> None:
    b = Qdq()
    x = b.x((1, 3, 8, 8))
    a = b.op("GlobalLpPool", x, p=2)
    c = b.op("Conv", x, b.const(np.ones((2, 3, 3, 3), np.float32)))
    d = b.op("LpNormalization", b.qdq(b.op("Relu", x), 0.1), axis=1)
    for value in (a, c, d):
        b.end(value)
    problem = refused(saved(b.model(), tmp_path))
    found = {(d.operator, d.code) for d in problem.diagnostics}
    wanted = {("GlobalLpPool", "TQ201"), ("Conv", "TQ202"), ("LpNormalization", "TQ201")}
    assert wanted <= found, str(problem)


def test_a_shape_that_is_given_is_taken(tmp_path: Path) -> None:
    path = dynamic_shape(tmp_path)
    graph, _, _ = lower_model(path, CompileOptions("cortex-m4", shapes={"x1": (1, 3, 4, 5)}))
    assert graph.inputs[0].type.shape == (1, 3, 4, 5)


def test_a_shape_of_no_input_is_refused(tmp_path: Path) -> None:
    problem = refused(saved(good(), tmp_path), shapes={"nothing": (1,)})
    assert [d.code for d in problem.diagnostics] == ["TQ107"]


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    model = good()
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    graph, _, proto = lower_model(path, CompileOptions("cortex-m4"))
    assert any(node.op == "conv2d" for node in graph.nodes)
    stored = onnx.load_from_string(proto).graph.initializer
    assert all(numpy_helper.to_array(tensor).size for tensor in stored)
