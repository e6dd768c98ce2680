"""After training: rounding, steps and statistics chosen so that layers answer as in float.

AdaRound (Nagel et al., ICML 2020) trains whether each weight goes up or down; BRECQ (Li et al.,
ICLR 2021) does so for the layers of a block together; AdaQuant (Hubara et al., ICML 2021) trains
weights, biases and ranges through straight-through rounding. All take a layer's input from the
quantized network and its target from the float one, and work with every quantizer: between the two
levels around a weight, whatever these are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tinyq.errors import error
from tinyq.learn.calibrate import inputs_of, require_finite, require_prepared
from tinyq.learn.estimators.base import interval
from tinyq.learn.layers import QuantConv2d, QuantLinear
from tinyq.learn.prepare import act_quantizers, quant_layers
from tinyq.learn.quantizers import INQQuantizer, WeightQuantizer
from tinyq.learn.trace import FUSED_AFTER, is_tensor, module_of, op_of, tensor_inputs

_LOW, _HIGH = -0.1, 1.1  # the rectified sigmoid's stretch


@dataclass(frozen=True)
class ReconstructConfig:
    """Steps of Adam and its rate, images a step, and AdaRound's regulariser.

    The publications use 20,000 steps of 32 images, rate 1e-3; small layers settle far sooner.

    ``weight`` of the regulariser is in units of the mean gradient that the reconstruction has in
    the warm-up (the first ``warm_up`` of the steps). The publications' constant, 0.01, presumes a
    size of layers and values: in small networks it leaves up to half of the weights between two
    levels, and rounding them at the end undoes what was learned.
    """

    steps: int = 1000
    batch: int = 32
    lr: float = 1e-2
    weight: float = 16.0
    beta: tuple[float, float] = (20.0, 2.0)
    warm_up: float = 0.2
    seed: int = 0


class RoundingWeight(nn.Module):
    """Weight quantizer while its rounding is trained: h(a) in [0, 1] between neighbouring levels.

    Starts at the weight's own fraction; hard rounding (h >= ½) is what ``source`` takes over.
    """

    below: Tensor
    above: Tensor
    step: Tensor

    def __init__(self, source: WeightQuantizer, weight: Tensor):
        super().__init__()
        self.source = source
        x = source.prepared(weight.detach())
        step = source.current_step(x).detach()
        low, high = source.bounds()
        v = (x / step).clamp(low, high)
        below, above = interval(v, source.levels())
        self.register_buffer("below", below.clamp(low, high))
        self.register_buffer("above", above.clamp(low, high))
        self.register_buffer("step", step)
        fraction = ((v - below) / (above - below)).clamp(0.0, 1.0)
        start = ((fraction - _LOW) / (_HIGH - _LOW)).clamp(1e-4, 1 - 1e-4)
        self.a = nn.Parameter(torch.log(start / (1 - start)))

    def prepared(self, weight: Tensor) -> Tensor:
        """Weight as the quantizer it replaces takes it."""
        return self.source.prepared(weight)

    def h(self) -> Tensor:
        """Share of the way from the level below to the level above."""
        return (torch.sigmoid(self.a) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)

    def forward(self, weight: Tensor) -> Tensor:
        """Weight between its levels."""
        return (self.below + (self.above - self.below) * self.h()) * self.step

    @torch.no_grad()
    def decide(self) -> WeightQuantizer:
        """Give the chosen levels and their step to the quantizer that this one replaces."""
        self.source.choose(torch.where(self.h() >= 0.5, self.above, self.below))
        self.source.set_step(self.step)
        return self.source

    def penalty(self, beta: float) -> Tensor:
        """Sum of 1 - |2h - 1|^beta: zero when every weight has decided."""
        return (1.0 - (2.0 * self.h() - 1.0).abs().pow(beta)).sum()


class _Pull:
    """Mean size of the reconstruction's gradient with respect to the shares h."""

    def __init__(self) -> None:
        self.gradients = self.slopes = 0.0

    def observe(self, rounding: Sequence[RoundingWeight]) -> None:
        """Add the gradients of one step; those of h are those of a over dh/da."""
        for r in rounding:
            assert r.a.grad is not None
            self.gradients += float(r.a.grad.abs().sum())
            s = torch.sigmoid(r.a.detach())
            self.slopes += float((s * (1 - s)).sum()) * (_HIGH - _LOW)

    @property
    def mean(self) -> float:
        """Over all weights and steps."""
        return self.gradients / max(self.slopes, 1e-12)


