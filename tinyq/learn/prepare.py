"""Insert fake quantization into a network written by others.

A quantizer goes wherever an integer tensor will lie in memory: after a convolution with the
BatchNorm and ReLU that follow it, after an addition, a concatenation, an average, an activation
function; not after what only moves integers (max pooling, flattening). At fewer than 8 bits, values
that are read only by convolutions or dense layers get the low width; values that are also added,
concatenated or pooled keep 8 bits, and each layer that reads them gets a quantizer of its own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from tinyq.errors import error
from tinyq.learn.config import QuantConfig
from tinyq.learn.layers import (
    FreezingBatchNorm1d,
    FreezingBatchNorm2d,
    QuantConv2d,
    QuantLinear,
    _FreezingBatchNorm,
)
from tinyq.learn.observers import FixedRange
from tinyq.learn.quantizers import ActQuantizer, act_quantizer, weight_quantizer
from tinyq.learn.trace import (
    FUSED_AFTER,
    NON_NEGATIVE,
    PASS_THROUGH,
    Op,
    Origin,
    free_name,
    module_of,
    op_of,
    operations,
    origin_of,
    propagate_shapes,
    register_module,
    tensor_inputs,
    trace,
)

register_module(ActQuantizer, lambda node, module: Op("quantizer"))

_LAYERS = frozenset({"conv", "linear"})

PROBABILITY_HIGH = 255 / 256
"""Softmax has the step 1/256, as in TensorFlow Lite: onnxruntime's integer kernel gives wrong ones
where the step is much smaller, as the largest probability seen would make it."""


@dataclass(frozen=True)
class _Layer:
    """A convolution or dense layer of the graph and the width of its weights."""

    node: fx.Node
    op: Op
    bits: int
    low_input: bool
    plain: bool  # first or last: uniform, whatever the others are


def prepare(model: nn.Module, config: QuantConfig, example: Tensor) -> fx.GraphModule:
    """Copy of ``model`` with fake quantization, to calibrate, train, convert and export.

    ``example`` is an input [N, ...]; only its shape and, for the input's range, nothing else of it
    counts. Parameters keep their names; quantizers of activations are submodules of ``act`` (or
    ``act_1``, where the network has that already). A layer that is called several times becomes one
    layer for each call; they share their parameters, and are converted each with the step of its
    own input and the BatchNorm behind it.

    ``normalize_weights`` applies to layers that a BatchNorm follows, since nothing else puts the
    deviation back. Raises TQ650 and TQ651 for networks that cannot be traced or quantized, TQ657
    for those that are prepared already or not float32, and for an example that does not fit.
    """
    _refuse_prepared(model)
    traced = trace(model, example)
    ops = dict(operations(traced))
    _refuse_loose_batch_norm(ops)
    layers = _layers(ops, config)
    for layer in layers.values():
        _quantize_layer(traced, layer, config, normalize=_batch_norm_after(layer.node, ops))
    _freezing_batch_norms(traced, ops, config)
    sites = [n for n, op in ops.items() if _is_site(n, op, ops)]
    place = free_name(traced, "act")
    traced.add_submodule(place, nn.Module())
    for node in sites:
        _insert_quantizers(traced, node, ops, layers, config, place)
    traced.graph.lint()
    traced.recompile()
    mark(traced, Origin(config, tuple(example.shape)))
    for name, quantizer in act_quantizers(traced).items():
        quantizer.name = name
    propagate_shapes(traced, example)
    return traced


def mark(model: nn.Module, origin: Origin) -> None:
    """Note in ``model`` how it was prepared."""
    for quantizer in act_quantizers(model).values():
        quantizer.origin = origin


def config_of(prepared: nn.Module) -> QuantConfig:
    """Return the settings that ``prepared`` was made with. Raises TQ654 for any other network."""
    origin = origin_of(prepared) if isinstance(prepared, fx.GraphModule) else None
    if origin is None or not isinstance(origin.config, QuantConfig):
        raise error("TQ654", f"{type(prepared).__name__} has no fake quantization")
    return origin.config


def _refuse_prepared(model: nn.Module) -> None:
    origin = origin_of(model)
    if origin is not None:
        raise error(
            "TQ657",
            "the network is converted already" if origin.converted else
            "the network is prepared already",
            "Prepare the float network; step_down goes to fewer bits, with its thresholds.",
        )  # fmt: skip


def act_quantizers(model: nn.Module) -> dict[str, ActQuantizer]:
    """Every activation quantizer by name, in graph order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ActQuantizer)}


