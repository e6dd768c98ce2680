"""Drawn networks of the integer stage, with channels that are constant or that nobody reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from tinyq.ir import AnyArray, DType, Graph, Node, QuantParams, Stage, TensorType, Value, check
from tinyq.ops import REGISTRY
from tinyq.ops.add import AddAttrs
from tinyq.ops.average_pool2d import AveragePool2dAttrs
from tinyq.ops.concat import ConcatAttrs
from tinyq.ops.conv2d import Conv2dAttrs
from tinyq.ops.dense import DenseAttrs
from tinyq.ops.max_pool2d import MaxPool2dAttrs
from tinyq.ops.pad import PadAttrs
from tinyq.ops.slice import SliceAttrs
from tinyq.ops.windows import Window
from tinyq.quant import OrtLinear

SCALE = 0.05


@dataclass
class Builder:
    """Adds nodes one after the other; all tensors share one scale and the zero point of each."""

    rng: Generator
    zero_point: int = -128
    nodes: list[Node] = field(default_factory=list)

    @property
    def quant(self) -> QuantParams:
        return QuantParams.per_tensor(SCALE, self.zero_point)

    def value(self, name: str, *shape: int) -> Value:
        return Value(name, TensorType(shape, DType.INT8, self.quant))

    def constant(self, array: AnyArray) -> Value:
        return Value(f"c{len(self.nodes)}", TensorType(array.shape, DType.of(array)), array)

    def emit(self, op: str, inputs: list[Value], shape: tuple[int, ...], attrs: object) -> Value:
        result = self.value(f"v{len(self.nodes)}", *shape)
        self.nodes.append(Node(op, f"n{len(self.nodes)}", tuple(inputs), (result,), attrs))
        REGISTRY[op].check(self.nodes[-1])
        return result

    def oracle(self, weights: AnyArray, dead: AnyArray) -> OrtLinear:
        """Outputs of channels in ``dead`` never leave the bottom, by a bias far below."""
        outputs = len(weights)
        total = weights.reshape(outputs, -1).astype(np.int64).sum(axis=1)
        bias = np.where(dead, -(10**6), self.rng.integers(-300, 300, outputs))
        scale = np.full(outputs, 0.004, np.float32)
        return OrtLinear(scale, bias, -self.zero_point * total, self.zero_point, self.low, 127)

    @property
    def low(self) -> int:
        return max(self.zero_point, -128)

    def conv(
        self, x: Value, outputs: int, kernel: int, stride: int = 1, pad: int = 0,
        depthwise: bool = False, whole: bool = False,
    ) -> Value:  # fmt: skip
        _, h, w, inputs = x.type.shape
        outputs = inputs if depthwise else outputs
        shape = (outputs, kernel, kernel, 1 if depthwise else inputs)
        weights = self.rng.integers(-60, 61, shape).astype(np.int8)
        if not whole:
            weights[self.rng.random(outputs) < 0.2] = 0
        if not depthwise and not whole:
            weights[..., self.rng.random(inputs) < 0.3] = 0
        dead = (self.rng.random(outputs) < 0.3) & (not whole)
        oracle = self.oracle(weights, dead)
        attrs = Conv2dAttrs(
            (stride, stride), (1, 1), (pad,) * 4, inputs if depthwise else 1, self.zero_point,
            oracle, np.full(outputs, 0.004),
        )  # fmt: skip
        size = [(s + 2 * pad - kernel) // stride + 1 for s in (h, w)]
        return self.emit("conv2d", [x, self.constant(weights)], (1, *size, outputs), attrs)

    def dense(self, x: Value, outputs: int) -> Value:
        weights = self.rng.integers(-60, 61, (outputs, x.type.shape[-1])).astype(np.int8)
        weights[:, self.rng.random(x.type.shape[-1]) < 0.3] = 0
        oracle = self.oracle(weights, np.zeros(outputs, np.bool_))
        attrs = DenseAttrs(oracle, np.full(outputs, 0.004))
        shape = (*x.type.shape[:-1], outputs)
        return self.emit("dense", [x, self.constant(weights)], shape, attrs)

    def add(self, a: Value, b: Value) -> Value:
        attrs = AddAttrs(1, 1, -self.zero_point, 0, self.low, 127)
        return self.emit("add", [a, b], a.type.shape, attrs)

    def max_pool(self, x: Value, end: int = 1) -> Value:
        _, h, w, c = x.type.shape
        attrs = MaxPool2dAttrs(Window((2, 2), (2, 2), (1, 1), (0, 0, end, end)))
        return self.emit("max_pool2d", [x], (1, (h + end) // 2, (w + end) // 2, c), attrs)

    def mean(self, x: Value) -> Value:
        _, h, w, c = x.type.shape
        window = Window((h, w), (h, w), (1, 1), (0, 0, 0, 0))
        attrs = AveragePool2dAttrs(window, False, self.quant, -128, 127, "image")
        return self.emit("average_pool2d", [x], (1, 1, 1, c), attrs)

    def concat(self, *parts: Value) -> Value:
        shape = (*parts[0].type.shape[:-1], sum(p.type.shape[-1] for p in parts))
        return self.emit("concat", list(parts), shape, ConcatAttrs(3))

    def slice(self, x: Value, start: int, size: int) -> Value:
        attrs = SliceAttrs((0, 0, 0, start), (1, 1, 1, 1))
        return self.emit("slice", [x], (*x.type.shape[:-1], size), attrs)

    def pad(self, x: Value, value: int) -> Value:
        _, h, w, c = x.type.shape
        attrs = PadAttrs((0, 1, 1, 0), (0, 1, 1, 0), value)
        return self.emit("pad", [x], (1, h + 2, w + 2, c), attrs)

    def flatten(self, x: Value) -> Value:
        return self.emit("reshape", [x], (1, x.type.elements), None)

    def graph(self, inputs: list[Value], outputs: list[Value]) -> Graph:
        return check(Graph("net", Stage.INTEGER, tuple(inputs), tuple(outputs), tuple(self.nodes)))


def random_network(seed: int) -> Graph:
    """A network of 4 to 12 nodes with branches, drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    net = Builder(rng, int(rng.choice([-128, -128, 0, 3])))
    x = net.value("x", 1, 5, 6, 3)
    here = net.conv(x, 8, 3, 1, 1)
    for _ in range(rng.integers(2, 8)):
        kind = rng.integers(8)
        if min(here.type.shape[1:3]) < 3:
            break
        if kind == 0:
            here = net.conv(here, int(rng.integers(1, 9)), 1)
        elif kind == 1:
            here = net.conv(here, 0, 3, int(rng.integers(1, 3)), int(rng.integers(2)), True)
        elif kind == 2:
            here = net.add(here, net.conv(here, here.type.shape[3], 3, 1, 1))
        elif kind == 3:
            here = net.concat(here, net.conv(here, 4, 1))
        elif kind == 4:
            here = net.max_pool(here)
        elif kind == 5 and here.type.shape[3] > 2:
            here = net.slice(here, 1, here.type.shape[3] - 2)
        elif kind == 6:
            here = net.pad(here, net.zero_point)
        else:
            here = net.conv(here, 6, 3, 1, 1)
    if rng.integers(4) == 0:
        here = net.mean(here)
    return net.graph([x], [net.dense(net.flatten(here), 3)])