def adaround(
    prepared: fx.GraphModule,
    inputs: Tensor,
    config: ReconstructConfig | None = None,
    *,
    layers: Sequence[str] | None = None,
) -> None:
    """Train the rounding of each layer in turn, in place, on calibration ``inputs`` [N, ...].

    The levels that it chooses stay: training afterwards moves steps, biases and BatchNorm only,
    and calling it again starts anew from the weights. Raises what :func:`brecq` does.
    """
    inputs = _usable(prepared, inputs, "adaround")
    for name in list(quant_layers(prepared)) if layers is None else layers:
        brecq(prepared, inputs, config, blocks=[[name]])


def brecq(
    prepared: fx.GraphModule,
    inputs: Tensor,
    config: ReconstructConfig | None = None,
    *,
    blocks: Sequence[Sequence[str]] | None = None,
) -> None:
    """Train the rounding of the layers of each block together, in place.

    ``blocks`` are lists of layer names in graph order; by default :func:`find_blocks`. What is
    compared is the value behind the block, before it is quantized. Raises TQ653 for NaN in
    ``inputs`` [N, ...] or in a layer, TQ654 for a network that is not prepared, TQ652 for INQ.
    """
    settings = config or ReconstructConfig()
    inputs = _usable(prepared, inputs, "brecq")
    prepared.eval()
    for block in find_blocks(prepared) if blocks is None else blocks:
        segment = Segment.of(prepared, block)
        target, given = segment.data(inputs)
        layers = [quant_layers(prepared)[name] for name in block]
        rounding = [RoundingWeight(layer.weight_quantizer, layer.weight) for layer in layers]
        for layer, r in zip(layers, rounding, strict=True):
            layer.weight_quantizer = r
        try:
            _train_rounding(segment, rounding, target, given, settings)
        finally:
            for layer, r in zip(layers, rounding, strict=True):
                layer.weight_quantizer = r.source
        for r in rounding:
            r.decide()


@torch.enable_grad()
def _train_rounding(
    segment: Segment,
    rounding: list[RoundingWeight],
    target: Tensor,
    given: list[Tensor],
    settings: ReconstructConfig,
) -> None:
    parameters = [r.a for r in rounding]
    optimizer = torch.optim.Adam(parameters, settings.lr)
    pull = _Pull()
    for step, (x, y) in enumerate(_batches(given, target, settings)):
        loss = F.mse_loss(segment.run(x), y)
        beta = _beta(step, settings)
        if beta is not None:
            weight = settings.weight * pull.mean
            loss = loss + weight * sum(r.penalty(beta) for r in rounding)
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        if beta is None:
            pull.observe(rounding)
        optimizer.step()


def _usable(prepared: fx.GraphModule, inputs: Tensor, what: str) -> Tensor:
    """``inputs`` on the network's device, once they and the network are what ``what`` works on."""
    require_prepared(prepared, what)
    for name, layer in quant_layers(prepared).items():
        if isinstance(layer.weight_quantizer, INQQuantizer):
            raise error(
                "TQ652",
                f"{what} does not work with weight_quantizer 'inq', which freezes in stages",
                "Train with freeze_stage, or prepare with weight_quantizer='pot'.",
                node=name,
            )
    (given,) = inputs_of(inputs, prepared)
    return given


