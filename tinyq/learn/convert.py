"""From fake quantization to integers: the network that the exporter writes, still in PyTorch."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from tinyq.errors import error
from tinyq.learn.biases import folded_bias, following_norm, least_moved
from tinyq.learn.layers import (
    IntegerAdd,
    IntegerConv2d,
    IntegerGlobalAvgPool2d,
    IntegerLinear,
    QuantConv2d,
    QuantLinear,
)
from tinyq.learn.prepare import act_quantizers, config_of, input_quantizer, mark, require_ranges
from tinyq.learn.quantizers import ActQuantizer, require_frozen
from tinyq.learn.trace import (
    Op,
    free_name,
    module_of,
    operations,
    origin_of,
    register_module,
    shape_of,
    tensor_inputs,
)

register_module(IntegerConv2d, lambda node, module: Op("conv"))
register_module(IntegerAdd, lambda node, module: Op("add"))
register_module(IntegerLinear, lambda node, module: Op("linear"))
register_module(
    IntegerGlobalAvgPool2d, lambda node, module: Op("global_avg_pool", keep=module.keep)
)

# Biases stay this far inside int32, so that an accumulator plus its bias does too.
_BIAS_LIMIT = 2.0**30


def convert(model: nn.Module) -> fx.GraphModule:
    """Copy of a prepared network with integer weights, BatchNorm folded and ranges fixed.

    Its forward computes, in float32, what the exported file computes: biases are rounded to the
    accumulator's grid. Raises TQ653 when a quantizer has no range yet, TQ654 for another network,
    TQ657 for a converted one, TQ658 when INQ has left weights in float.
    """
    config_of(model)
    origin = origin_of(model)
    assert origin is not None
    if origin.converted:
        raise error("TQ657", "the network is converted already", "Use it as it is.")
    require_ranges(model)
    require_frozen(model)
    made = copy.deepcopy(model).eval()
    assert isinstance(made, fx.GraphModule)
    _match_meta(made, model)
    for quantizer in act_quantizers(made).values():
        quantizer.observing = False
    for node, op in operations(made):
        if op.kind in ("conv", "linear") and isinstance(
            module_of(made, node), QuantConv2d | QuantLinear
        ):
            _convert_layer(made, node)
    for node, op in operations(made):
        if op.kind in ("conv", "linear"):
            _tell_output_step(made, node)
        elif op.kind == "global_avg_pool":
            _convert_average(made, node, keep=op.keep)
        elif op.kind == "add" and len({shape_of(n) for n in tensor_inputs(node)}) == 1:
            _convert_add(made, node)
    made.graph.lint()
    made.recompile()
    mark(made, replace(origin, converted=True))
    return made


def is_converted(model: nn.Module) -> bool:
    """Whether :func:`convert` made ``model``."""
    origin = origin_of(model)
    return isinstance(model, fx.GraphModule) and origin is not None and origin.converted


def _match_meta(made: fx.GraphModule, model: nn.Module) -> None:
    """Shapes of the original's nodes: a copied graph may have lost them."""
    assert isinstance(model, fx.GraphModule)
    for new, old in zip(made.graph.nodes, model.graph.nodes, strict=True):
        if "tensor_meta" in old.meta:
            new.meta["tensor_meta"] = old.meta["tensor_meta"]


@torch.no_grad()
def _convert_layer(model: fx.GraphModule, node: fx.Node) -> None:
    layer = module_of(model, node)
    assert isinstance(layer, QuantConv2d | QuantLinear)
    norm = following_norm(model, node)
    weight, step = _widen(*layer.weight_quantizer.integers(layer.weight))
    bias, factor = folded_bias(layer, norm)
    weight = weight * factor.sign().reshape((-1,) + (1,) * (weight.dim() - 1))
    step = step * factor.abs()
    if norm is not None:
        (user,) = node.users
        user.replace_all_uses_with(node)
        model.graph.erase_node(user)
    before, after = input_quantizer(model, node), _output_quantizer(model, node)
    input_step = before.exported_step().detach().clone()
    weight, step = _keep_bias_in_int32(weight, step, bias, input_step, str(node.target))
    unit = input_step * step
    bias_int = least_moved(bias.double() / unit.double(), weight, unit, before, after, norm)
    kind = IntegerConv2d if isinstance(layer, nn.Conv2d) else IntegerLinear
    model.set_submodule(str(node.target), kind(layer, weight, step, bias_int, input_step))


