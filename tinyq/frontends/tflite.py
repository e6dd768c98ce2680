"""Reads a TensorFlow Lite file and writes it as ONNX in QDQ form: one network, two notations.

TensorFlow's own schema module parses the file (the extra ``tinyq[tflite]``). Each operator becomes
DequantizeLinear, the float operator and QuantizeLinear, or, where it only moves data, the same move
of integers; tensors keep their names, so that everything after this reads them as those of the
file. Layout: activations stay NHWC between operators, transposes surround what ONNX has in NCHW.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyq.errors import Diagnostic, TinyqError, error
from tinyq.ir import AnyArray, DType, QuantParams

if TYPE_CHECKING:
    import onnx

_MAGIC = b"TFL3"
_QUANTIZE_REMEDY = (
    "Convert it quantized: set converter.optimizations, a representative_dataset and "
    "target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]."
)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file. ``name`` is unique; ``data`` is set for constants."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: QuantParams | None
    data: AnyArray | None

    @property
    def is_float(self) -> bool:
        """Whether its elements are real numbers."""
        return self.dtype.startswith("float")

    @property
    def parameters(self) -> QuantParams:
        """Its quantization; TQ204 without one."""
        if self.quant is None:
            raise error("TQ204", f"the tensor '{self.name}' ({self.dtype}) has no scale")
        return self.quant

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer of its type."""
        return DType(self.dtype).limits


@dataclass(frozen=True, eq=False)
class Operation:
    """An operator of the file; an omitted input is None. ``options`` is the schema's table."""

    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any
    source: Any

    @property
    def name(self) -> str:
        """Named after its first output."""
        return self.outputs[0].name

    def input(self, index: int) -> Tensor:
        """Input ``index``; TQ109 when it is omitted."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        if tensor is None:
            raise error("TQ109", f"input {index} is missing", node=self.name, operator=self.op)
        return tensor

    def optional(self, index: int) -> Tensor | None:
        """Input ``index`` or None."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> AnyArray:
        """Data of a constant input; TQ203 when it is computed."""
        tensor = self.input(index)
        if tensor.data is None:
            raise error(
                "TQ203", f"its input '{tensor.name}' is not a constant",
                node=self.name, operator=self.op,
            )  # fmt: skip
        return tensor.data

    def option(self, name: str, default: Any = 0) -> Any:
        """An attribute of the operator."""
        return getattr(self.options, name, default) if self.options is not None else default


@dataclass(frozen=True, eq=False)
class TfliteModel:
    """A parsed file: its bytes, the schema's objects, and tensors under unique names."""

    raw: bytes
    parsed: Any
    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    file: str

    @cached_property
    def producer(self) -> dict[str, Operation]:
        """The operation that computes each tensor, by the tensor's name."""
        return {tensor.name: op for op in self.operations for tensor in op.outputs}


def tensorflow() -> Any:
    """The package, quietly; TQ108 when it is not installed."""
    import os

    # Quiet, and without oneDNN, whose float sums depend on the host.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError:
        raise error("TQ108", "tensorflow is not installed") from None
    return tf


def schema() -> Any:
    """TensorFlow's module of the file format."""
    tensorflow()
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def load_tflite(path: Path) -> TfliteModel:
    """Read and parse a .tflite file. Raises TQ101, TQ102, TQ108 and TQ109."""
    name = str(path)
    try:
        raw = path.read_bytes()
    except OSError as reason:
        raise error("TQ101", str(reason.strerror).lower(), file=name) from None
    return parse_tflite(raw, name)


def parse_tflite(raw: bytes, file: str = "") -> TfliteModel:
    """The model in the bytes of a .tflite file."""
    if raw[4:8] != _MAGIC:
        raise error("TQ102", f"{len(raw)} bytes that are not TensorFlow Lite", file=file)
    s = schema()
    try:
        parsed = s.ModelT.InitFromObj(s.Model.GetRootAs(raw, 0))
    except Exception:
        raise error("TQ102", "the file is truncated or damaged", file=file) from None
    if not parsed.subgraphs:
        raise error("TQ109", "the file holds no graph", file=file)
    graph = parsed.subgraphs[0]
    tensors = _tensors(s, parsed, graph)
    codes = {code: name for name, code in vars(s.BuiltinOperator).items() if isinstance(code, int)}
    operations = tuple(_operation(parsed, o, tensors, codes) for o in graph.operators)
    inputs, outputs = (tuple(tensors[i] for i in part) for part in (graph.inputs, graph.outputs))
    return TfliteModel(raw, parsed, tensors, operations, inputs, outputs, file)


