"""What a traced network computes, whoever wrote it.

A network says "average over height and width" as ``AdaptiveAvgPool2d(1)``, ``x.mean((2, 3))`` or
``F.adaptive_avg_pool2d``; here they become one :class:`Op`. Placing quantizers, converting and
exporting all read this table, so that an operator is supported everywhere or refused by name.

Tracing uses torch.fx rather than torch.export: fx keeps the modules, hence their names in state
dicts, their train and eval behaviour, and BatchNorm as a module that can be frozen.
"""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata, _extract_tensor_metadata

from tinyq.errors import TinyqError, error

_Pair = int | tuple[int, ...]


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


@dataclass(frozen=True)
class Origin:
    """How a network was prepared. Each of its activation quantizers holds it as ``origin``, since
    copies and pickles of a GraphModule keep modules and lose everything else.

    ``config`` is the QuantConfig, ``shape`` that of the example [N, ...].
    """

    config: object
    shape: tuple[int, ...]
    converted: bool = False


def origin_of(model: nn.Module) -> Origin | None:
    """How ``model``, or a part of it, was prepared; None when it was not."""
    found = (getattr(m, "origin", None) for m in model.modules())
    return next((o for o in found if isinstance(o, Origin)), None)


class _Symbol(fx.Proxy):
    """A value of the traced network, which ``+=``, ``-=`` and ``*=`` change in place."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class _Tracer(fx.Tracer):
    """fx's tracer with one input: parameters of forward that have a default keep it."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Symbol that, unlike fx's own, tells ``y += x`` from ``y + x``."""
        return _Symbol(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Arguments with which ``root_fn`` is called: the network and a placeholder."""
        _, *inputs = inspect.signature(inspect.unwrap(root_fn)).parameters.values()
        single = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [p for p in inputs if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        first = inputs[0] if inputs else None
        if first is None or first.kind not in single or any(p is not first for p in needed):
            raise error(
                "TQ657",
                f"forward takes ({', '.join(map(str, inputs))})",
                "Networks have one input: wrap the network in a module whose forward takes one "
                "tensor, and concatenate or drop the others there.",
                node=type(self.root).__name__,
            )
        return root_fn, [self.root, self.create_proxy("placeholder", first.name, (), {})]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Refuse a branch; one on a shape has another remedy than one on values."""
        self._refuse_shape(obj)
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Refuse a loop, as for a branch."""
        self._refuse_shape(obj)
        return super().iter(obj)

    def _refuse_shape(self, obj: fx.Proxy) -> None:
        if _is_shape(obj.node):
            raise error(
                "TQ650",
                f"{type(self.root).__name__}.forward branches on, loops over or asserts a shape",
                "Shapes are fixed when the network is deployed: choose the branch, or the number "
                "of rounds, in __init__ from constants, and leave the assertion out.",
                node=obj.node.name,
            )


_SHAPE_METHODS = frozenset({"size", "dim", "numel", "ndimension", "nelement"})
_SHAPE_ATTRIBUTES = frozenset({"shape", "ndim"})


def _asks_shape(node: fx.Node) -> bool:
    """Whether ``node`` asks a tensor for its shape."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.target is getattr and len(node.args) > 1 and node.args[1] in _SHAPE_ATTRIBUTES


def _is_shape(node: fx.Node) -> bool:
    """Whether ``node`` is computed from shapes alone."""
    if _asks_shape(node):
        return True
    inputs = node.all_input_nodes
    return node.op in ("call_function", "call_method") and bool(inputs) and all(
        map(_is_shape, inputs)
    )  # fmt: skip


def trace(model: nn.Module, example: Tensor, *, trains: bool = True) -> fx.GraphModule:
    """Trace a copy of ``model`` and record the shape of every value for ``example`` [N, ...].

    What the graph computes in eval mode is what ``model`` computes in eval mode; nothing in it is
    in place, and functions of dropout are modules. Raises TQ650 when the control flow depends on
    the data, TQ651 for what has no place in such a graph, TQ657 for a network that is not plain
    float32 and for an example that it does not take. Warns, when it ``trains``, that forward does
    more in training mode than dropout.
    """
    _require_plain(model)
    if not isinstance(example, Tensor):
        raise error(
            "TQ657",
            f"the example is {type(example).__module__}.{type(example).__name__}, not a tensor",
            "Give one float32 tensor [N, ...]; torch.from_numpy makes one of an array.",
        )
    if example.dtype != torch.float32:
        raise error("TQ657", f"the example is {example.dtype}", "Convert it: example.float().")
    copied = copy.deepcopy(model)
    training = _graph_or_none(copied.train())
    graph = _graph(copied.eval())
    if training is None or _calls(training) != _calls(graph):
        training = None
        if trains:
            warnings.warn(
                f"{type(model).__name__}.forward computes something else in training mode; the "
                "traced network computes in both modes what that in eval mode does",
                stacklevel=3,
            )
    for node in graph.nodes:
        node.type = None  # annotations that are strings cannot be pickled
    traced = fx.GraphModule(copied, graph, type(model).__name__)
    propagate_shapes(traced, example)
    _modules_of_dropout(traced, training)
    _make_functional(traced)
    traced.graph.lint()
    traced.recompile()
    propagate_shapes(traced, example)
    return traced.train(model.training)


def _require_plain(model: nn.Module) -> None:
    """Parameters that are float32 and belong to their module alone."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not {"weight", "bias"} <= set(
            module._parameters
        ):
            raise error(
                "TQ651",
                f"{type(module).__name__} whose weight or bias is computed from other parameters",
                "Make it plain first: torch.nn.utils.parametrize.remove_parametrizations(module, "
                "'weight'), remove_weight_norm, remove_spectral_norm or prune.remove.",
                node=name,
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise error(
                "TQ657",
                f"{name} is {tensor.dtype}",
                "Convert the network to float32 first: model.float().",
                node=name.rpartition(".")[0],
            )


def _graph(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except TinyqError:
        raise
    except Exception as exc:  # fx raises many types, all of them about the user's forward
        raise error("TQ650", f"{type(model).__name__}.forward cannot be traced: {exc}") from exc


def _graph_or_none(model: nn.Module) -> fx.Graph | None:
    """Graph in training mode, which only tells which dropout acts there."""
    try:
        return _graph(model)
    except TinyqError:
        return None


def _calls(graph: fx.Graph) -> list[object]:
    """What ``graph`` computes, but for the mode of dropout, to be compared."""
    return [
        (
            node.op,
            node.target,
            repr(node.args),
            repr({k: v for k, v in node.kwargs.items() if k != "training"}),
        )
        for node in graph.nodes
    ]


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shape and dtype of every tensor."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        """Run ``n``; what PyTorch refuses becomes TQ657."""
        try:
            result = super().run_node(n)
        except TinyqError:
            raise
        except Exception as exc:
            shapes = [list(shape_of(i)) for i in n.all_input_nodes if "tensor_meta" in i.meta]
            raise error(
                "TQ657",
                f"the network does not run on the example: input {shapes or ''}: {exc}",
                "Give an example as the network takes it in training: a float32 tensor [N, ...] on "
                "its device.",
                node=str(n.target) if n.op == "call_module" else n.name,
            ) from exc
        if isinstance(result, Tensor):
            n.meta["tensor_meta"] = _extract_tensor_metadata(result)
        return result


def propagate_shapes(traced: fx.GraphModule, example: Tensor) -> None:
    """Write ``meta["tensor_meta"]`` of every node by running ``example`` without side effects."""
    modes = {m: m.training for m in traced.modules()}
    traced.eval()
    try:
        with torch.no_grad():
            _Shapes(traced).run(example.clone())
    finally:
        for module, mode in modes.items():
            module.training = mode


def _meta(node: fx.Node) -> TensorMetadata | None:
    """Shape and dtype of ``node``; found anew where a pickled network has lost them."""
    found = node.meta.get("tensor_meta")
    owner = node.graph.owning_module
    if found is None and owner is not None:
        first = next(iter(node.graph.nodes))
        origin = None if "tensor_meta" in first.meta else origin_of(owner)
        if origin is not None:
            tensors = [*owner.parameters(), *owner.buffers()]
            propagate_shapes(owner, torch.zeros(origin.shape, device=tensors[0].device))
            found = node.meta.get("tensor_meta")
    return found if isinstance(found, TensorMetadata) else None


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that ``node`` computes."""
    meta = _meta(node)
    assert meta is not None, f"{node.name} is not a tensor"
    return tuple(meta.shape)


def is_tensor(node: fx.Node) -> bool:
    """Whether ``node`` computes one tensor (and not a size, a number or a tuple)."""
    return _meta(node) is not None


def free_name(traced: nn.Module, wanted: str) -> str:
    """``wanted``, a dotted path, with a number behind it where the network has that already."""
    parent, _, leaf = wanted.rpartition(".")
    holder, name, k = traced.get_submodule(parent), leaf, 0
    while hasattr(holder, name):
        k += 1
        name = f"{leaf}_{k}"
    return f"{parent}.{name}" if parent else name


# --- what trains differently, and what is done in place -------------------------------------------
_DROPOUT: dict[object, type[nn.Dropout] | type[nn.Dropout2d]] = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
}


def _modules_of_dropout(traced: fx.GraphModule, training: fx.Graph | None) -> None:
    """Make modules, which follow train() and eval(), of functions, whose mode is traced once.

    ``training`` is the same graph in training mode: a function that does nothing there goes away.
    """
    nodes = list(traced.graph.nodes)
    others = nodes if training is None else list(training.nodes)
    for node, other in zip(nodes, others, strict=True):
        kind = _DROPOUT.get(node.target)
        if kind is None:
            continue
        if node.kwargs["training"]:
            raise error(
                "TQ651",
                f"{kind.__name__.lower()} that also acts in eval mode",
                "Give it training=self.training, or use nn.Dropout.",
                node=node.name,
            )
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if other is node or other.kwargs["training"]:
            name = free_name(traced, node.name)
            probability = node.kwargs["p"]
            assert isinstance(probability, int | float)
            traced.add_submodule(name, kind(probability, inplace=bool(node.kwargs["inplace"])))
            with traced.graph.inserting_before(node):
                made = traced.graph.call_module(name, (source,))
            made.meta["tensor_meta"] = node.meta["tensor_meta"]
        else:
            made = source
        node.replace_all_uses_with(made)
        traced.graph.erase_node(node)


_IN_PLACE: dict[object, Callable[..., object]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
    torch.clamp_: torch.clamp,
    torch.clip_: torch.clamp,
    F.hardtanh_: F.hardtanh,
    F.leaky_relu_: F.leaky_relu,
}


def _make_functional(traced: fx.GraphModule) -> None:
    """Replace in-place operations, which would overwrite what a quantizer or a recorder keeps.

    Whoever reads the overwritten value afterwards reads the result instead. Raises TQ651 where it
    is read through a view, which would need the result in another shape.
    """
    order = {node: k for k, node in enumerate(traced.graph.nodes)}
    base: dict[fx.Node, fx.Node] = {}  # the value whose memory a node shares
    for node in list(order):
        source = next(iter(node.all_input_nodes), None)
        in_place = _is_in_place(traced, node)
        overwrites = in_place and is_tensor(node)  # numbers are not overwritten
        shares = source is not None and (overwrites or _may_share(traced, node))
        base[node] = base[source] if shares and source is not None else node
        if in_place:
            _without_in_place(node)
        if not overwrites or source is None:
            continue
        source.replace_all_uses_with(
            node, delete_user_cb=lambda user, at=order[node]: order[user] > at
        )
        for other in order:
            late = [u for u in other.users if order[u] > order[node] and not _asks_shape(u)]
            if other not in (node, source) and base.get(other) is base[node] and late:
                raise error(
                    "TQ651",
                    f"{late[0].name} reads {other.name}, a view of what {node.name} overwrites",
                    "Do it without inplace=True (or without the underscore, or +=).",
                    node=node.name,
                )
    for module in traced.modules():
        if hasattr(module, "inplace"):
            module.inplace = False


def _is_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and str(node.target)[:-1] in _FUNCTIONS
    return node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))