def _output_quantizer(model: fx.GraphModule, node: fx.Node) -> ActQuantizer:
    """Quantizer behind ``node`` and its activation."""
    after = next(iter(node.users))
    while not isinstance(found := module_of(model, after), ActQuantizer):
        after = next(iter(after.users))
    return found


def _output_step(model: fx.GraphModule, node: fx.Node) -> Tensor:
    """Step of the integers behind ``node``."""
    return _output_quantizer(model, node).rounded_step().detach().clone()


def _tell_output_step(model: fx.GraphModule, node: fx.Node) -> None:
    layer = module_of(model, node)
    assert isinstance(layer, IntegerConv2d)
    layer.output_step.copy_(_output_step(model, node))


def _convert_average(model: fx.GraphModule, node: fx.Node, *, keep: bool) -> None:
    input_step = input_quantizer(model, node).exported_step().detach().clone()
    average = IntegerGlobalAvgPool2d(input_step, _output_step(model, node), keep=keep)
    _replace(model, node, average, tensor_inputs(node)[:1])


def _convert_add(model: fx.GraphModule, node: fx.Node) -> None:
    operands = [input_quantizer(model, node, k) for k in range(2)]
    steps = [q.exported_step().detach() for q in operands]
    zeros = [q.exported_zero for q in (*operands, _output_quantizer(model, node))]
    made = IntegerAdd(torch.stack([*steps, _output_step(model, node)]), torch.tensor(zeros))
    _replace(model, node, made, tensor_inputs(node))


def _replace(
    model: fx.GraphModule, node: fx.Node, module: nn.Module, inputs: list[fx.Node]
) -> None:
    """Put a call of ``module`` in the place of ``node``."""
    name = free_name(model, f"{node.name}_integer")
    model.add_submodule(name, module)
    with model.graph.inserting_before(node):
        made = model.graph.call_module(name, tuple(inputs))
    made.meta["tensor_meta"] = node.meta["tensor_meta"]
    node.replace_all_uses_with(made)
    model.graph.erase_node(node)


def _widen(weight: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply low-bit levels by the largest factor that int8 has room for.

    Biases are integers in units of the input's step times the weight's. With levels of -1, 0 and 1
    that unit is so coarse that rounding the bias to it costs more than everything else together.
    The common factor makes it finer and changes nothing else: a compiler that divides the integers
    by their greatest common divisor has the levels again, powers of two among them.
    """
    largest = float(weight.abs().max())
    factor = max(1.0, 127.0 // largest) if largest > 0 else 1.0
    return weight * factor, step / factor


def _keep_bias_in_int32(
    weight: Tensor, step: Tensor, bias: Tensor, input_step: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    """Coarsen the weights of channels whose bias would not fit int32.

    That happens where BatchNorm's factor has died: the channel is its bias, the weights add nothing
    that the output's integers could show, and their step is made as large as the bias needs.
    """
    needed = bias.abs() / (_BIAS_LIMIT * input_step)
    needed = torch.where((step <= 0) & (needed <= 0), torch.ones_like(step), needed)
    short = step < needed
    if not bool(short.any()):
        return weight, step
    shape = (-1,) + (1,) * (weight.dim() - 1)
    coarse = torch.round(weight * (step / needed.clamp_min(1e-38)).reshape(shape))
    warnings.warn(
        f"{name}: {int(short.sum())} channels contribute almost nothing beside their bias; their "
        f"weights were rounded to a coarser step (channels {short.nonzero().flatten().tolist()})",
        stacklevel=2,
    )
    return torch.where(short.reshape(shape), coarse, weight), torch.where(short, needed, step)
