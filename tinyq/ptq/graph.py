"""A float ONNX graph that can be rewritten: nodes, numpy initialisers, types and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from tinyq.errors import Diagnostic, TinyqError, error
from tinyq.ptq.data import InputInfo

FLOAT = onnx.TensorProto.FLOAT
_OTHER_FLOATS = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
_QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv",
                  "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm")  # fmt: skip
MIN_OPSET = 13
INT16_OPSET = 21


@dataclass
class Graph:
    """A working copy of a model's graph. Nodes are in topological order.

    ``batchnorm`` keeps, for a tensor that came out of a folded BatchNorm, the mean and standard
    deviation that its channels had in training ([C] each): what DFQ works with.
    """

    nodes: list[onnx.NodeProto]
    initializers: dict[str, npt.NDArray[Any]]
    inputs: list[onnx.ValueInfoProto]
    outputs: list[onnx.ValueInfoProto]
    opset: int
    ir_version: int
    name: str
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    batchnorm: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = field(
        default_factory=dict
    )

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.outputs]

    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """Tensor name to the nodes that read it, in order (a node twice if it reads it twice)."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def producers(self) -> dict[str, onnx.NodeProto]:
        """Tensor name to the node that writes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    def is_float(self, tensor: str) -> bool:
        """Whether the tensor holds float32 values."""
        if tensor in self.initializers:
            return bool(self.initializers[tensor].dtype == np.float32)
        return bool(self.types.get(tensor, FLOAT) == FLOAT)

    def rank(self, tensor: str) -> int | None:
        """Number of dimensions, or None if inference could not tell."""
        shape = self.shapes.get(tensor)
        return None if shape is None else len(shape)

    def infer(self) -> None:
        """Renew ``shapes`` and ``types`` by ONNX shape inference."""
        try:
            model = shape_inference.infer_shapes(self.to_model(), data_prop=True)
        except shape_inference.InferenceError as exc:
            raise error("TQ103", f"shape inference failed: {exc}") from exc
        graph = model.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.shapes[value.name] = tuple(
                    d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
                )

    def drop_unused(self) -> None:
        """Remove nodes and initialisers that no output depends on."""
        needed = set(self.output_names)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.initializers = {k: v for k, v in self.initializers.items() if k in needed}

    def to_model(self, outputs: list[str] | None = None) -> onnx.ModelProto:
        """The graph as a model; ``outputs`` exposes these float tensors instead of its own."""
        values = self.outputs
        if outputs is not None:
            values = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
        graph = helper.make_graph(
            self.nodes, self.name, self.inputs, values,
            [numpy_helper.from_array(np.asarray(v), k) for k, v in self.initializers.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name, as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def read_model(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Load and check a model.

    Raises:
        TinyqError: TQ101 to TQ105.
    """
    if isinstance(model, onnx.ModelProto):
        loaded, file = model, ""
    else:
        loaded, file = _load(Path(model)), str(model)
    try:
        onnx.checker.check_model(loaded)
    except onnx.checker.ValidationError as exc:
        raise error("TQ103", str(exc).strip().split("\n")[0], file=file) from exc
    return loaded


def _load(path: Path) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise error("TQ101", "no such file", file=str(path))
    if path.suffix == ".tflite":
        raise error(
            "TQ102", "a TensorFlow Lite file",
            "Convert the float network to ONNX, with tf2onnx for example; a quantized one compiles "
            "as it is.",
            file=str(path),
        )  # fmt: skip
    try:
        loaded = onnx.load(path)
    except DecodeError as exc:
        raise error("TQ102", "its bytes are not an ONNX model", file=str(path)) from exc
    except FileNotFoundError as exc:
        raise error("TQ105", str(exc), file=str(path)) from exc
    except onnx.checker.ValidationError as exc:
        raise error("TQ105", str(exc).split("\n")[0], file=str(path)) from exc
    if not loaded.graph.node:
        raise error("TQ102", "it holds no graph", file=str(path))
    return loaded


def is_float(model: onnx.ModelProto) -> bool:
    """Whether a model takes floats and holds no quantized operator, inside functions either."""
    nodes = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in constants]
    return any(v.type.tensor_type.elem_type == FLOAT for v in inputs) and not any(
        node.op_type in _QUANTIZED_OPS or node.op_type.startswith("QLinear") for node in nodes
    )


