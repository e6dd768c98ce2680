"""Rewrites that bring a float graph into the form that quantization expects.

Each pass leaves a graph that computes the same float function. After :func:`prepare`, linear
layers are Conv and Gemm (weights [O, I], no alpha, beta or transposition) or MatMul with an input
of three or more dimensions; no BatchNorm, Identity, Dropout or Constant is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper, numpy_helper

from tinyq.errors import error
from tinyq.ptq.graph import Graph, attributes, model_inputs
from tinyq.ptq.observe import session

Floats = npt.NDArray[np.float32]
_NEVER_FOLDED = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike")


def prepare(graph: Graph) -> None:
    """Run all passes, in the order in which one makes work for the next."""
    _constants_to_initializers(graph)
    _drop_identities(graph)
    graph.infer()
    _fix_reshapes(graph)
    _fold_constants(graph)
    _fold_batchnorm(graph)
    # After BatchNorm: what tf2onnx leaves of it are a Mul and an Add behind the convolution.
    _fold_affine(graph)
    _matmul_to_gemm(graph)
    _normalize_gemm(graph)
    _divide_by_reciprocal(graph)
    graph.drop_unused()
    graph.shapes.clear()
    graph.types.clear()
    graph.infer()


def _constants_to_initializers(graph: Graph) -> None:
    kept = []
    for node in graph.nodes:
        if node.op_type != "Constant":
            kept.append(node)
            continue
        (name, value), *_ = attributes(node).items()
        if name == "value":
            graph.initializers[node.output[0]] = numpy_helper.to_array(value)
        else:
            dtype = np.float32 if "float" in name else np.int64
            graph.initializers[node.output[0]] = np.asarray(value, dtype=dtype)
    graph.nodes = kept


def _rename(graph: Graph, old: str, new: str) -> None:
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def _drop_identities(graph: Graph) -> None:
    """Remove Identity and Dropout, except where they connect an output to an input directly."""
    outputs = set(graph.output_names)
    for node in list(graph.nodes):
        if node.op_type not in ("Identity", "Dropout"):
            continue
        source, target = node.input[0], node.output[0]
        if target not in outputs:
            _rename(graph, target, source)
        elif not _redirect(graph, source, target):
            continue
        graph.nodes.remove(node)


def _redirect(graph: Graph, source: str, target: str) -> bool:
    """Let the producer of ``source`` write the graph output ``target``; False if it may not."""
    producer = graph.producers().get(source)
    if producer is None or source in graph.output_names:
        return False
    for i, name in enumerate(producer.output):
        if name == source:
            producer.output[i] = target
    _rename(graph, source, target)
    return True


def _fix_reshapes(graph: Graph) -> None:
    """Give a Reshape whose target is computed a constant one, if only one dimension varies.

    Exporters write Shape, Slice and Concat where the batch is dynamic. Two runs with different
    batches show which dimension follows it.
    """
    computed = [
        n for n in graph.nodes if n.op_type == "Reshape" and n.input[1] not in graph.initializers
    ]
    if not computed:
        return
    probes = [_probe_shapes(graph, [n.output[0] for n in computed], batch) for batch in (2, 3)]
    for node, first, second in zip(computed, *probes, strict=True):
        varying = [i for i, (p, q) in enumerate(zip(first, second, strict=True)) if p != q]
        if len(varying) > 1:
            continue
        name = f"{node.name}_shape"
        shape = [-1 if i in varying else n for i, n in enumerate(first)]
        graph.initializers[name] = np.array(shape, np.int64)
        node.input[1] = name
    graph.drop_unused()


def _probe_shapes(graph: Graph, tensors: list[str], batch: int) -> list[tuple[int, ...]]:
    """Shapes of ``tensors`` for zero inputs of ``batch`` samples (or of the fixed batch)."""
    feeds = {
        info.name: np.zeros((info.batch or batch, *info.shape), info.dtype)
        for info in model_inputs(graph)
    }
    outputs = session(graph.to_model(tensors)).run(tensors, feeds)
    return [value.shape for value in outputs]


def _fold_constants(graph: Graph) -> None:
    """Compute nodes whose inputs are constant, and shapes that are known."""
    kept = []
    for node in graph.nodes:
        values = _known_values(graph, node)
        if values is None:
            kept.append(node)
            continue
        for name, value in zip(node.output, values, strict=True):
            graph.initializers[name] = np.asarray(value)
    graph.nodes = kept


def _known_values(graph: Graph, node: NodeProto) -> list[npt.NDArray[Any]] | None:
    """Outputs of a node that do not depend on the input's values, or None."""
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    if node.op_type == "Shape":
        shape = graph.shapes.get(names[0])
        if names[0] in graph.initializers:
            shape = graph.initializers[names[0]].shape
        if shape is None:
            return None
        attrs = attributes(node)
        part = shape[attrs.get("start", 0) : attrs.get("end")]
        return None if None in part else [np.array(part, np.int64)]
    if node.op_type == "CastLike" and names[0] in graph.initializers and graph.is_float(names[1]):
        return [graph.initializers[names[0]].astype(np.float32)]
    constant = names and all(name in graph.initializers for name in names)
    if not constant or node.op_type in _NEVER_FOLDED:
        return None
    evaluator = ReferenceEvaluator(node, opsets={"": graph.opset})
    return list(evaluator.run(None, {name: graph.initializers[name] for name in names}))