def adaquant(
    prepared: fx.GraphModule,
    inputs: Tensor,
    config: ReconstructConfig | None = None,
    *,
    weight_lr: float = 1e-5,
    bias_lr: float = 1e-3,
    range_lr: float = 1e-3,
) -> None:
    """Train weights, biases and steps of each layer in turn against its float output, in place.

    Raises TQ653 for NaN in ``inputs`` [N, ...] or in a layer, TQ654 for a network that is not
    prepared, TQ652 for INQ and for rounding that :func:`adaround` chose already.
    """
    settings = config or ReconstructConfig(batch=50)
    inputs = _usable(prepared, inputs, "adaquant")
    _refuse_chosen(prepared)
    prepared.eval()
    reference = copy.deepcopy(prepared)
    for name, layer in quant_layers(prepared).items():
        segment = Segment.of(prepared, [name])
        target, given = segment.data(inputs, reference)
        norms = [
            module_of(prepared, n)
            for n in segment.nodes
            if isinstance(module_of(prepared, n), nn.modules.batchnorm._BatchNorm)
        ]
        biases = [m.bias for m in [layer, *norms] if m is not None and m.bias is not None]
        steps = [p for n, p in layer.weight_quantizer.named_parameters() if n.endswith("step")]
        groups = [
            {"params": [layer.weight], "lr": weight_lr},
            {"params": biases, "lr": bias_lr},
            {"params": steps, "lr": range_lr},
        ]
        optimizer = torch.optim.Adam([g for g in groups if g["params"]])
        with _trainable([layer.weight, *biases, *steps]) as wanted:
            for x, y in _batches(given, target, settings):
                loss = F.mse_loss(segment.run(x), y)
                optimizer.zero_grad()
                loss.backward(inputs=wanted)
                optimizer.step()