def with_shapes(
    model: str | Path | onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """A copy whose inputs have these shapes, of a model with dynamic ones.

    Raises:
        TinyqError: TQ101 to TQ105; TQ107 for an unknown input or another rank.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(read_model(model))
    inputs = {value.name: value for value in fixed.graph.input}
    for name, shape in shapes.items():
        if name not in inputs:
            raise error("TQ107", f"'{name}'; the inputs are {', '.join(inputs)}")
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(shape):
            raise error("TQ107", f"{list(shape)} for '{name}', which has {len(dims)} dimensions")
        for dim, size in zip(dims, shape, strict=True):
            dim.dim_value = size
    # What was inferred for the dynamic shapes is inferred again.
    del fixed.graph.value_info[:]
    return fixed


def at_opset(model: onnx.ModelProto, lowest: int) -> onnx.ModelProto:
    """``model`` converted to opset ``lowest`` if it has an older one (TQ104 if that fails)."""
    opset = _opset(model)
    if opset >= lowest:
        return model
    try:
        return onnx.version_converter.convert_version(model, lowest)
    except Exception as exc:
        # The converter is C++ and raises RuntimeError or its own type, by the fault's kind.
        raise error("TQ104", f"opset {opset} cannot be converted to {lowest}: {exc}") from exc


def _opset(model: onnx.ModelProto) -> int:
    return int(next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1))


def graph_of(model: onnx.ModelProto) -> Graph:
    """A working copy of a float model.

    Raises:
        TinyqError: TQ106 dynamic shapes, TQ601 subgraphs and foreign domains, TQ602 quantized,
            TQ603 weights not finite, TQ608 other float types.
    """
    source = model.graph
    initializers = {t.name: numpy_helper.to_array(t) for t in source.initializer}
    graph = Graph(
        nodes=[_copy(node) for node in source.node],
        initializers=initializers,
        inputs=[value for value in source.input if value.name not in initializers],
        outputs=list(source.output),
        opset=_opset(model),
        ir_version=max(model.ir_version, 8),
        name=source.name or "model",
    )
    _refuse(graph)
    _name_nodes(graph)
    graph.infer()
    model_inputs(graph)
    return graph


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _refuse(graph: Graph) -> None:
    found = [
        Diagnostic("TQ602", "the model holds a quantized operator", node=n.name, operator=n.op_type)
        for n in graph.nodes
        if n.op_type in _QUANTIZED_OPS
    ][:1]
    found += [
        Diagnostic("TQ608", f"input '{v.name}' is {_OTHER_FLOATS[v.type.tensor_type.elem_type]}")
        for v in graph.inputs
        if v.type.tensor_type.elem_type in _OTHER_FLOATS
    ]
    for name, array in graph.initializers.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            found.append(
                Diagnostic("TQ603", f"{bad} of {array.size} values of '{name}' are NaN or infinite")
            )
    found += [
        Diagnostic(
            "TQ601", f"domain '{n.domain}' is not the standard one", node=n.name, operator=n.op_type
        )
        for n in graph.nodes
        if n.domain not in ("", "ai.onnx")
    ]
    if found:
        raise TinyqError(found)


def _name_nodes(graph: Graph) -> None:
    """Give every node a unique name, so that reports and options can refer to it."""
    seen: set[str] = set()
    for node in graph.nodes:
        name = base = node.name or next(o for o in node.output if o)
        count = 1
        while name in seen:
            count += 1
            name = f"{base}_{count}"
        node.name = name
        seen.add(name)


def model_inputs(graph: Graph) -> tuple[InputInfo, ...]:
    """Name, shape and dtype of every input (TQ106 if more than the batch is dynamic)."""
    infos = []
    for value in graph.inputs:
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        if not dims or None in dims[1:]:
            shape = [d.dim_value or d.dim_param or "?" for d in tensor.shape.dim]
            raise error("TQ106", f"input '{value.name}' has the shape {shape}")
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        shape_tail = tuple(d for d in dims[1:] if d is not None)
        infos.append(InputInfo(value.name, shape_tail, dtype, dims[0]))
    return tuple(infos)