def _sole_producer(graph: Graph, tensor: str, ops: tuple[str, ...]) -> NodeProto | None:
    """The node of a type in ``ops`` that writes ``tensor``, if nothing else reads it."""
    node = graph.producers().get(tensor)
    if node is None or node.op_type not in ops or tensor in graph.output_names:
        return None
    return node if len(graph.consumers()[tensor]) == 1 else None


def _own(graph: Graph, node: NodeProto, index: int, value: npt.NDArray[Any], role: str) -> None:
    """Set a constant input of ``node`` under a name of its own, as others may share the old."""
    while len(node.input) <= index:
        node.input.append("")
    name = f"{node.name}_{role}"
    while name in graph.initializers and node.input[index] != name:
        name += "_"
    graph.initializers[name] = value
    node.input[index] = name


def _has_constant_weight(graph: Graph, node: NodeProto) -> bool:
    if node.input[1] not in graph.initializers:
        return False
    return len(node.input) < 3 or not node.input[2] or node.input[2] in graph.initializers


def _linear_before(graph: Graph, tensor: str) -> NodeProto | None:
    """The Conv, ConvTranspose or Gemm that what follows ``tensor`` can be folded into."""
    node = _sole_producer(graph, tensor, ("Conv", "ConvTranspose", "Gemm"))
    if node is None or not _has_constant_weight(graph, node):
        return None
    # The groups of a transposed convolution share an axis of its weights.
    grouped = node.op_type == "ConvTranspose" and attributes(node).get("group", 1) != 1
    return None if grouped else node


def _channel_axis(node: NodeProto) -> int:
    """The output channels' axis in a linear node's weights."""
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _scale_channels(graph: Graph, node: NodeProto, scale: Floats, offset: Floats) -> None:
    """Replace y of a linear node by y * scale[c] + offset[c], inside its weights and bias."""
    weight = graph.initializers[node.input[1]]
    axis = _channel_axis(node)
    shape = [1] * weight.ndim
    shape[axis] = -1
    _own(graph, node, 1, (weight * scale.reshape(shape)).astype(np.float32), "weight")
    bias = np.zeros(weight.shape[axis], np.float32)
    if len(node.input) > 2 and node.input[2]:
        bias = np.broadcast_to(graph.initializers[node.input[2]].reshape(-1), bias.shape)
    # beta scales a Gemm's bias, so a bias that takes in other terms must not keep it.
    if node.op_type == "Gemm":
        bias = bias * np.float32(attributes(node).get("beta", 1.0))
        _set_attribute(node, "beta", 1.0)
    _own(graph, node, 2, (bias * scale + offset).astype(np.float32), "bias")


