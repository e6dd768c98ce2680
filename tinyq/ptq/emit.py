"""Write a plan as a QDQ model: QuantizeLinear and DequantizeLinear around every unit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tinyq.ptq.graph import Graph
from tinyq.ptq.params import ActivationParams
from tinyq.ptq.plan import Plan, WeightPlan
from tinyq.ptq.units import Unit

_ONNX_TYPE = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
}

FLOAT_LAYERS = "tinyq.float_layers"
"""Key of the model's metadata: names of the layers that were left in float on purpose."""

_NEW_BIAS = "\0bias"  # not a name that a tensor of the graph can have


@dataclass
class _Writer:
    """The model under construction."""

    graph: Graph
    plan: Plan
    quantized: set[str]
    integer_io: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    read_as: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def fresh(self, wanted: str) -> str:
        """A name that nothing in the model has yet."""
        name = wanted
        count = 1
        while name in self.names:
            count += 1
            name = f"{wanted}_{count}"
        self.names.add(name)
        return name

    def constant(self, wanted: str, value: npt.NDArray[np.generic]) -> str:
        """Add an initialiser and return its name."""
        name = self.fresh(wanted)
        self.initializers[name] = value
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: int) -> None:
        """Add a node whose name is derived from its output's."""
        name = self.fresh(f"{output}_{op}")
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))


def emit(
    graph: Graph, units: list[Unit], plan: Plan, *, integer_io: bool = False
) -> onnx.ModelProto:
    """The quantized model.

    A tensor is quantized if the unit that writes it or one that reads it is; units named in
    ``plan.precision.float_units`` are not. With ``integer_io`` the graph's float inputs and
    outputs become integers; their parameters are in the model's metadata.
    """
    names = set(graph.initializers) | {v.name for v in (*graph.inputs, *graph.outputs)}
    names |= {name for node in graph.nodes for name in (*node.output, node.name)}
    writer = _Writer(graph, plan, _quantized_tensors(units, plan), integer_io, names=names)
    for value in graph.inputs:
        if value.name in writer.quantized:
            _quantize_input(writer, value.name)
    for unit in units:
        _write_unit(writer, unit)
    return _finish(writer)


def _quantized_tensors(units: list[Unit], plan: Plan) -> set[str]:
    kept = plan.precision.float_units
    found: set[str] = set()
    for unit in units:
        # Units that only move integers follow their neighbours, unless nothing is left float.
        moves = unit.kind in ("share", "concat", "index") and kept
        if unit.kind != "plain" and unit.name not in kept and not moves:
            found.update(unit.inputs, unit.outputs)
    return found


def _pair(writer: _Writer, source: str, params: ActivationParams, output: str, base: str) -> str:
    """Q and DQ from the float tensor ``source`` to ``output``; returns the integers' name."""
    scale, zero = _parameters(writer, base, params)
    integers = writer.fresh(f"{base}_quantized")
    writer.node("QuantizeLinear", [source, scale, zero], integers)
    writer.node("DequantizeLinear", [integers, scale, zero], output)
    return integers


def _parameters(writer: _Writer, base: str, params: ActivationParams) -> tuple[str, str]:
    scale = writer.constant(f"{base}_scale", np.array(params.scale, np.float32))
    zero = writer.constant(f"{base}_zero_point", np.array(params.zero_point, params.dtype))
    return scale, zero


def _quantize_input(writer: _Writer, name: str) -> None:
    params = writer.plan.activations[name]
    read = writer.fresh(f"{name}_dequantized")
    writer.read_as[name] = read
    if writer.integer_io:
        scale, zero = _parameters(writer, name, params)
        writer.node("DequantizeLinear", [name, scale, zero], read)
    else:
        _pair(writer, name, params, read, name)


def _write_unit(writer: _Writer, unit: Unit) -> None:
    is_float = unit.name in writer.plan.precision.float_units
    replaced = {} if is_float else _write_constants(writer, unit)
    outputs = set(writer.graph.output_names)
    for node in unit.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(copy.input):
            copy.input[i] = replaced.get(name) or writer.read_as.get(name, name)
        if not is_float and unit.kind == "linear" and node is unit.nodes[0]:
            _set_bias(copy, unit, replaced)
        for i, name in enumerate(node.output):
            if name in unit.outputs and name in writer.quantized and name in outputs:
                copy.output[i] = writer.fresh(f"{name}_float")
        writer.nodes.append(copy)
        for name, written in zip(node.output, copy.output, strict=True):
            if name in unit.outputs and name in writer.quantized:
                _quantize_output(writer, name, written, name in outputs)


