"""Reads an ONNX file into a QDQ graph: the only importer of the ``onnx`` package.

Accepted: opset 13 to the newest that the installed package knows; QDQ, QOperator and QCDQ form;
weights as initializers, Constant nodes or quantized by nodes. Every shape is fixed here: a symbolic
first dimension is the batch and becomes 1, ``shapes`` overrides any input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tinyq.errors import Diagnostic, TinyqError, error
from tinyq.frontends.narrow import widen_integers
from tinyq.frontends.onnx_nodes import to_qdq
from tinyq.frontends.qonnx import convert_qonnx
from tinyq.ir import AnyArray, DType, Graph, Node, OnnxAttrs, Stage, TensorType, Value, check
from tinyq.ir.graph import without_dead_nodes

OLDEST_OPSET = 13
_NEVER_FOLDED = frozenset(
    {
        "DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike",
        "RandomUniformLike", "If", "Loop", "Scan",
    }
)  # fmt: skip
"""Operators that stay nodes though their inputs are constants; quantized weights stay integers."""


def load_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, and :func:`standardise` it. Raises TQ101 to TQ105 too."""
    name = str(path)
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "no such file"
        raise error("TQ101", found, file=name)
    try:
        raw = path.read_bytes()
    except OSError as reason:
        raise error("TQ101", str(reason.strerror), file=name) from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except Exception:
        raise error("TQ102", f"{len(raw)} bytes that do not parse as ONNX", file=name) from None
    if not model.graph.node or not model.opset_import:
        raise error("TQ102", "the file holds no ONNX graph", file=name)
    _load_external_data(model, path)
    _check_opset(model, name)
    standardise(model)
    return model


def standardise(model: onnx.ModelProto) -> None:
    """Write QONNX's nodes as QDQ and integers of 4 and 2 bits as int8 and uint8, in place.

    What comes of it is what the oracle runs. Raises TQ203 and TQ204 for what has no such form.
    """
    convert_qonnx(model)
    widen_integers(model)


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as reason:
        raise error("TQ105", str(reason).splitlines()[0], file=str(path)) from None