def _set_attribute(node: NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _absorb(graph: Graph, node: NodeProto, into: NodeProto) -> None:
    """Remove ``node``, whose effect is now inside its producer ``into``."""
    into.output[0] = node.output[0]
    graph.nodes.remove(node)


def _fold_batchnorm(graph: Graph) -> None:
    for node in list(graph.nodes):
        if node.op_type != "BatchNormalization":
            continue
        if attributes(node).get("training_mode", 0):
            raise error("TQ601", "it is in training mode", "Export the model in evaluation mode.",
                        node=node.name, operator=node.op_type)  # fmt: skip
        gamma, beta, mean, var = (
            graph.initializers[name].astype(np.float64) for name in node.input[1:5]
        )
        scale = gamma / np.sqrt(var + attributes(node).get("epsilon", 1e-5))
        offset = beta - mean * scale
        into = _linear_before(graph, node.input[0])
        if into is not None:
            _scale_channels(graph, into, scale.astype(np.float32), offset.astype(np.float32))
            _absorb(graph, node, into)
        else:
            _to_depthwise(graph, node, scale.astype(np.float32), offset.astype(np.float32))
        graph.batchnorm[node.output[0]] = (
            beta.astype(np.float32),
            np.abs(gamma).astype(np.float32),
        )


def _to_depthwise(graph: Graph, node: NodeProto, scale: Floats, offset: Floats) -> None:
    """Make a BatchNorm that follows no convolution a depthwise 1x1 convolution."""
    rank = graph.rank(node.input[0])
    if rank is None or rank < 3:
        raise error("TQ601", f"BatchNormalization of a tensor of rank {rank} follows no Gemm",
                    node=node.name, operator=node.op_type)  # fmt: skip
    channels = len(scale)
    source = node.input[0]
    weight = scale.reshape(channels, 1, *([1] * (rank - 2)))
    node.op_type = "Conv"
    del node.attribute[:]
    node.attribute.extend([helper.make_attribute("group", channels)])
    del node.input[:]
    node.input.extend([source])
    _own(graph, node, 1, weight, "weight")
    _own(graph, node, 2, offset, "bias")


def _fold_affine(graph: Graph) -> None:
    """Fold Mul, Add, Sub and Div by a constant of one value a channel into the linear layer."""
    changed = True
    while changed:
        changed = any(_fold_one_affine(graph, node) for node in list(graph.nodes))


def _fold_one_affine(graph: Graph, node: NodeProto) -> bool:
    if node.op_type not in ("Mul", "Add", "Sub", "Div"):
        return False
    constant = [i for i, name in enumerate(node.input) if name in graph.initializers]
    # c - y and c / y are other functions; only y - c and y / c are affine with slope 1 or 1/c.
    if len(constant) != 1 or (node.op_type in ("Sub", "Div") and constant[0] == 0):
        return False
    source = node.input[1 - constant[0]]
    into = _linear_before(graph, source)
    if into is None:
        return False
    value = _per_channel(graph, into, graph.initializers[node.input[constant[0]]], source)
    if value is None or (node.op_type == "Div" and not value.all()):
        return False
    one, zero = np.ones_like(value), np.zeros_like(value)
    divisor: Floats = np.where(value == 0, one, value).astype(np.float32)
    folds: dict[str, tuple[Floats, Floats]] = {
        "Mul": (value, zero),
        "Div": (np.divide(one, divisor, dtype=np.float32), zero),
        "Add": (one, value),
        "Sub": (one, -value),
    }
    scale, offset = folds[node.op_type]
    stats = graph.batchnorm.get(source)
    _scale_channels(graph, into, scale, offset)
    _absorb(graph, node, into)
    if stats is not None:
        graph.batchnorm[node.output[0]] = (
            stats[0] * scale + offset,
            (stats[1] * np.abs(scale)).astype(np.float32),
        )
    return True


def _per_channel(
    graph: Graph, into: NodeProto, value: npt.NDArray[Any], source: str
) -> Floats | None:
    """``value`` as [C] if it has one value a channel of ``source`` (channels at axis 1)."""
    rank = graph.rank(source)
    if rank is None or value.ndim > rank or value.dtype != np.float32:
        return None
    channels = graph.initializers[into.input[1]].shape[_channel_axis(into)]
    aligned = value.reshape((1,) * (rank - value.ndim) + value.shape)
    if any(d != 1 for i, d in enumerate(aligned.shape) if i != 1):
        return None
    if aligned.size not in (1, channels):
        return None
    return np.broadcast_to(aligned.reshape(-1), (channels,)).astype(np.float32)


def _matmul_to_gemm(graph: Graph) -> None:
    """Make MatMul of a matrix with constant weights a Gemm, with the Add behind it as bias."""
    for node in list(graph.nodes):
        if node.op_type != "MatMul" or graph.rank(node.input[0]) != 2:
            continue
        weight = graph.initializers.get(node.input[1])
        if weight is None or weight.ndim != 2:
            continue
        node.op_type = "Gemm"
    _fold_affine(graph)


def _divide_by_reciprocal(graph: Graph) -> None:
    """Write a quotient as a product: integers divide by tables of one tensor alone."""
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        nodes.append(node)
        if node.op_type != "Div" or not graph.is_float(node.output[0]):
            continue
        dividend, divisor = (graph.initializers.get(name) for name in node.input)
        if divisor is not None and divisor.all():
            _own(graph, node, 1, (1 / divisor).astype(np.float32), "reciprocal")
            node.op_type = "Mul"
        elif divisor is None and (dividend is None or dividend.size > 1):
            name = f"{node.name}_reciprocal"
            nodes.insert(-1, helper.make_node("Reciprocal", [node.input[1]], [name], name=name))
            node.op_type, node.input[1] = "Mul", name
    graph.nodes = nodes


def _normalize_gemm(graph: Graph) -> None:
    """Weights [O, I] (transB = 1), alpha and beta inside the constants, bias [O]."""
    for node in graph.nodes:
        if node.op_type != "Gemm" or not _has_constant_weight(graph, node):
            continue
        attrs = attributes(node)
        if attrs.get("transA", 0):
            raise error("TQ601", "transA is set", node=node.name, operator="Gemm")
        weight = graph.initializers[node.input[1]]
        weight = weight if attrs.get("transB", 0) else weight.T
        weight = np.ascontiguousarray(weight * np.float32(attrs.get("alpha", 1.0)))
        _own(graph, node, 1, weight, "weight")
        if len(node.input) > 2 and node.input[2]:
            bias = graph.initializers[node.input[2]] * np.float32(attrs.get("beta", 1.0))
            if bias.size not in (1, len(weight)):
                raise error("TQ601", f"bias of shape {list(bias.shape)}", node=node.name,
                            operator="Gemm")  # fmt: skip
            bias = np.broadcast_to(bias.reshape(-1), (len(weight),)).astype(np.float32)
            _own(graph, node, 2, bias, "bias")
        del node.attribute[:]
        node.attribute.extend([helper.make_attribute("transB", 1)])
