"""Rewrites a quantized ONNX model with weights of few levels: ``tinyq compile --weights``.

The result is an ordinary QDQ model, and the one that everything is compared with afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tinyq.errors import error
from tinyq.frontends.onnx_nodes import to_qdq
from tinyq.frontends.ort import session
from tinyq.frontends.prune import drop_unused
from tinyq.ir import AnyArray
from tinyq.quant.coarse import KEPT, approximate
from tinyq.quant.levels import sqnr_db

_LINEAR = ("Conv", "Gemm", "MatMul")
_MOVEMENT = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Pad"})
_BIAS_LIMIT = 2.0**30


@dataclass(frozen=True)
class WeightChoice:
    """``form`` for all layers ('' for none); the first and the last stay unless ``ends``.

    ``layers`` gives forms by layer, the ends included; ``int8`` leaves a layer as it is.
    """

    form: str = ""
    ends: bool = False
    layers: Mapping[str, str] | None = None

    def __bool__(self) -> bool:
        return bool(self.form or self.layers)


@dataclass(frozen=True)
class CoarseLayer:
    """A layer whose weights were quantized, and their signal to noise ratio in decibels."""

    name: str
    form: str
    sqnr_db: float


def coarsen(
    model: onnx.ModelProto, choice: WeightChoice
) -> tuple[onnx.ModelProto, tuple[CoarseLayer, ...]]:
    """A copy of ``model`` (QOperator form becomes QDQ), and what became of its layers.

    Biases are rounded to their layers' new grids. Raises TQ303 for unknown layers, TQ653.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {t.name: t for t in copy.graph.initializer}
    known = set(constants)
    nodes = list(to_qdq(copy.graph.node, constants))
    copy.graph.initializer.extend(t for name, t in constants.items() if name not in known)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    rewriter = _Rewriter(copy)
    forms = _forms(rewriter.layers, choice)
    layers = tuple(rewriter.rewrite(node, forms[node.output[0]]) for node in rewriter.layers
                   if forms[node.output[0]] != KEPT)  # fmt: skip
    rewriter.finish()
    return copy, layers


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type}_{node.output[0]}"


def _forms(layers: list[onnx.NodeProto], choice: WeightChoice) -> dict[str, str]:
    """The format of every layer, by its output."""
    asked = dict(choice.layers or {})
    found = {}
    for k, node in enumerate(layers):
        end = k in (0, len(layers) - 1) and not choice.ends
        general = KEPT if end or not choice.form else choice.form
        found[node.output[0]] = asked.pop(_name(node), general)
    if asked:
        names = ", ".join(_name(node) for node in layers)
        given = next(iter(asked))
        raise error("TQ303", f"--weights-layer {given}: no such layer", f"Layers: {names}.")
    return found


class _Rewriter:
    """Knows the constants of a model, and collects what replaces them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.initial = {t.name: t for t in model.graph.initializer}
        self.constant = self._constants()
        self.layers = [
            node for node in model.graph.node
            if node.op_type in _LINEAR and node.domain in ("", "ai.onnx")
            and node.input[1] in self.constant and node.input[0] not in self.constant
        ]  # fmt: skip
        operands = [name for node in self.layers for name in node.input[1:] if name]
        self.reals = self._evaluate(dict.fromkeys(n for n in operands if n in self.constant))
        self.before: dict[str, list[onnx.NodeProto]] = {}

    def _constants(self) -> set[str]:
        """Names of all values that depend on no input."""
        found = set(self.initial)
        for node in self.model.graph.node:
            if all(name in found for name in node.input if name):
                found.update(node.output)
        return found

    def _evaluate(self, names: Iterable[str]) -> dict[str, AnyArray]:
        """Constant tensors by name, as onnxruntime computes them."""
        wanted = list(names)
        stored = {n: numpy_helper.to_array(self.initial[n]) for n in wanted if n in self.initial}
        computed = [name for name in wanted if name not in stored]
        if not computed:
            return stored
        part = onnx.ModelProto()
        part.CopyFrom(self.model)
        del part.graph.output[:], part.graph.input[:]
        part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in computed)
        drop_unused(part)
        results = session(part.SerializeToString(), optimise=False).run(computed, {})
        return stored | dict(zip(computed, results, strict=True))

    def rewrite(self, node: onnx.NodeProto, form: str) -> CoarseLayer:
        """Replace the weights of a layer, and its int32 bias."""
        real = np.asarray(self.reals[node.input[1]], np.float32)
        axis = 0 if node.op_type == "Conv" or _attribute(node, "transB", 0) else real.ndim - 1
        rows = np.moveaxis(real, axis, 0)
        integers, scale = approximate(rows.reshape(len(rows), -1), form)
        step = self._input_scale(node) * np.float32(_attribute(node, "alpha", 1.0))
        bias = self._integer_bias(node)
        if bias is not None and step > 0:
            least = (np.abs(bias) / (step * _BIAS_LIMIT)).astype(np.float32)
            scale = np.maximum(scale, least)
        shaped = np.moveaxis(integers.reshape(rows.shape), 0, axis)
        name = f"{node.output[0]}__{form}"
        node.input[1] = self._dequantized(node, f"{name}_weights", shaped, scale, axis)
        if bias is not None and step > 0:
            grid = (step * scale).astype(np.float32)
            rounded = np.rint(bias / grid.astype(np.float64)).astype(np.int32)
            node.input[2] = self._dequantized(node, f"{name}_bias", rounded, grid, 0)
        made = integers * scale[:, None].astype(np.float64)
        return CoarseLayer(_name(node), form, sqnr_db(rows.reshape(len(rows), -1), made))

    def _dequantized(
        self, node: onnx.NodeProto, name: str, integers: AnyArray, scale: AnyArray, axis: int
    ) -> str:
        """The reals of new constants, computed before ``node``."""
        stored = [integers, scale, np.zeros(len(scale), integers.dtype)]
        names = [f"{name}_{role}" for role in ("integers", "scale", "zero")]
        for label, array in zip(names, stored, strict=True):
            self.model.graph.initializer.append(numpy_helper.from_array(array, label))
        added = helper.make_node("DequantizeLinear", names, [name], name=name, axis=axis)
        self.before.setdefault(node.output[0], []).append(added)
        return name

    def _input_scale(self, node: onnx.NodeProto) -> np.float32:
        """The step of a layer's input; 0 where it is not quantized."""
        source = self.producers.get(node.input[0])
        while source is not None and source.op_type in _MOVEMENT:
            source = self.producers.get(source.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            return np.float32(0)
        scale = self._evaluate([source.input[1]])[source.input[1]]
        return np.float32(scale.reshape(-1)[0]) if scale.size == 1 else np.float32(0)

    def _integer_bias(self, node: onnx.NodeProto) -> AnyArray | None:
        """The reals [C] of a bias that the model holds in integers."""
        name = node.input[2] if len(node.input) > 2 else ""
        source = self.producers.get(name)
        if name not in self.reals or source is None or source.op_type != "DequantizeLinear":
            return None
        return np.asarray(self.reals[name], np.float64).reshape(-1)

    def finish(self) -> None:
        """Put the new nodes in their places and drop what is left over."""
        nodes = [
            part for node in self.model.graph.node
            for part in (*self.before.get(node.output[0], ()), node)
        ]  # fmt: skip
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        drop_unused(self.model)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
