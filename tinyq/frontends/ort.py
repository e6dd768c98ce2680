"""onnxruntime: the oracle, and the only importer of ``onnxruntime``.

An island's table is what onnxruntime computes for every int8 input: exact by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyq.ir import AnyArray, Node, Value
from tinyq.ops.lowering import Island

_INTEGER_KERNELS = "session.qdqisint8allowed"


def session(model: bytes, optimise: bool = True, integer_kernels: bool = True) -> Any:
    """A quiet single-threaded session on the CPU, from the bytes of a model.

    integer_kernels: run int8 QDQ groups with onnxruntime's integer kernels, its default on Arm.
    Its default on x86 leaves some groups (a Conv before AveragePool, say) in float32, whose
    rounding depends on the order of its sums: there two settings of onnxruntime itself disagree.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry(_INTEGER_KERNELS, "1" if integer_kernels else "0")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class IslandEvaluator:
    """Runs islands as small models of their own; see :data:`tinyq.ops.lowering.Evaluate`."""

    def __init__(self, opset: int) -> None:
        self.opset = opset

    def __call__(self, island: Island, inputs: Sequence[AnyArray], optimise: bool) -> AnyArray:
        """Output integers (int8, re-based) for int8 ``inputs``, one a source."""
        model = _model(island, inputs, self.opset)
        feeds = {f"x{k}": array for k, array in enumerate(inputs)}
        (result,) = session(model, optimise).run(None, feeds)
        return np.asarray(result)


def _model(island: Island, inputs: Sequence[AnyArray], opset: int) -> bytes:
    import onnx
    from onnx import helper

    builder = _Builder()
    for k, (value, source) in enumerate(island.sources.items()):
        builder.dequantize(f"x{k}", source.quant.scale, source.quant.zero_point, value.name)
    for value, constant in island.constants.items():
        builder.constant(value.name, constant.real())
    for node in island.nodes:
        builder.node(node)
    builder.quantize(island)
    graph = helper.make_graph(
        builder.nodes,
        "island",
        [
            helper.make_tensor_value_info(f"x{k}", onnx.TensorProto.INT8, array.shape)
            for k, array in enumerate(inputs)
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT8, None)],
        builder.constants,
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return bytes(model.SerializeToString())


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.known: set[str] = set()

    def constant(self, name: str, array: AnyArray) -> None:
        from onnx import numpy_helper

        if name not in self.known:
            self.known.add(name)
            self.constants.append(numpy_helper.from_array(np.asarray(array), name))

    def _parameters(self, prefix: str, scale: float, zero_point: int) -> list[str]:
        self.constant(f"{prefix}:scale", np.asarray(scale, np.float32))
        self.constant(f"{prefix}:zero", np.asarray(zero_point, np.int8))
        return [f"{prefix}:scale", f"{prefix}:zero"]

    def dequantize(self, source: str, scale: float, zero_point: int, result: str) -> None:
        from onnx import helper

        inputs = [source, *self._parameters(source, scale, zero_point)]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [result]))

    def quantize(self, island: Island) -> None:
        from onnx import helper

        last = island.quantize.input(0).name
        inputs = [last, *self._parameters("y", island.quant.scale, island.quant.zero_point)]
        narrow = island.qmin > -128 or island.qmax < 127
        out = "y:wide" if narrow else "y"
        self.nodes.append(helper.make_node("QuantizeLinear", inputs, [out]))
        if narrow:
            self.constant("y:min", np.asarray(island.qmin, np.int8))
            self.constant("y:max", np.asarray(island.qmax, np.int8))
            self.nodes.append(helper.make_node("Clip", [out, "y:min", "y:max"], ["y"]))

    def node(self, node: Node) -> None:
        from onnx import helper

        for value in node.present_inputs:
            if value.is_constant:
                self.constant(value.name, value.array)
        attributes = {name: _plain(value) for name, value in node.attrs.values.items()}
        self.nodes.append(
            helper.make_node(
                node.op, [_name(v) for v in node.inputs], [v.name for v in node.outputs],
                **attributes,
            )
        )  # fmt: skip


def _name(value: Value | None) -> str:
    return "" if value is None else value.name


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
