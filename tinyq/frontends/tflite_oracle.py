"""TensorFlow Lite's reference kernels as an oracle: whole models, and single operators.

The interpreter runs with ``BUILTIN_REF``: no delegate, no optimised kernels, so that the result is
the one that the reference source defines on every machine.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyq.errors import error
from tinyq.frontends.tflite import Operation, Tensor, TfliteModel, schema, tensorflow
from tinyq.ir import AnyArray, Graph, Value
from tinyq.ops.lowering import Island

ELEMENTWISE = frozenset(
    {
        "ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "LOGISTIC", "TANH", "RELU", "RELU6",
        "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "PRELU", "HARD_SWISH", "QUANTIZE",
    }
)  # fmt: skip
"""Operators that the interpreter can be asked for element by element."""


def interpreter(model: bytes, preserve: bool = False) -> Any:
    """An interpreter of the reference kernels; ``preserve`` keeps intermediate tensors readable."""
    lite = tensorflow().lite
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lite.Interpreter(
            model_content=model,
            experimental_op_resolver_type=lite.experimental.OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=preserve,
            num_threads=1,
        )


@dataclass(frozen=True, eq=False)
class TfliteOracle:
    """Runs the file; ``graph`` is its integer graph, whose edges say what is compared.

    Integers in and out in the model's own shapes. Float inputs are fed the reals of the integers,
    float outputs are read before their last DEQUANTIZE.
    """

    model: TfliteModel
    graph: Graph
    expose: tuple[str, ...] = ()
    _state: dict[str, Any] = field(default_factory=dict)

    def run(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Integer outputs of one inference, in the graph's order."""
        runner = self._invoke(inputs)
        return tuple(_read(runner, self._integers(t)) for t in self.model.outputs)

    def run_exposed(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """The exposed intermediate tensors by name, those that the file has."""
        runner = self._invoke(inputs)
        known = {t.name: t for t in self.model.tensors}
        return {name: _read(runner, known[name]) for name in self.expose if name in known}

    def _invoke(self, inputs: Mapping[str, AnyArray]) -> Any:
        if "runner" not in self._state:
            self._state["runner"] = interpreter(self.model.raw, preserve=True)
            self._state["runner"].allocate_tensors()
        runner = self._state["runner"]
        values = {value.name: value for value in self.graph.inputs}
        for tensor in self.model.inputs:
            array = inputs[tensor.name].reshape(tensor.shape)
            if tensor.is_float:
                array = _reals(values[tensor.name], array)
            runner.set_tensor(tensor.index, array)
        runner.invoke()
        return runner

    def _integers(self, tensor: Tensor) -> Tensor:
        operation = self.model.producer.get(tensor.name)
        stripped = operation is not None and operation.op == "DEQUANTIZE"
        return operation.input(0) if stripped and operation is not None else tensor


def _read(runner: Any, tensor: Tensor) -> AnyArray:
    return np.asarray(runner.get_tensor(tensor.index))


def _reals(value: Value, array: AnyArray) -> AnyArray:
    quant = value.type.quant
    if quant is None:
        raise ValueError(f"float input '{value.name}' without quantization")
    centred = array.astype(np.float32) - np.float32(quant.zero_point)
    return np.asarray(centred * np.float32(quant.scale), np.float32)


class TfliteEvaluator:
    """Runs islands as operators of the file; see :data:`tinyq.ops.lowering.Evaluate`."""

    def __init__(self, model: TfliteModel) -> None:
        self.model = model

    def __call__(self, island: Island, inputs: Sequence[AnyArray], optimise: bool) -> AnyArray:
        """Output integers (int8, re-based) for int8 ``inputs``, one a source."""
        operation = self.model.producer.get(island.quantize.output.name)
        if operation is None or operation.op not in ELEMENTWISE:
            return self._clamp(island, inputs)
        feeds = _feeds(operation, inputs)
        shape = np.broadcast_shapes(*(a.shape for a in inputs))
        result = _run_one(self.model, operation, feeds, shape)
        return _rebased(result).reshape(shape)

    def _clamp(self, island: Island, inputs: Sequence[AnyArray]) -> AnyArray:
        """A fused activation after an operator that only moves data: the grid stays."""
        (source,) = island.sources.values()
        if island.nodes or source.quant != island.quant:
            raise error(
                "TQ203",
                "a tensor is requantized inside an operator that moves data",
                "Give its inputs and output one scale and zero point, or use --oracle ort.",
                node=island.name,
                operator="TFLite",
            )
        return np.clip(inputs[0], island.qmin, island.qmax).astype(np.int8)


def _feeds(operation: Operation, inputs: Sequence[AnyArray]) -> dict[int, AnyArray]:
    """The stored integers to feed, by index among the operation's inputs."""
    computed = [
        k
        for k, tensor in enumerate(operation.inputs)
        if tensor is not None and (tensor.data is None or len(inputs) > 1)
    ]
    names = [operation.input(k).name for k in computed]
    distinct = list(dict.fromkeys(names))
    if len(distinct) != len(inputs):
        raise AssertionError(f"{len(inputs)} operands for {operation.op} of {len(distinct)}")
    order = dict(zip(distinct, inputs, strict=True))
    return {
        k: _stored(order[name], operation.input(k).dtype)
        for k, name in zip(computed, names, strict=True)
    }


def _stored(array: AnyArray, dtype: str) -> AnyArray:
    return (array.astype(np.int16) + 128).astype(np.uint8) if dtype == "uint8" else array


def _rebased(array: AnyArray) -> AnyArray:
    return (array.astype(np.int16) - 128).astype(np.int8) if array.dtype == np.uint8 else array


def _run_one(
    model: TfliteModel,
    operation: Operation,
    feeds: Mapping[int, AnyArray],
    shape: tuple[int, ...],
) -> AnyArray:
    """The operation by itself: ``feeds`` are its inputs by index, ``shape`` is its output's."""
    s = schema()
    graph = model.parsed.subgraphs[0]
    single = s.ModelT()
    single.version, single.description = 3, b"one operator"
    single.buffers = [s.BufferT()]
    single.operatorCodes = [model.parsed.operatorCodes[operation.source.opcodeIndex]]
    part, call = s.SubGraphT(), copy.copy(operation.source)
    part.tensors, part.inputs, part.outputs = [], [], []
    shared: dict[str, int] = {}
    call.opcodeIndex, call.intermediates, indices = 0, None, []
    for k, tensor in enumerate(operation.inputs):
        if tensor is None:
            indices.append(-1)
            continue
        if tensor.name not in shared:
            shared[tensor.name] = len(part.tensors)
            fed = feeds.get(k)
            made = copy.copy(graph.tensors[tensor.index])
            made.shapeSignature, made.buffer = None, 0
            if fed is not None:
                made.shape = list(fed.shape)
                part.inputs.append(len(part.tensors))
            else:
                buffer = s.BufferT()
                buffer.data = model.parsed.buffers[graph.tensors[tensor.index].buffer].data
                made.buffer = len(single.buffers)
                single.buffers.append(buffer)
            part.tensors.append(made)
        indices.append(shared[tensor.name])
    output = copy.copy(graph.tensors[operation.outputs[0].index])
    output.shape, output.shapeSignature, output.buffer = list(shape), None, 0
    part.outputs = [len(part.tensors)]
    part.tensors.append(output)
    call.inputs, call.outputs = indices, part.outputs
    part.operators = [call]
    single.subgraphs = [part]
    runner = interpreter(pack(single))
    runner.allocate_tensors()
    for k, array in feeds.items():
        runner.set_tensor(indices[k], array)
    runner.invoke()
    return np.asarray(runner.get_tensor(part.outputs[0]))


def pack(model: Any) -> bytes:
    """A .tflite file of the schema's objects."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