def _check_opset(model: onnx.ModelProto, name: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = opset(model)
    if not OLDEST_OPSET <= version <= newest:
        raise error("TQ104", f"opset {version}; {OLDEST_OPSET} to {newest} is accepted", file=name)


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that the model uses; 0 when it names none."""
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return int(max(versions, default=0))


def import_model(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    name: str = "",
) -> Graph:
    """The QDQ graph of ``model`` with constants folded. Raises TQ1xx and TQ2xx."""
    constants = {t.name: t for t in model.graph.initializer}
    nodes = list(to_qdq(model.graph.node, constants))
    fixed = _with_fixed_shapes(model, nodes, constants, dict(shapes or {}), name)
    return check(without_dead_nodes(_Importer(fixed, name).graph()))


def _with_fixed_shapes(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
    shapes: dict[str, tuple[int, ...]],
    file: str,
) -> onnx.ModelProto:
    """A model of ``nodes`` whose inputs have fixed shapes and whose values are all typed."""
    inputs = [_fixed_input(i, shapes, file) for i in model.graph.input if i.name not in constants]
    unknown = sorted(set(shapes) - {i.name for i in inputs})
    if unknown:
        known = ", ".join(i.name for i in inputs)
        raise error("TQ107", f"'{unknown[0]}'; the inputs are {known}", file=file)
    outputs = [helper.make_empty_tensor_value_info(o.name) for o in model.graph.output]
    graph = helper.make_graph(
        nodes, model.graph.name or "network", inputs, outputs, list(constants.values())
    )
    # Domains that tinyq does not know stay declared: their nodes are refused by name, later.
    imports = list(model.opset_import)
    fixed = helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
    for function in model.functions:
        fixed.functions.append(function)
    if model.functions:
        fixed = onnx.inliner.inline_local_functions(fixed)
    try:
        return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception as reason:
        raise error("TQ103", str(reason).splitlines()[0], file=file) from None


def _fixed_input(
    info: onnx.ValueInfoProto, shapes: Mapping[str, tuple[int, ...]], file: str
) -> onnx.ValueInfoProto:
    tensor = info.type.tensor_type
    if info.name in shapes:
        return helper.make_tensor_value_info(info.name, tensor.elem_type, shapes[info.name])
    if not tensor.HasField("shape"):
        raise error("TQ106", f"input '{info.name}' has no shape", file=file)
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
    if dims and dims[0] == 0:
        dims[0] = 1
    if any(size <= 0 for size in dims):
        shown = ",".join(str(d) if d else "?" for d in dims)
        raise error("TQ106", f"input '{info.name}' has shape [{shown}]", file=file)
    return helper.make_tensor_value_info(info.name, tensor.elem_type, dims)


class _Importer:
    """Walks the nodes in order, folding those of constants alone."""

    def __init__(self, model: onnx.ModelProto, file: str) -> None:
        self.model = model
        self.file = file
        self.types: dict[str, TensorType | None] = {}
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.names: set[str] = set()
        self.elements: dict[str, str] = {}
        self.refusals: list[Diagnostic] = []

    def graph(self) -> Graph:
        proto = self.model.graph
        for info in (*proto.value_info, *proto.output, *proto.input):
            self.types[info.name] = _tensor_type(info)
            self.elements[info.name] = _element_name(info)
        for tensor in proto.initializer:
            self._add_constant(tensor.name, _to_array(tensor))
        inputs = tuple(self._input(info) for info in proto.input)
        for node in proto.node:
            self._add_node(node)
        outputs = tuple(self._lookup(info.name) for info in proto.output)
        if self.refusals:
            raise TinyqError(self.refusals)
        return Graph(proto.name, Stage.QDQ, inputs, outputs, tuple(self.nodes))

    def _input(self, info: onnx.ValueInfoProto) -> Value:
        type_ = self.types[info.name]
        if type_ is None:
            raise error("TQ204", f"input '{info.name}' has an unsupported type", file=self.file)
        value = Value(info.name, type_)
        self.values[info.name] = value
        return value

    def _add_constant(self, name: str, array: AnyArray) -> None:
        try:
            dtype = DType.of(array)
        except ValueError:
            found = f"the constant '{name}' has element type {array.dtype}"
            self.refusals.append(Diagnostic("TQ204", found, node=name, operator="Constant"))
            dtype, array = DType.FLOAT32, np.zeros(array.shape, np.float32)
        array.setflags(write=False)
        self.values[name] = Value(name, TensorType(array.shape, dtype), array)

    def _lookup(self, name: str) -> Value:
        if name not in self.values:
            raise error("TQ103", f"value '{name}' is used but never computed", file=self.file)
        return self.values[name]

    def _add_node(self, node: onnx.NodeProto) -> None:
        inputs = tuple(self._lookup(name) if name else None for name in node.input)
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        attrs = _attributes(node)
        if self._fold(node, inputs, attrs):
            return
        if attrs.get("block_size", 0) or node.op_type == "MatMulNBits":
            self._refuse_blocks(node, int(attrs.get("block_size", 0)))
        if node.op_type == "Identity" or (node.op_type == "Dropout" and len(inputs) >= 1):
            source = inputs[0]
            if source is None:
                raise error("TQ103", "no input", node=node.name, operator=node.op_type)
            self.values[node.output[0]] = source
            return
        outputs = tuple(self._output(node, name) for name in node.output if name)
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        self.nodes.append(Node(op, self._name(node), inputs, outputs, attrs))

    def _refuse_blocks(self, node: onnx.NodeProto, size: int) -> None:
        found = f"blocked quantization{f': one scale for every {size} values' if size else ''}"
        remedy = "Quantize weights with one scale a tensor or one an output channel."
        self.refusals.append(Diagnostic("TQ204", found, remedy, node.name, node.op_type))

    def _name(self, node: onnx.NodeProto) -> str:
        base = node.name or f"{node.op_type}_{node.output[0]}"
        name, count = base, 1
        while name in self.names:
            count += 1
            name = f"{base}_{count}"
        self.names.add(name)
        return name

    def _output(self, node: onnx.NodeProto, name: str) -> Value:
        type_ = self.types.get(name)
        if type_ is None:
            # An operator that nobody knows is refused later, with every other such node.
            if node.op_type in _supported():
                self._refuse_untyped(node, name)
            type_ = TensorType((), DType.FLOAT32)
        value = Value(name, type_)
        self.values[name] = value
        return value

    def _is_constant(self, name: str) -> bool:
        return name in self.values and self.values[name].is_constant

    def _refuse_untyped(self, node: onnx.NodeProto, name: str) -> None:
        """A known operator without a usable type; once for those that follow from one another."""
        where = node.name or f"{node.op_type}_{name}"
        sources = [self.types.get(n) for n in node.input if n and not self._is_constant(n)]
        if self.elements.get(name, "") not in ("", *(d.value for d in DType)):
            found = f"its result has element type {self.elements[name]}"
            self.refusals.append(Diagnostic("TQ204", found, "", where, node.op_type))
        elif all(source is not None for source in sources):
            wrong = _inference_error(self.model)
            code, found = (
                ("TQ103", wrong) if wrong else ("TQ106", "the shape of its result is not known")
            )
            self.refusals.append(Diagnostic(code, found, "", where, node.op_type))

    def _fold(
        self, node: onnx.NodeProto, inputs: tuple[Value | None, ...], attrs: OnnxAttrs
    ) -> bool:
        if node.op_type == "Constant":
            self._add_constant(node.output[0], _constant_array(attrs))
            return True
        if node.op_type == "Shape" and inputs and inputs[0] is not None:
            shape = np.asarray(inputs[0].type.shape, np.int64)
            window = shape[attrs.get("start", 0) : attrs.get("end")]
            self._add_constant(node.output[0], window)
            return True
        if node.op_type in _NEVER_FOLDED:
            return False
        if not inputs or not all(v is None or v.is_constant for v in inputs):
            return False
        results = _evaluate(node, [v for v in inputs if v is not None], opset(self.model))
        for name, array in zip(node.output, results, strict=False):
            if name:
                self._add_constant(name, np.ascontiguousarray(array))
        return True


def _inference_error(model: onnx.ModelProto) -> str:
    """What strict shape inference objects to, one line; empty when nothing."""
    try:
        onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
    except Exception as reason:
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
        return lines[-1] if lines else "shape inference fails"
    return ""


def _supported() -> frozenset[str]:
    from tinyq.ops import REGISTRY

    names = (name for operator in REGISTRY.operators.values() for name in operator.onnx)
    return frozenset({"QuantizeLinear", "DequantizeLinear", *names})


def _element_name(info: onnx.ValueInfoProto) -> str:
    """numpy's name of a tensor's elements; empty when the type is not known."""
    element = info.type.tensor_type.elem_type
    try:
        return str(helper.tensor_dtype_to_np_dtype(element)) if element else ""
    except (ValueError, KeyError):
        return str(onnx.TensorProto.DataType.Name(element)).lower()


def _tensor_type(info: onnx.ValueInfoProto) -> TensorType | None:
    tensor = info.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        return None
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    try:
        dtype = DType(str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    except (ValueError, KeyError):
        return None
    return None if any(d < 0 for d in dims) else TensorType(dims, dtype)


def _to_array(tensor: onnx.TensorProto) -> AnyArray:
    array = numpy_helper.to_array(tensor)
    if array.dtype in (np.float64, np.float16):
        return np.asarray(array.astype(np.float32))
    return np.array(array)


def _attributes(node: onnx.NodeProto) -> OnnxAttrs:
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = _to_array(value)
        elif isinstance(value, list):
            value = tuple(value)
        values[attribute.name] = value
    return OnnxAttrs(values)


def _constant_array(attrs: OnnxAttrs) -> AnyArray:
    if attrs.get("value") is not None:
        return np.array(attrs.get("value"))
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if attrs.get(name) is not None:
            return np.asarray(attrs.get(name), dtype)
    raise error("TQ203", "a Constant that holds neither numbers nor a tensor", operator="Constant")


def _evaluate(node: onnx.NodeProto, inputs: list[Value], version: int) -> list[AnyArray]:
    """Results of one node of constants, by the reference evaluator of the onnx package."""
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    graph = helper.make_graph(
        [node],
        "fold",
        [helper.make_empty_tensor_value_info(n) for n in dict.fromkeys(names)],
        [helper.make_empty_tensor_value_info(n) for n in node.output if n],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    feeds = {name: value.array for name, value in zip(names, inputs, strict=True)}
    try:
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception as reason:
        raise error(
            "TQ203",
            f"its constant inputs cannot be folded: {reason}",
            node=node.name,
            operator=node.op_type,
        ) from None
    return [np.asarray(result) for result in results]
