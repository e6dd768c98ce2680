"""What a traced network computes, whoever wrote it.

A network says "average over height and width" as ``AdaptiveAvgPool2d(1)``, ``x.mean((2, 3))`` or
``F.adaptive_avg_pool2d``; here they become one :class:`Op`. Placing quantizers, converting and
exporting all read this table, so that an operator is supported everywhere or refused by name.

Tracing uses torch.fx rather than torch.export: fx keeps the modules, hence their names in state
dicts, their train and eval behaviour, and BatchNorm as a module that can be frozen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from tinyq.errors import error


@dataclass(frozen=True)
class Op:
    """One tensor operation of the traced graph. ``kind`` decides which of the other fields count.

    Pairs are (height, width). ``low`` and ``high`` belong to ``clip``, ``slope`` to
    ``leaky_relu``, ``dim`` to ``cat``, ``softmax`` and ``global_avg_pool`` (keepdim as ``keep``).
    """

    kind: str
    kernel_hw: tuple[int, int] = (1, 1)
    stride_hw: tuple[int, int] = (1, 1)
    pad_hw: tuple[int, int] = (0, 0)
    dilation_hw: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    low: float = 0.0
    high: float = 0.0
    slope: float = 0.01
    dim: int = 1
    keep: bool = True


# Operators that move or select integers without making new ones: no quantizer follows them.
PASS_THROUGH = frozenset({"max_pool", "reshape", "identity"})
# Activations that share the quantizer of what they follow: nothing is stored between the two.
FUSED_AFTER = frozenset({"relu", "clip"})
# Outputs known to be at least zero, which need no sign.
NON_NEGATIVE = frozenset({"relu", "sigmoid", "softmax", "hard_sigmoid"})


def trace(model: nn.Module, example: Tensor, *, leaf: tuple[type, ...] = ()) -> fx.GraphModule:
    """Trace ``model`` and record the shape of every value for ``example`` [N, ...].

    Modules of the types in ``leaf`` stay whole, as those of torch.nn do. Raises TQ650 when the
    network's control flow depends on its data.
    """

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, leaf) or super().is_leaf_module(m, module_qualified_name)

    try:
        graph = Tracer().trace(model)
    except Exception as exc:  # fx raises many types, all of them about the user's forward
        raise error("TQ650", f"{type(model).__name__}.forward cannot be traced: {exc}") from exc
    traced = fx.GraphModule(model, graph)
    propagate_shapes(traced, example)
    return traced


def propagate_shapes(traced: fx.GraphModule, example: Tensor) -> None:
    """Write ``meta["tensor_meta"]`` of every node by running ``example`` without side effects."""
    was_training = traced.training
    traced.eval()
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    traced.train(was_training)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that ``node`` computes."""
    return tuple(node.meta["tensor_meta"].shape)