def quant_layers(model: nn.Module) -> dict[str, QuantConv2d | QuantLinear]:
    """Every quantized layer by name, in graph order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantConv2d | QuantLinear)}


def input_quantizer(model: fx.GraphModule, node: fx.Node, operand: int = 0) -> ActQuantizer:
    """Quantizer of a value that ``node`` reads, seen through what only moves integers."""
    source = tensor_inputs(node)[operand]
    while op_of(model, source).kind in PASS_THROUGH:
        source = tensor_inputs(source)[0]
    found = module_of(model, source)
    if not isinstance(found, ActQuantizer):
        raise ValueError(f"{node.name} reads {source.name}, which no quantizer follows")
    return found


def input_quantizers(model: fx.GraphModule) -> dict[str, ActQuantizer]:
    """Quantizer of each layer's input, by the layer's name."""
    return {
        str(node.target): input_quantizer(model, node)
        for node, op in operations(model)
        if op.kind in _LAYERS
    }


def _refuse_loose_batch_norm(ops: dict[fx.Node, Op]) -> None:
    for node, op in ops.items():
        if op.kind == "batch_norm" and ops[tensor_inputs(node)[0]].kind not in _LAYERS:
            raise error(
                "TQ651",
                "BatchNorm that does not follow a convolution or dense layer",
                "Move it behind one, or replace it by a 1x1 depthwise convolution.",
                node=str(node.target),
            )


def _layers(ops: dict[fx.Node, Op], config: QuantConfig) -> dict[fx.Node, _Layer]:
    nodes = [n for n, op in ops.items() if op.kind in _LAYERS]
    ends = {nodes[0], nodes[-1]} if nodes and config.first_last_bits is not None else set()
    made = {}
    for node in nodes:
        bits = config.first_last_bits if node in ends else config.weight_bits
        low = node not in ends and (config.act_bits < 8 or config.act_quantizer != "uniform")
        made[node] = _Layer(node, ops[node], bits or config.weight_bits, low, node in ends)
    return made


def _batch_norm_after(node: fx.Node, ops: dict[fx.Node, Op]) -> bool:
    return len(node.users) == 1 and ops.get(next(iter(node.users)), Op("")).kind == "batch_norm"


def _quantize_layer(
    traced: fx.GraphModule, layer: _Layer, config: QuantConfig, *, normalize: bool
) -> None:
    module = module_of(traced, layer.node)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    if not bool(torch.isfinite(module.weight).all()):
        raise error("TQ653", "weights hold NaN or infinity", node=str(layer.node.target))
    kind = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
    made: nn.Module = kind.__new__(kind)
    # Shares the dict of parameters, not only what is in it: layers of several calls stay tied when
    # a parameter is replaced, as load_state_dict(assign=True) does, and in copies and pickles.
    made.__dict__.update(module.__dict__)
    made._modules = {}
    settings = config if normalize else replace(config, normalize_weights=False)
    made.weight_quantizer = weight_quantizer(
        settings,
        module.weight.detach(),
        layer.bits,
        plain=layer.plain,
        node=str(layer.node.target),
    )
    name = str(layer.node.target)
    if not isinstance(module, QuantConv2d | QuantLinear):
        traced.set_submodule(name, made)
        return
    name = free_name(traced, f"{name}_call")
    traced.add_submodule(name, made)
    layer.node.target = name


def _freezing_batch_norms(
    traced: fx.GraphModule, ops: dict[fx.Node, Op], config: QuantConfig
) -> None:
    calls = Counter(node.target for node, op in ops.items() if op.kind == "batch_norm")
    for node, op in ops.items():
        if op.kind != "batch_norm":
            continue
        module = module_of(traced, node)
        assert module is not None
        if isinstance(module, _FreezingBatchNorm):
            continue
        kind = FreezingBatchNorm2d if isinstance(module, nn.BatchNorm2d) else FreezingBatchNorm1d
        made = kind.__new__(kind)
        made.__dict__.update(module.__dict__)
        made._buffers = dict(module._buffers)
        made._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
        made.register_buffer("steps", torch.tensor(0))
        made.freeze_step = config.freeze_step
        made.calls = calls[node.target]
        traced.set_submodule(str(node.target), made)


def _is_site(node: fx.Node, op: Op, ops: dict[fx.Node, Op]) -> bool:
    """Whether the value of ``node`` lies in memory as integers of its own."""
    if op.kind in PASS_THROUGH:
        return False
    users = list(node.users)
    if len(users) != 1 or users[0] not in ops:
        return True
    return ops[users[0]].kind not in FUSED_AFTER | {"batch_norm"}


def _is_inserted(node: fx.Node) -> bool:
    model = node.graph.owning_module
    assert model is not None
    return isinstance(module_of(model, node), ActQuantizer)


def _non_negative(node: fx.Node, ops: dict[fx.Node, Op]) -> bool:
    if _is_inserted(node):
        return _non_negative(node.all_input_nodes[0], ops)
    op = ops.get(node, Op("shape"))
    if op.kind in NON_NEGATIVE or (op.kind == "clip" and op.low >= 0.0):
        return True
    closed = PASS_THROUGH | {"avg_pool", "global_avg_pool", "cat", "add", "mul"}
    inputs = [n for n in node.all_input_nodes if n in ops or _is_inserted(n)]
    return op.kind in closed and bool(inputs) and all(_non_negative(n, ops) for n in inputs)


def _readers(node: fx.Node, ops: dict[fx.Node, Op]) -> list[tuple[fx.Node, fx.Node]]:
    """Operations that read the value, as (reader, its direct input), through moved integers."""
    found: list[tuple[fx.Node, fx.Node]] = []
    for user in node.users:
        if user in ops and ops[user].kind in PASS_THROUGH:
            found += _readers(user, ops)
        elif user in ops or user.op == "output":
            found.append((user, node))
    return found


def _insert_quantizers(
    traced: fx.GraphModule,
    node: fx.Node,
    ops: dict[fx.Node, Op],
    layers: dict[fx.Node, _Layer],
    config: QuantConfig,
    place: str,
) -> None:
    readers = _readers(node, ops)
    low = [pair for pair in readers if pair[0] in layers and layers[pair[0]].low_input]
    is_input = node.op == "placeholder"
    signed = is_input or not _non_negative(node, ops)
    only_low = len(low) == len(readers) == 1 and not is_input
    probabilities = ops[node].kind == "softmax" and not only_low
    # The input is data, and probabilities have a grid of their own: nothing gains by moving them.
    observed = (is_input or probabilities) and config.act_range == "learned"
    settings = replace(config, act_range="max") if observed else config
    bits = config.act_bits if only_low else 8
    name = f"{place}.{node.name}"
    plain = not only_low and (config.act_bits < 8 or config.act_quantizer != "uniform")
    made = act_quantizer(settings, bits, signed=signed, plain=plain or probabilities)
    if probabilities:
        made.observer = FixedRange(PROBABILITY_HIGH)
    traced.add_submodule(name, made)
    with traced.graph.inserting_after(node):
        quantized = traced.graph.call_module(name, (node,))
    node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
    if only_low:
        return
    for reader, source in low:
        name = f"{place}.{reader.name}_input"
        traced.add_submodule(name, act_quantizer(config, config.act_bits, signed=signed))
        origin = quantized if source is node else source
        with traced.graph.inserting_before(reader):
            lowered = traced.graph.call_module(name, (origin,))
        reader.replace_input_with(origin, lowered)


def require_ranges(model: nn.Module) -> None:
    """Raise TQ653 when a quantizer of a prepared network has no range, or a tensor no number."""
    missing = [name for name, q in act_quantizers(model).items() if not bool(q.ready)]
    if missing:
        raise error("TQ653", f"{len(missing)} quantizers have seen no data, first {missing[0]}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise error("TQ653", f"{name} holds NaN or infinity")