def _without_in_place(node: fx.Node) -> None:
    """Make ``node`` compute its value without overwriting another."""
    if node.target in _IN_PLACE:
        node.target = _IN_PLACE[node.target]
    elif node.op == "call_method":
        node.target = str(node.target)[:-1]
    elif "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}


def _may_share(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the result of ``node`` may lie in the memory of its input."""
    if node.op == "call_module":
        kinds = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)
        return isinstance(traced.get_submodule(str(node.target)), kinds)
    return node.target in _VIEWS


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Tensors that ``node`` reads, in order."""
    flat: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), flat.append)  # unlike all_input_nodes, keeps x + x twice
    return [n for n in flat if is_tensor(n)]


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that ``node`` calls, or None."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _pair(value: _Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1]) if len(value) > 1 else (value[0], value[0])


def _images(node: fx.Node) -> tuple[int, int]:
    """Height and width of what ``node`` reads, [N, C, H, W]. Raises TQ651 for another rank."""
    shape = shape_of(tensor_inputs(node)[0])
    if len(shape) != 4:
        raise error(
            "TQ651",
            f"convolution or pooling of a tensor {list(shape)}",
            "It takes [N, C, H, W]; an example needs the batch dimension, too.",
            node=_place(node),
        )
    return shape[2], shape[3]


