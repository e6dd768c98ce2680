"""onnxruntime as the oracle of a whole model: integers in, integers out, intermediates exposed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tinyq.frontends.ort import session
from tinyq.frontends.whole_sums import with_whole_sums
from tinyq.ir import AnyArray, Graph, Value
from tinyq.ops.reals import is_found_scale, scale_parts


@dataclass(frozen=True, eq=False)
class OrtOracle:
    """Runs the ONNX file; ``graph`` is its integer graph, whose edges say what is compared.

    Float inputs of the model are fed the reals of the integers, float outputs are read before
    their last DequantizeLinear, or, where moves follow it, turned back into its integers.
    whole_sums: no sum saturates, which it may on x86 (:mod:`tinyq.frontends.whole_sums`).
    """

    model: onnx.ModelProto
    graph: Graph
    integer_kernels: bool = True
    optimise: bool = True
    whole_sums: bool = True
    expose: tuple[str, ...] = ()
    _sessions: dict[str, Any] = field(default_factory=dict)

    def run(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Integer outputs of one inference (model's own shapes), in the graph's order."""
        found = self._run(inputs)[: len(self.graph.outputs)]
        return tuple(_integers(v, r) for v, r in zip(self.graph.outputs, found, strict=True))

    def run_exposed(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """The exposed intermediate tensors by name."""
        results = self._run(inputs)
        return dict(zip(self.expose, results[len(self.graph.outputs) :], strict=True))

    def _dynamic(self) -> list[bool]:
        """For each output of the model whether its scale is found at run time."""
        found: list[bool] = []
        for value in self.graph.outputs:
            if is_found_scale(self.graph, value):
                found[-1] = True
            else:
                found.append(False)
        return found

    def _run(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        if "s" not in self._sessions:
            model = integer_edges(self.model, self._dynamic(), self.expose)
            if self.whole_sums:
                model = with_whole_sums(model)
            self._sessions["s"] = session(
                model.SerializeToString(), self.optimise, self.integer_kernels
            )
        ort_session = self._sessions["s"]
        values = {value.name: value for value in self.graph.inputs}
        feeds = {
            i.name: _feed(values[i.name], inputs[i.name], i.type) for i in ort_session.get_inputs()
        }
        results = iter(np.asarray(r) for r in ort_session.run(None, feeds))
        ordered: list[AnyArray] = []
        for is_dynamic in self._dynamic():
            ordered += _found(results) if is_dynamic else [next(results)]
        return (*ordered, *results)


def integer_edges(
    model: onnx.ModelProto, dynamic: Iterable[bool], expose: Iterable[str] = ()
) -> onnx.ModelProto:
    """A copy whose float outputs end before their DequantizeLinear, with more outputs exposed.

    Outputs for which ``dynamic`` is set end in a DynamicQuantizeLinear, three results each.
    """
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    producers = {name: node for node in edited.graph.node for name in node.output}
    names = []
    for output, is_dynamic in zip(model.graph.output, dynamic, strict=True):
        node = producers.get(output.name)
        stripped = node is not None and node.op_type == "DequantizeLinear"
        if is_dynamic:
            results = [f"{output.name}__{part}" for part in ("int", "scale", "zero_point")]
            made = helper.make_node("DynamicQuantizeLinear", [output.name], results)
            edited.graph.node.append(made)
            names += results
        else:
            names.append(node.input[0] if stripped and node is not None else output.name)
    del edited.graph.output[:]
    names += list(expose)
    edited.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    del edited.graph.value_info[:]
    # A session needs types of its outputs, and infers them.
    return edited


def _integers(value: Value, result: AnyArray) -> AnyArray:
    """A result in the output's integers: a float one only moves what was dequantized before."""
    if result.dtype.kind != "f" or not value.type.dtype.is_integer:
        return result
    quant = value.type.quant
    if quant is None:
        raise ValueError(f"float output '{value.name}' without quantization")
    levels = np.rint(result.astype(np.float64) / quant.scale) + quant.zero_point
    return levels.astype(value.type.dtype.numpy)


def _found(results: Iterator[AnyArray]) -> list[AnyArray]:
    """Three results of DynamicQuantizeLinear as int8 and the parameters of int8."""
    integers, scale, zero_point = (next(results) for _ in range(3))
    centred = (integers.astype(np.int16) - 128).astype(np.int8)
    return [centred, scale_parts(np.float32(scale), int(zero_point) - 128)]


def _feed(value: Value, array: AnyArray, ort_type: str) -> AnyArray:
    if "float" not in ort_type:
        return array
    quant = value.type.quant
    if quant is None:
        raise ValueError(f"float input '{value.name}' without quantization")
    centred = array.astype(np.float32) - np.float32(quant.zero_point)
    return (centred * np.float32(quant.scale)).astype(np.float32)