@contextmanager
def _trainable(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Let ``parameters`` have gradients, also those of a network that was frozen for inference."""
    before = [p.requires_grad for p in parameters]
    try:
        with torch.enable_grad():
            for p in parameters:
                p.requires_grad_(True)
            yield parameters
    finally:
        for p, required in zip(parameters, before, strict=True):
            p.requires_grad_(required)


def _refuse_chosen(prepared: fx.GraphModule) -> None:
    for name, layer in quant_layers(prepared).items():
        if layer.weight_quantizer.chosen is not None:
            raise error(
                "TQ652",
                "adaround or brecq has chosen the levels of weights that adaquant would train",
                "Call adaquant before adaround.",
                node=name,
            )


@torch.no_grad()
def correct_bias(prepared: fx.GraphModule, inputs: Tensor) -> None:
    """Move each layer's bias (BatchNorm's, where there is one) by the mean error of its channels.

    Layers in order, each seeing what the corrections before it made. Raises TQ653 for NaN in
    ``inputs`` [N, ...] or in a layer, TQ654 for a network that is not prepared.
    """
    require_prepared(prepared, "correct_bias")
    (inputs,) = inputs_of(inputs, prepared)
    prepared.eval()
    reference = copy.deepcopy(prepared)
    for name, layer in quant_layers(prepared).items():
        segment = Segment.of(prepared, [name], activation=False)
        target, given = segment.data(inputs, reference)
        dims = [d for d in range(target.dim()) if d != 1]
        error_mean = (target - segment.run(given)).mean(dims)
        norm = module_of(prepared, segment.end)
        holder = norm if isinstance(norm, nn.modules.batchnorm._BatchNorm) else layer
        if holder.bias is None:
            holder.bias = nn.Parameter(torch.zeros_like(error_mean))
        holder.bias.add_(error_mean)


def find_blocks(prepared: fx.GraphModule) -> list[list[str]]:
    """Layers between points where the whole network passes through one value.

    A residual block is what lies between two such values, both branches included; layers in a row
    without branches are blocks of one.
    """
    blocks: list[list[str]] = []
    current: list[str] = []
    for node, single in _cuts(prepared):
        if isinstance(module_of(prepared, node), QuantConv2d | QuantLinear):
            current.append(str(node.target))
        if current and single:
            blocks.append(current)
            current = []
    return [*blocks, current] if current else blocks


def _cuts(prepared: fx.GraphModule) -> list[tuple[fx.Node, bool]]:
    """Each tensor node, and whether its value alone is all that later nodes read."""
    waiting: dict[fx.Node, int] = {}
    found = []
    for node in prepared.graph.nodes:
        if not is_tensor(node) or node.op == "output":
            continue
        for source in tensor_inputs(node):
            waiting[source] -= 1
        waiting[node] = sum(is_tensor(u) or u.op == "output" for u in node.users)
        waiting = {n: left for n, left in waiting.items() if left > 0}
        found.append((node, list(waiting) == [node] and not _is_fused(prepared, node)))
    return found


def _is_fused(prepared: fx.GraphModule, node: fx.Node) -> bool:
    """Whether BatchNorm or an activation follows, before the value is quantized."""
    fused = FUSED_AFTER | {"batch_norm"}
    users = [u for u in node.users if is_tensor(u) and u.op != "output"]
    return len(users) == 1 and op_of(prepared, users[0]).kind in fused


@dataclass(frozen=True)
class Segment:
    """Nodes from a block's first layer to ``end``, and the values ``given`` that they read."""

    model: fx.GraphModule
    nodes: tuple[fx.Node, ...]
    given: tuple[fx.Node, ...]
    end: fx.Node

    @staticmethod
    def of(model: fx.GraphModule, block: Sequence[str], *, activation: bool = True) -> Segment:
        """Make the segment of the layers named in ``block``; TQ652 for a name that is none.

        One layer ends behind its BatchNorm and (with ``activation``) its activation; several end
        where the network passes through one value.
        """
        unknown = [n for n in block if n not in quant_layers(model)]
        if unknown:
            raise error("TQ652", f"no quantized layer is called {unknown[0]!r}")
        order = list(model.graph.nodes)
        layers = [n for n in order if n.op == "call_module" and str(n.target) in block]
        first, last = order.index(layers[0]), order.index(layers[-1])
        if len(layers) == 1:
            end = layers[0]
            while _is_fused(model, end):
                after = next(iter(end.users))
                if not activation and op_of(model, after).kind != "batch_norm":
                    break
                end = after
        else:
            end = next(n for n, single in _cuts(model) if single and order.index(n) >= last)
        inner = tuple(n for n in order[first : order.index(end) + 1] if n.op != "placeholder")
        inside = set(inner)
        given = {s: None for n in inner for s in n.all_input_nodes if s not in inside}
        return Segment(model, inner, tuple(given), end)

    @torch.no_grad()
    def data(
        self, x: Tensor, reference: fx.GraphModule | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Output of the float network, and what the quantized one gives to the segment.

        ``reference`` is a copy from before anything but rounding was changed: a method that moves
        weights or biases would otherwise move its own targets.
        """
        plain = reference or self.model
        (end,) = [n for n in plain.graph.nodes if n.name == self.end.name]
        target = _values(plain, x, (end,), quantized=False)[0]
        given = _values(self.model, x, self.given, quantized=True)
        for node, value in zip((self.end, *self.given), (target, *given), strict=True):
            require_finite(value, f"the value of '{node.name}'")
        return target, given

    def run(self, values: Sequence[Tensor]) -> Tensor:
        """Compute the segment's output from what it reads."""
        env: dict[fx.Node, object] = dict(zip(self.given, values, strict=True))
        for node in self.nodes:
            _execute(self.model, node, env)
        result = env[self.end]
        assert isinstance(result, Tensor)
        return result


def _execute(model: fx.GraphModule, node: fx.Node, env: dict[fx.Node, object]) -> None:
    args = fx.map_arg(node.args, lambda n: env[n])
    kwargs = fx.map_arg(node.kwargs, lambda n: env[n])
    if node.op == "call_module":
        env[node] = model.get_submodule(str(node.target))(*args, **kwargs)
    elif node.op == "call_function":
        env[node] = node.target(*args, **kwargs)
    elif node.op == "call_method":
        env[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)


def _values(
    model: fx.GraphModule, x: Tensor, wanted: Sequence[fx.Node], *, quantized: bool
) -> list[Tensor]:
    """Values of ``wanted`` nodes for the input ``x``."""
    switches = [*act_quantizers(model).values()]
    layers = [*quant_layers(model).values()]
    for switch in switches:
        switch.enabled = quantized
    for layer in layers:
        layer.quantize_weight = quantized
    env: dict[fx.Node, object] = {}
    try:
        for node in model.graph.nodes:
            if node.op == "placeholder":
                env[node] = x
            elif node.op != "output":
                _execute(model, node, env)
    finally:
        for switch in switches:
            switch.enabled = True
        for layer in layers:
            layer.quantize_weight = True
    return [env[n] for n in wanted]


def _batches(
    given: list[Tensor], target: Tensor, config: ReconstructConfig
) -> Iterator[tuple[list[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.steps):
        index = torch.randint(
            0, len(target), (min(config.batch, len(target)),), generator=generator
        )
        yield [g[index] for g in given], target[index]


def _beta(step: int, config: ReconstructConfig) -> float | None:
    """Exponent of the regulariser, falling from the first to the second; None in the warm-up."""
    start = max(1.0, config.warm_up * config.steps)
    if step < start:
        return None
    share = (step - start) / (config.steps - start)
    return config.beta[0] + (config.beta[1] - config.beta[0]) * share