def _place(node: fx.Node) -> str:
    """What the user knows ``node`` by."""
    return str(node.target) if node.op == "call_module" else node.name


def _overhangs(node: fx.Node, op: Op) -> bool:
    """Whether ceil_mode adds windows that hang over the input's padded end.

    Raises TQ651 where PyTorch leaves such a window out of one dimension, since it would start
    behind the input, and has it in the other: ONNX has one ceil_mode for both.
    """
    added, left_out = False, False
    for size, k, s, p, d in zip(
        _images(node), op.kernel_hw, op.stride_hw, op.pad_hw, op.dilation_hw, strict=True
    ):
        room = size + 2 * p - d * (k - 1) - 1
        starts_inside = (room // s + 1) * s < size + p
        added |= bool(room % s) and starts_inside
        left_out |= bool(room % s) and not starts_inside
    if added and left_out:
        raise error(
            "TQ651",
            "ceil_mode whose last window would start behind the input in one dimension only",
            "Set ceil_mode=False, or choose a size that the windows cover in that dimension.",
            node=_place(node),
        )
    return added


def _max_pool(
    node: fx.Node,
    input: object,
    kernel_size: _Pair,
    stride: _Pair | None = None,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Op:
    if return_indices:
        raise error(
            "TQ651",
            "max pooling with return_indices",
            "Unpooling has no integer form: leave return_indices out.",
            node=_place(node),
        )
    op = Op(
        "max_pool",
        kernel_hw=_pair(kernel_size),
        stride_hw=_pair(stride or kernel_size),
        pad_hw=_pair(padding),
        dilation_hw=_pair(dilation),
    )
    _images(node)
    return replace(op, ceil_mode=ceil_mode and _overhangs(node, op))


def _avg_pool(
    node: fx.Node,
    input: object,
    kernel_size: _Pair,
    stride: _Pair | None = None,
    padding: _Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Op:
    if divisor_override is not None:
        raise error(
            "TQ651",
            f"average pooling with divisor_override={divisor_override}",
            "Leave it out: the factor can go to the weights of the next layer.",
            node=_place(node),
        )
    op = Op(
        "avg_pool",
        kernel_hw=_pair(kernel_size),
        stride_hw=_pair(stride or kernel_size),
        pad_hw=_pair(padding),
    )
    padded = op.pad_hw != (0, 0)
    if _images(node) == op.kernel_hw and not padded:
        return Op("global_avg_pool")
    overhangs = ceil_mode and _overhangs(node, op)
    if overhangs and padded and count_include_pad:
        raise error(
            "TQ651",
            "average pooling with ceil_mode that counts its padding",
            "PyTorch and ONNX divide by different numbers at the end: set count_include_pad=False "
            "or ceil_mode=False.",
            node=_place(node),
        )
    # Without padding both ways count the same, but ONNX would count what hangs over as padding.
    return replace(op, ceil_mode=overhangs, count_include_pad=count_include_pad and padded)


def _adaptive(node: fx.Node, input: object, output_size: int | tuple[int | None, ...]) -> Op:
    height, width = _images(node)
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
            node=_place(node),
        )
    window = (height // out_h, width // out_w)
    return Op("avg_pool", kernel_hw=window, stride_hw=window)


def _conv(node: fx.Node, module: nn.Module) -> Op:
    assert isinstance(module, nn.Conv2d)
    _images(node)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise error(
            "TQ651",
            f"convolution with padding {module.padding!r}, mode {module.padding_mode!r}",
            "Give the padding as numbers, with zeros.",
            node=str(node.target),
        )
    return Op("conv")


def _linear(node: fx.Node, module: nn.Module) -> Op:
    shape = shape_of(tensor_inputs(node)[0])
    if len(shape) != 2:
        raise error(
            "TQ651",
            f"dense layer on a tensor {list(shape)}",
            "It takes [N, C]: flatten what comes before, or use a 1x1 convolution on [N, C, 1, T].",
            node=str(node.target),
        )
    return Op("linear")


def _batch_norm(node: fx.Node, module: nn.Module) -> Op:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.running_mean is None:
        raise error(
            "TQ651",
            "BatchNorm without running statistics",
            "Deployment needs them: set track_running_stats=True and train, or measure them.",
            node=str(node.target),
        )
    return Op("batch_norm")


def _number(node: fx.Node, name: str, value: object) -> float:
    if not isinstance(value, int | float):
        raise error(
            "TQ651", f"{name}={value} of {node.name}", "Give it as a number.", node=_place(node)
        )
    return float(value)


def _clamp(node: fx.Node, input: object, min: object = None, max: object = None) -> Op:
    if min == 0 and max is None:
        return Op("relu")
    low, high = _number(node, "min", min), _number(node, "max", max)
    if not low < high:
        raise error("TQ651", f"clamp to [{low}, {high}]", "Give min < max.", node=_place(node))
    return Op("clip", low=low, high=high)


def _hardtanh(
    node: fx.Node,
    input: object,
    min_val: object = -1.0,
    max_val: object = 1.0,
    inplace: bool = False,
) -> Op:
    return _clamp(node, input, _number(node, "min", min_val), _number(node, "max", max_val))


def _leaky_relu(
    node: fx.Node, input: object, negative_slope: object = 0.01, inplace: bool = False
) -> Op:
    return Op("leaky_relu", slope=_number(node, "negative_slope", negative_slope))


def _inner(node: fx.Node, source: fx.Node, dim: object, what: str) -> int:
    """``dim`` counted from the front. Raises TQ651 for the batch."""
    rank = len(shape_of(source))
    if not isinstance(dim, int) or dim % rank == 0:
        raise error(
            "TQ651",
            f"{what} over dimension {dim} of a tensor {list(shape_of(source))}",
            "Dimension 0 is the batch, and each input is computed alone.",
            node=_place(node),
        )
    return dim % rank


def _softmax(
    node: fx.Node,
    input: object,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: object = None,
) -> Op:
    source = tensor_inputs(node)[0]
    if dim is None:  # what PyTorch takes then, with a warning
        dim = 0 if len(shape_of(source)) in (0, 1, 3) else 1
    return Op("softmax", dim=_inner(node, source, dim, "softmax"))


def _softmax_of(node: fx.Node, input: object, dim: int, dtype: object = None) -> Op:
    return _softmax(node, input, dim)


def _cat(node: fx.Node, tensors: object, dim: int = 0) -> Op:
    return Op("cat", dim=_inner(node, tensor_inputs(node)[0], dim, "concatenation"))


def _mean(
    node: fx.Node,
    input: object,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    dtype: object = None,
) -> Op:
    rank = len(shape_of(tensor_inputs(node)[0]))
    dims = {d % rank for d in ((dim,) if isinstance(dim, int) else tuple(dim or range(rank)))}
    if rank != 4 or dims != {2, 3}:
        raise error(
            "TQ651",
            f"mean over dimensions {sorted(dims)} of {rank}",
            "Only the mean over height and width of [N, C, H, W] has an integer form.",
            node=node.name,
        )
    return Op("global_avg_pool", keep=bool(keepdim))


def _unary(kind: str) -> Callable[..., Op]:
    def rule(node: fx.Node, input: object, inplace: bool = False) -> Op:
        return Op(kind)

    return rule


def _binary(kind: str) -> Callable[..., Op]:
    def rule(node: fx.Node, input: object, other: object, *, alpha: float = 1) -> Op:
        if len(tensor_inputs(node)) != 2 or alpha != 1:
            given = ", ".join(str(a) for a in (input, other))
            raise error(
                "TQ651",
                f"{kind} of {given}" + ("" if alpha == 1 else f" with alpha={alpha}"),
                "Only two tensors can be added, subtracted or multiplied; fold constants into a "
                "layer.",
                node=node.name,
            )
        return Op(kind)

    return rule


def _reshape(node: fx.Node, input: object, *sizes: object, **named: object) -> Op:
    """Whatever the arguments, both shapes are known and values keep their order."""
    source, target = shape_of(tensor_inputs(node)[0]), shape_of(node)
    if not target or source[0] != target[0]:
        raise error(
            "TQ651",
            f"reshape of {list(source)} to {list(target)} changes the batch",
            "Keep dimension 0 apart: x.flatten(1), x.squeeze(-1), x.view(x.size(0), -1).",
            node=_place(node),
        )
    return Op("reshape")


_ModuleRule = Callable[[fx.Node, Any], Op]
_MODULES: dict[type, _ModuleRule] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.ReLU: lambda n, m: Op("relu"),
    nn.ReLU6: lambda n, m: Op("clip", low=0.0, high=6.0),
    nn.Hardtanh: lambda n, m: _hardtanh(n, None, m.min_val, m.max_val),
    nn.LeakyReLU: lambda n, m: Op("leaky_relu", slope=m.negative_slope),
    nn.Sigmoid: lambda n, m: Op("sigmoid"),
    nn.Tanh: lambda n, m: Op("tanh"),
    nn.Hardswish: lambda n, m: Op("hard_swish"),
    nn.Hardsigmoid: lambda n, m: Op("hard_sigmoid"),
    nn.Softmax: lambda n, m: _softmax(n, None, m.dim),
    nn.MaxPool2d: lambda n, m: _max_pool(
        n, None, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda n, m: _avg_pool(
        n, None, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad,
        m.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: lambda n, m: _adaptive(n, None, m.output_size),
    nn.Flatten: lambda n, m: _reshape(n, None),
    nn.Unflatten: lambda n, m: _reshape(n, None),
    nn.Identity: lambda n, m: Op("identity"),
    nn.Dropout: lambda n, m: Op("identity"),
    nn.Dropout2d: lambda n, m: Op("identity"),
}  # fmt: skip

_VIEWS = frozenset(
    {
        torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze,
        "flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous", "detach",
    }
)  # fmt: skip
# Functions and methods; each rule has the parameters that PyTorch's function has.
_RULES: list[tuple[Callable[..., Op], list[object]]] = [
    (_unary("relu"), [F.relu, torch.relu, "relu"]),
    (_unary("sigmoid"), [F.sigmoid, torch.sigmoid, "sigmoid"]),
    (_unary("tanh"), [F.tanh, torch.tanh, "tanh"]),
    (_unary("hard_swish"), [F.hardswish]),
    (_unary("hard_sigmoid"), [F.hardsigmoid]),
    (_unary("identity"), ["contiguous", "detach", "clone"]),
    (_binary("add"), [operator.add, torch.add, "add"]),
    (_binary("sub"), [operator.sub, torch.sub, "sub"]),
    (_binary("mul"), [operator.mul, torch.mul, "mul"]),
    (_reshape, [*(_VIEWS - {"contiguous", "detach"})]),
    (lambda node, input, inplace=False: Op("clip", low=0.0, high=6.0), [F.relu6]),
    (_hardtanh, [F.hardtanh]),
    (_clamp, [torch.clamp, torch.clip, "clamp", "clip"]),
    (_leaky_relu, [F.leaky_relu]),
    (_softmax, [F.softmax]),
    (_softmax_of, [torch.softmax, "softmax"]),
    (_cat, [torch.cat, torch.concat, torch.concatenate]),
    (_max_pool, [F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices]),
    (_avg_pool, [F.avg_pool2d]),
    (_adaptive, [F.adaptive_avg_pool2d]),
    (_mean, [torch.mean, "mean"]),
]
_FUNCTIONS: dict[object, Callable[..., Op]] = {
    target: rule for rule, targets in _RULES for target in targets
}
# Names that PyTorch takes for NumPy's sake.
_OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim", "x1": "input", "x2": "other"}
_REMEDIES: dict[object, str] = {
    F.conv2d: "Use nn.Conv2d, whose weight is a parameter of the layer.",
    F.linear: "Use nn.Linear, whose weight is a parameter of the layer.",
    F.batch_norm: "Use nn.BatchNorm2d or nn.BatchNorm1d.",
    operator.getitem: "Tensors cannot be indexed or sliced: use layers of their own, or pooling.",
}


def _call(node: fx.Node) -> Op:
    """Operation of a function or method."""
    rule = _FUNCTIONS.get(node.target)
    name = getattr(node.target, "__name__", str(node.target))
    if rule is None:
        kind = "function" if node.op == "call_function" else "method"
        if node.target is getattr:
            kind, name = "attribute", str(node.args[1])
        raise error("TQ651", f"{kind} {name}", _REMEDIES.get(node.target, ""), node=node.name)
    kwargs = {_OTHER_NAMES.get(k, k): v for k, v in node.kwargs.items()}
    try:
        inspect.signature(rule).bind(node, *node.args, **kwargs)
    except TypeError as exc:
        raise error(
            "TQ651", f"{name} with arguments that tinyq does not know: {exc}", node=node.name
        ) from exc
    if kwargs.get("dtype") is not None:
        raise error("TQ651", f"{name} with a dtype", "Leave the dtype out.", node=node.name)
    return rule(node, *node.args, **kwargs)


def op_of(traced: fx.GraphModule, node: fx.Node) -> Op:
    """Say what ``node`` computes. Raises TQ651 for an operator that tinyq does not know."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        for kind in type(module).__mro__:
            if kind in _MODULES:
                return _MODULES[kind](node, module)
        raise error("TQ651", f"module {type(module).__name__}", node=str(node.target))
    if node.op in ("call_function", "call_method"):
        return _call(node)
    return Op(node.op)


def operations(traced: fx.GraphModule) -> list[tuple[fx.Node, Op]]:
    """Every node that computes a tensor, with its operation, in execution order.

    Raises TQ651 for an operator that tinyq does not know, or that reads a parameter by itself.
    """
    found = []
    for node in traced.graph.nodes:
        if node.op == "output":
            _refuse_parameters(node)
        elif is_tensor(node) and node.op != "get_attr":
            found.append((node, op_of(traced, node)))
            _refuse_parameters(node)
            _require_float(node)
        elif node.op == "call_module" or (tensor_inputs(node) and not _asks_shape(node)):
            op_of(traced, node)  # raises: it makes a tuple or a number of tensors
            raise error("TQ651", f"{node.target} makes no tensor", node=_place(node))
    return found


def _refuse_parameters(node: fx.Node) -> None:
    for source in tensor_inputs(node):
        if source.op == "get_attr":
            raise error(
                "TQ651",
                f"{node.name} reads the parameter or buffer {source.target} by itself",
                "Only layers hold constants: a bias or BatchNorm adds one per channel, a 1x1 "
                "depthwise convolution multiplies by one.",
                node=node.name,
            )


def _require_float(node: fx.Node) -> None:
    meta = _meta(node)
    if meta is not None and meta.dtype != torch.float32:
        raise error("TQ651", f"a tensor of {meta.dtype}", "Keep values float32.", node=_place(node))


def register_module(kind: type[nn.Module], rule: _ModuleRule) -> None:
    """Say what operation modules of type ``kind`` are."""
    _MODULES[kind] = rule
