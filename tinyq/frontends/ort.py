"""onnxruntime: the oracle, and the only importer of ``onnxruntime``.

An island's table is what onnxruntime computes for every int8 input: exact by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyq.ir import AnyArray, DType, Node, Value
from tinyq.ops.lowering import Island, QuantizedConstant

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
        """Output integers (int8, re-based, or int16) for ``inputs`` of such types, one a source."""
        stored = [
            _stored(array, source.stored)
            for array, source in zip(inputs, island.sources.values(), strict=True)
        ]
        model = _model(island, stored, self.opset)
        feeds = {f"x{k}": array for k, array in enumerate(stored)}
        (result,) = session(model, optimise).run(None, feeds)
        if island.stored is DType.INT16:  # Clip takes no int16
            return np.asarray(np.clip(result, island.qmin, island.qmax), np.int16)
        return _rebased(np.asarray(result))


def _stored(array: AnyArray, dtype: DType) -> AnyArray:
    """int8 integers of the compiler as the model has them."""
    if dtype is not DType.UINT8:
        return array
    return (array.astype(np.int16) + 128).astype(np.uint8)


def _rebased(array: AnyArray) -> AnyArray:
    if array.dtype != np.uint8:
        return array
    return (array.astype(np.int16) - 128).astype(np.int8)


def _model(island: Island, inputs: Sequence[AnyArray], opset: int) -> bytes:
    from onnx import helper

    builder = _Builder()
    for k, (value, source) in enumerate(island.sources.items()):
        quant, shift = source.quant, _shift(source.stored)
        zero = np.asarray(quant.zero_point + shift, source.stored.numpy)
        builder.dequantize(f"x{k}", np.asarray(quant.scale, np.float32), zero, value.name)
    for value, constant in island.constants.items():
        builder.quantized(value.name, constant)
    for node in island.nodes:
        builder.node(node)
    builder.quantize(island)
    graph = helper.make_graph(
        builder.nodes,
        "island",
        [
            helper.make_tensor_value_info(
                f"x{k}", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for k, array in enumerate(inputs)
        ],
        [helper.make_empty_tensor_value_info("y")],
        builder.constants,
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return bytes(model.SerializeToString())


def _shift(stored: DType) -> int:
    return 128 if stored is DType.UINT8 else 0


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

    def _parameters(self, prefix: str, scale: AnyArray, zero_point: AnyArray) -> list[str]:
        self.constant(f"{prefix}:scale", scale)
        self.constant(f"{prefix}:zero", zero_point)
        return [f"{prefix}:scale", f"{prefix}:zero"]

    def dequantize(
        self, source: str, scale: AnyArray, zero_point: AnyArray, result: str, axis: int = 1
    ) -> None:
        from onnx import helper

        inputs = [source, *self._parameters(source, scale, zero_point)]
        attributes = {"axis": axis} if scale.ndim else {}
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [result], **attributes))

    def quantized(self, name: str, constant: QuantizedConstant) -> None:
        """A constant as the model has it: integers, so that integer kernels take it."""
        quant, dtype = constant.quant, constant.dtype.numpy
        self.constant(f"{name}:int", constant.integers.astype(dtype))
        zeros, scales = np.asarray(quant.zero_points, dtype), quant.scale_array()
        if quant.axis is None:
            scales, zeros = scales.reshape(()), zeros.reshape(())
        self.dequantize(f"{name}:int", scales, zeros, name, quant.axis or 0)

    def quantize(self, island: Island) -> None:
        from onnx import helper

        last = island.quantize.input(0).name
        stored = island.stored
        shift = _shift(stored)
        zero = np.asarray(island.quant.zero_point + shift, stored.numpy)
        scale = np.asarray(island.quant.scale, np.float32)
        inputs = [last, *self._parameters("y", scale, zero)]
        limits = (island.qmin + shift, island.qmax + shift)
        narrow = limits != stored.limits and stored is not DType.INT16
        out = "y:wide" if narrow else "y"
        self.nodes.append(helper.make_node("QuantizeLinear", inputs, [out]))
        if narrow:
            self.constant("y:min", np.asarray(limits[0], stored.numpy))
            self.constant("y:max", np.asarray(limits[1], stored.numpy))
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