def is_tensor(node: fx.Node) -> bool:
    """Whether ``node`` computes one tensor (and not a size, a number or a tuple)."""
    return hasattr(node.meta.get("tensor_meta"), "shape")


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Tensors that ``node`` reads, in order."""
    flat: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), flat.append)  # unlike all_input_nodes, keeps x + x twice
    return [n for n in flat if is_tensor(n)]


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that ``node`` calls, or None."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1]) if len(value) > 1 else (value[0], value[0])


def _max_pool(
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Op:
    return Op(
        "max_pool",
        kernel_hw=_pair(kernel),
        stride_hw=_pair(kernel if stride is None else stride),
        pad_hw=_pair(padding),
        dilation_hw=_pair(dilation),
        ceil_mode=ceil_mode,
    )


def _avg_pool(
    node: fx.Node,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Op:
    whole = shape_of(tensor_inputs(node)[0])[-2:] == _pair(kernel)
    if whole and _pair(padding) == (0, 0):
        return Op("global_avg_pool")
    return Op(
        "avg_pool",
        kernel_hw=_pair(kernel),
        stride_hw=_pair(stride or kernel),
        pad_hw=_pair(padding),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )


def _adaptive(node: fx.Node, output_size: int | tuple[int | None, ...]) -> Op:
    height, width = shape_of(tensor_inputs(node)[0])[-2:]
    size = output_size
    pair = (size, size) if isinstance(size, int) else (size[0], size[-1])
    out_h, out_w = pair[0] or height, pair[1] or width
    if (out_h, out_w) == (1, 1):
        return Op("global_avg_pool")
    if height % out_h or width % out_w:
        raise error(
            "TQ651",
            f"adaptive pooling of {height}x{width} to {out_h}x{out_w}: windows of several sizes",
            "Choose an output size that divides the input's.",
            node=node.name,
        )
    window = (height // out_h, width // out_w)
    return Op("avg_pool", kernel_hw=window, stride_hw=window)


_ModuleRule = Callable[[fx.Node, nn.Module], Op]
_MODULES: dict[type, _ModuleRule] = {
    nn.Conv2d: lambda n, m: Op("conv"),
    nn.Linear: lambda n, m: Op("linear"),
    nn.BatchNorm2d: lambda n, m: Op("batch_norm"),
    nn.BatchNorm1d: lambda n, m: Op("batch_norm"),
    nn.ReLU: lambda n, m: Op("relu"),
    nn.ReLU6: lambda n, m: Op("clip", low=0.0, high=6.0),
    nn.Hardtanh: lambda n, m: Op("clip", low=m.min_val, high=m.max_val),
    nn.LeakyReLU: lambda n, m: Op("leaky_relu", slope=m.negative_slope),
    nn.Sigmoid: lambda n, m: Op("sigmoid"),
    nn.Tanh: lambda n, m: Op("tanh"),
    nn.Hardswish: lambda n, m: Op("hard_swish"),
    nn.Hardsigmoid: lambda n, m: Op("hard_sigmoid"),
    nn.Softmax: lambda n, m: Op("softmax", dim=-1 if m.dim is None else m.dim),
    nn.MaxPool2d: lambda n, m: _max_pool(
        m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode
    ),
    nn.AvgPool2d: lambda n, m: _avg_pool(
        n, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad
    ),
    nn.AdaptiveAvgPool2d: lambda n, m: _adaptive(n, m.output_size),
    nn.Flatten: lambda n, m: Op("reshape"),
    nn.Unflatten: lambda n, m: Op("reshape"),
    nn.Identity: lambda n, m: Op("identity"),
    nn.Dropout: lambda n, m: Op("identity"),
    nn.Dropout2d: lambda n, m: Op("identity"),
}


def _mean(node: fx.Node, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Op:
    rank = len(shape_of(tensor_inputs(node)[0]))
    dims = {d % rank for d in ((dim,) if isinstance(dim, int) else tuple(dim or ()))}
    if rank != 4 or dims != {2, 3}:
        raise error("TQ651", f"mean over dimensions {sorted(dims)}", node=node.name)
    return Op("global_avg_pool", keep=keepdim)


def _args(node: fx.Node) -> tuple[object, ...]:
    return tuple(node.args[1:])


_simple = {
    "relu": [F.relu, torch.relu, torch.relu_, "relu", "relu_"],
    "sigmoid": [F.sigmoid, torch.sigmoid, "sigmoid"],
    "tanh": [F.tanh, torch.tanh, "tanh"],
    "hard_swish": [F.hardswish],
    "hard_sigmoid": [F.hardsigmoid],
    "add": [operator.add, operator.iadd, torch.add, "add", "add_"],
    "sub": [operator.sub, operator.isub, torch.sub, "sub", "sub_"],
    "mul": [operator.mul, operator.imul, torch.mul, "mul", "mul_"],
    "reshape": [
        torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze,
        "flatten", "view", "reshape", "squeeze", "unsqueeze",
    ],
    "identity": [F.dropout, F.dropout2d, "contiguous", "detach", "clone"],
}  # fmt: skip
_FUNCTIONS: dict[object, Callable[..., Op]] = {
    target: (lambda node, *a, _kind=kind, **k: Op(_kind))
    for kind, targets in _simple.items()
    for target in targets
}
_FUNCTIONS.update(
    {
        F.relu6: lambda node, *a, **k: Op("clip", low=0.0, high=6.0),
        F.hardtanh: lambda node, lo=-1.0, hi=1.0, **k: Op("clip", low=lo, high=hi),
        F.leaky_relu: lambda node, slope=0.01, **k: Op("leaky_relu", slope=slope),
        F.softmax: lambda node, dim=-1, **k: Op("softmax", dim=dim),
        torch.softmax: lambda node, dim=-1, **k: Op("softmax", dim=dim),
        torch.cat: lambda node, dim=0: Op("cat", dim=dim),
        torch.concat: lambda node, dim=0: Op("cat", dim=dim),
        F.max_pool2d: lambda node, *a, **k: _max_pool(*a, **k),
        F.avg_pool2d: _avg_pool,
        F.adaptive_avg_pool2d: _adaptive,
        torch.mean: _mean,
        "mean": _mean,
    }
)


_TWO_TENSORS = frozenset(t for kind in ("add", "sub", "mul") for t in _simple[kind])


def _require_two_tensors(node: fx.Node) -> None:
    """A number, or an input used twice, would need another rule than two quantized tensors."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
        raise error(
            "TQ651",
            f"{node.name} combines {node.args} {node.kwargs}",
            "Only two tensors can be added, subtracted or multiplied; fold constants into a layer.",
            node=node.name,
        )


def op_of(traced: fx.GraphModule, node: fx.Node) -> Op:
    """Say what ``node`` computes. Raises TQ651 for an operator that tinyq does not know."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        for kind in type(module).__mro__:
            if kind in _MODULES:
                return _MODULES[kind](node, module)
        raise error("TQ651", f"module {type(module).__name__}", node=str(node.target))
    if node.op in ("call_function", "call_method"):
        rule = _FUNCTIONS.get(node.target)
        if rule is not None and node.target in _TWO_TENSORS:
            _require_two_tensors(node)
        if rule is None:
            name = getattr(node.target, "__name__", str(node.target))
            raise error("TQ651", f"function {name}", node=node.name)
        return rule(node, *_args(node), **node.kwargs)
    return Op(node.op)


def operations(traced: fx.GraphModule) -> list[tuple[fx.Node, Op]]:
    """Every node that computes a tensor, with its operation, in execution order."""
    return [
        (node, op_of(traced, node))
        for node in traced.graph.nodes
        if is_tensor(node) and node.op not in ("output", "get_attr")
    ]


def register_module(kind: type[nn.Module], rule: _ModuleRule) -> None:
    """Say what operation modules of type ``kind`` are."""
    _MODULES[kind] = rule