def _quantize_output(writer: _Writer, name: str, written: str, is_output: bool) -> None:
    params = writer.plan.activations[name]
    if not is_output:
        read = writer.fresh(f"{name}_dequantized")
        _pair(writer, written, params, read, name)
        writer.read_as[name] = read
        return
    if not writer.integer_io:
        _pair(writer, written, params, name, name)
        return
    scale, zero = _parameters(writer, name, params)
    writer.node("QuantizeLinear", [written, scale, zero], name)
    read = writer.fresh(f"{name}_dequantized")
    if any(name in node.input for node in writer.graph.nodes):
        writer.node("DequantizeLinear", [name, scale, zero], read)
    writer.read_as[name] = read


def _write_constants(writer: _Writer, unit: Unit) -> dict[str, str]:
    """Quantized weights, bias and constant operands: old name to dequantized name."""
    found: dict[str, str] = {}
    for name in unit.constants:
        params = writer.plan.activations[name]
        integers = params.quantize(writer.graph.initializers[name].astype(np.float32))
        base = f"{unit.name}_{name}"
        scale, zero = _parameters(writer, base, params)
        stored = writer.constant(f"{base}_quantized", integers.astype(params.dtype))
        found[name] = writer.fresh(f"{base}_dequantized")
        writer.node("DequantizeLinear", [stored, scale, zero], found[name])
    if unit.kind == "linear":
        weights = writer.plan.weights[unit.name]
        found[unit.weight] = _write_weight(writer, unit, weights)
        if weights.bias is not None:
            found[unit.bias or _NEW_BIAS] = _write_bias(writer, unit, weights)
    return found


def _write_weight(writer: _Writer, unit: Unit, weights: WeightPlan) -> str:
    base, per_channel = f"{unit.name}_weight", writer.plan.per_channel
    scales = weights.scales if per_channel else weights.scales[0]
    stored = writer.constant(f"{base}_quantized", weights.integers)
    scale = writer.constant(f"{base}_scale", np.asarray(scales, np.float32))
    zero = writer.constant(f"{base}_zero_point", np.zeros_like(scales, np.int8))
    output = writer.fresh(f"{base}_dequantized")
    axis = {"axis": weights.axis} if per_channel else {}
    writer.node("DequantizeLinear", [stored, scale, zero], output, **axis)
    return output


def _write_bias(writer: _Writer, unit: Unit, weights: WeightPlan) -> str:
    base, per_channel = f"{unit.name}_bias", writer.plan.per_channel
    scales = weights.bias_scales if per_channel else weights.bias_scales[0]
    assert weights.bias is not None
    stored = writer.constant(f"{base}_quantized", weights.bias)
    scale = writer.constant(f"{base}_scale", np.asarray(scales, np.float32))
    zero = writer.constant(f"{base}_zero_point", np.zeros_like(scales, np.int32))
    output = writer.fresh(f"{base}_dequantized")
    axis = {"axis": 0} if per_channel else {}
    writer.node("DequantizeLinear", [stored, scale, zero], output, **axis)
    return output


def _set_bias(copy: onnx.NodeProto, unit: Unit, replaced: dict[str, str]) -> None:
    """Attach a bias that the float node did not have (bias correction gives one)."""
    if unit.bias or _NEW_BIAS not in replaced:
        return
    while len(copy.input) < 3:
        copy.input.append("")
    copy.input[2] = replaced[_NEW_BIAS]


def _finish(writer: _Writer) -> onnx.ModelProto:
    graph = Graph(
        writer.nodes, {**writer.graph.initializers, **writer.initializers},
        [_edge(writer, v) for v in writer.graph.inputs],
        [_edge(writer, v) for v in writer.graph.outputs],
        writer.graph.opset, writer.graph.ir_version, writer.graph.name,
    )  # fmt: skip
    graph.drop_unused()
    model = graph.to_model()
    model.producer_name = "tinyq"
    for key, value in sorted(_metadata(writer).items()):
        model.metadata_props.add(key=key, value=value)
    return model


def _edge(writer: _Writer, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    if not writer.integer_io or value.name not in writer.quantized:
        return value
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    dtype = writer.plan.activations[value.name].dtype
    copy.type.tensor_type.elem_type = _ONNX_TYPE[dtype]
    return copy


def _metadata(writer: _Writer) -> dict[str, str]:
    """Facts that QDQ cannot express: bits of weights, float layers, parameters of bare edges."""
    plan = writer.plan
    found = {}
    if plan.precision.float_units:
        found[FLOAT_LAYERS] = json.dumps(sorted(plan.precision.float_units))
    narrow = sorted(name for name, w in plan.weights.items() if w.bits < 8)
    if narrow:
        found["tinyq.weight_bits"] = json.dumps({n: plan.weights[n].bits for n in narrow})
    if writer.integer_io:
        for value in (*writer.graph.inputs, *writer.graph.outputs):
            if value.name in writer.quantized:
                params = plan.activations[value.name]
                found[f"tinyq.edge.{value.name}"] = json.dumps(
                    {"scale": params.scale, "zero_point": params.zero_point, "dtype": params.dtype}
                )
    return found