def _tensors(s: Any, parsed: Any, graph: Any) -> tuple[Tensor, ...]:
    types = {
        code: name.lower() for name, code in vars(s.TensorType).items() if isinstance(code, int)
    }
    names = [(t.name or b"tensor").decode("utf-8", "replace") for t in graph.tensors]
    counts = Counter(names)
    made = []
    for index, t in enumerate(graph.tensors):
        name = names[index] if counts[names[index]] == 1 else f"{names[index]}:{index}"
        dtype = types.get(t.type, "unknown")
        shape = tuple(int(d) for d in (t.shape if t.shape is not None else ()))
        made.append(Tensor(index, name, shape, dtype, _quant(t), _data(parsed, t, dtype, shape)))
    return tuple(made)


def _quant(tensor: Any) -> QuantParams | None:
    q = tensor.quantization
    if q is None or q.scale is None or not len(q.scale):
        return None
    scales = tuple(float(v) for v in q.scale)
    zeros = tuple(int(v) for v in (q.zeroPoint if q.zeroPoint is not None else ()))
    if len(zeros) != len(scales):
        zeros = (zeros or (0,)) * (len(scales) if len(zeros) <= 1 else 1)
    return QuantParams(scales, zeros, int(q.quantizedDimension) if len(scales) > 1 else None)


def _data(parsed: Any, tensor: Any, dtype: str, shape: tuple[int, ...]) -> AnyArray | None:
    if tensor.buffer <= 0 or tensor.buffer >= len(parsed.buffers):
        return None
    raw = parsed.buffers[tensor.buffer].data
    if raw is None or not len(raw):
        return None
    data = np.frombuffer(bytes(raw), np.uint8)
    if dtype == "int4":
        pairs = np.stack([data & 15, data >> 4], axis=1).reshape(-1)
        return ((pairs.astype(np.int8) ^ 8) - 8)[: int(np.prod(shape))].reshape(shape)
    try:
        return data.view(np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)
    except (TypeError, ValueError):
        return None


def _operation(
    parsed: Any, o: Any, tensors: tuple[Tensor, ...], codes: dict[int, str]
) -> Operation:
    code = parsed.operatorCodes[o.opcodeIndex]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    op = codes.get(builtin, str(builtin))
    if op == "CUSTOM" and code.customCode:
        op = f"CUSTOM {code.customCode.decode('utf-8', 'replace')}"
    inputs = o.inputs if o.inputs is not None else ()
    return Operation(
        op,
        tuple(tensors[i] if i >= 0 else None for i in inputs),
        tuple(tensors[i] for i in o.outputs),
        o.builtinOptions,
        o,
    )


def to_onnx(model: TfliteModel) -> onnx.ModelProto:
    """The network as ONNX in QDQ form, tensors by their names.

    Raises TinyqError with one diagnostic for every operator that cannot be compiled.
    """
    from tinyq.frontends.tflite_nodes import OnnxWriter
    from tinyq.frontends.tflite_rules import RULES

    _refuse(model, frozenset(RULES))
    writer = OnnxWriter(model)
    problems: list[Diagnostic] = []
    for operation in model.operations:
        try:
            RULES[operation.op](writer, operation)
        except TinyqError as problem:
            problems += [_located(d, operation, model.file) for d in problem.diagnostics]
    if problems:
        raise TinyqError(dict.fromkeys(problems))
    return writer.model_proto()


def _refuse(model: TfliteModel, known: frozenset[str]) -> None:
    """Raise with every operator that is unknown or computes in float."""
    problems = []
    for op in model.operations:
        if op.op not in known:
            problems.append(
                Diagnostic("TQ201", f"{op.op} has no integer form", "", op.name, op.op, model.file)
            )
        elif op.op not in ("QUANTIZE", "DEQUANTIZE"):
            real = next((t for t in (*op.inputs[:1], *op.outputs) if t and t.is_float), None)
            if real is not None:
                problems.append(
                    Diagnostic(
                        "TQ202", f"the tensor '{real.name}' is {real.dtype}", _QUANTIZE_REMEDY,
                        op.name, op.op, model.file,
                    )
                )  # fmt: skip
    if problems:
        raise TinyqError(problems)


def _located(diagnostic: Diagnostic, operation: Operation, file: str) -> Diagnostic:
    d = diagnostic
    return Diagnostic(
        d.code, d.found, d.remedy, d.node or operation.name, d.operator or operation.op, file
    )
