"""Layers for the tests on CMSIS-NN: one graph with a branch a case, and what each must give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyq.build import load_network
from tinyq.build.cmsis_nn import CmsisNn
from tinyq.codegen import GenerateOptions, Program, generate, write_program
from tinyq.codegen.libraries import library_functions
from tinyq.emulate.network import RunOptions, run_network
from tinyq.ir import AnyArray, DType, Graph, Node, QuantParams, Stage, TensorType, Value
from tinyq.ops import REGISTRY
from tinyq.ops.conv2d import Conv2dAttrs
from tinyq.ops.dense import DenseAttrs
from tinyq.ops.fixed_point import (
    FixedPointAdd,
    FixedPointMean,
    FixedPointMul,
    FixedPointSoftmax,
)
from tinyq.ops.max_pool2d import MaxPool2dAttrs
from tinyq.ops.pad import PadAttrs
from tinyq.ops.transpose import TransposeAttrs
from tinyq.ops.windows import Window
from tinyq.plan import plan
from tinyq.quant import FixedPointLinear, Rounding
from tinyq.select import Goal, Libraries, Schedule, select
from tinyq.target import load_core
from tinyq.verification.reference import outputs

Shape = tuple[int, ...]
Make = Callable[[str, Rounding, np.random.Generator], Node]


def tensor(name: str, shape: Shape, zero_point: int = 0, scale: float = 0.05) -> Value:
    return Value(name, TensorType(shape, DType.INT8, QuantParams.per_tensor(scale, zero_point)))


def constant(name: str, array: AnyArray) -> Value:
    return Value(name, TensorType(array.shape, DType.of(array)), array)


def linear(
    weights: AnyArray, x_zero: int, rounding: Rounding, rng: np.random.Generator,
    limits: tuple[int, int], spread: float,
) -> tuple[FixedPointLinear, AnyArray]:  # fmt: skip
    """Parameters that use the output's whole range, and some channels far beyond it."""
    channels = len(weights)
    size = np.sqrt(weights[0].size) * 74.0 * 74.0
    factor = 50.0 / size * np.exp(rng.uniform(-spread, spread, channels))
    bias = rng.integers(-int(size), int(size) + 1, channels).astype(np.int64)
    offset = -x_zero * weights.reshape(channels, -1).astype(np.int64).sum(axis=1)
    zero = int(rng.integers(-20, 21))
    made = FixedPointLinear.of_scales(factor, bias, offset, zero, rounding, *limits)
    return made, factor


@dataclass(frozen=True)
class Conv:
    """A convolution; ``groups`` -1 is depthwise."""

    hwc: tuple[int, int, int]
    out_c: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    x_zero: int = -7
    limits: tuple[int, int] = (-128, 127)
    spread: float = 1.0

    def __call__(self, name: str, rounding: Rounding, rng: np.random.Generator) -> Node:
        groups = self.hwc[2] if self.groups < 0 else self.groups
        shape = (self.out_c, *self.kernel, self.hwc[2] // groups)
        weights = rng.integers(-127, 128, shape).astype(np.int8)
        oracle, scale = linear(weights, self.x_zero, rounding, rng, self.limits, self.spread)
        attrs = Conv2dAttrs(
            self.stride, self.dilation, self.pads, groups, self.x_zero, oracle, scale, oracle
        )
        size = [
            (self.hwc[k] + self.pads[k] + self.pads[k + 2]
             - self.dilation[k] * (self.kernel[k] - 1) - 1) // self.stride[k] + 1
            for k in (0, 1)
        ]  # fmt: skip
        x = tensor(f"{name}_x", (1, *self.hwc), self.x_zero)
        y = tensor(f"{name}_y", (1, *size, self.out_c), oracle.zero_point)
        return Node("conv2d", name, (x, constant(f"{name}_w", weights)), (y,), attrs)


@dataclass(frozen=True)
class FullyConnected:
    """A dense layer of one factor for all outputs, or one each."""

    inputs: int
    outputs: int
    rows: int = 1
    per_channel: bool = False
    x_zero: int = 11
    limits: tuple[int, int] = (-128, 127)

    def __call__(self, name: str, rounding: Rounding, rng: np.random.Generator) -> Node:
        weights = rng.integers(-127, 128, (self.outputs, self.inputs)).astype(np.int8)
        spread = 1.0 if self.per_channel else 0.0
        oracle, scale = linear(weights, self.x_zero, rounding, rng, self.limits, spread)
        attrs = DenseAttrs(oracle, scale, oracle)
        x = tensor(f"{name}_x", (self.rows, self.inputs), self.x_zero)
        y = tensor(f"{name}_y", (self.rows, self.outputs), oracle.zero_point)
        return Node("dense", name, (x, constant(f"{name}_w", weights)), (y,), attrs)


@dataclass(frozen=True)
class Pair:
    """A sum or a product; scales and zero points of a, b and y."""

    op: str
    elements: int
    scales: tuple[float, float, float]
    zeros: tuple[int, int, int]
    limits: tuple[int, int] = (-128, 127)
    constant: bool = False

    def __call__(self, name: str, rounding: Rounding, rng: np.random.Generator) -> Node:
        kind = FixedPointAdd if self.op == "add" else FixedPointMul
        attrs = kind.of(self.scales, self.zeros, self.limits, rounding)
        shape = (1, self.elements)
        a = tensor(f"{name}_a", shape, self.zeros[0], self.scales[0])
        b = tensor(f"{name}_b", shape, self.zeros[1], self.scales[1])
        if self.constant:
            b = Value(b.name, b.type, rng.integers(-128, 128, shape).astype(np.int8))
        y = tensor(f"{name}_y", shape, self.zeros[2], self.scales[2])
        return Node(self.op, name, (a, b), (y,), attrs)


@dataclass(frozen=True)
class Pool:
    """A mean or a maximum over windows."""

    op: str
    hwc: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    limits: tuple[int, int] = (-128, 127)

    def __call__(self, name: str, rounding: Rounding, rng: np.random.Generator) -> Node:
        out = tuple(
            (self.hwc[k] + self.pads[k] + self.pads[k + 2] - self.kernel[k]) // self.stride[k] + 1
            for k in (0, 1)
        )
        x = tensor(f"{name}_x", (1, *self.hwc))
        y = tensor(f"{name}_y", (1, *out, self.hwc[2]))
        attrs: object = FixedPointMean(
            self.kernel, self.stride, self.pads, (out[0], out[1]), *self.limits
        )
        if self.op == "max_pool2d":
            attrs = MaxPool2dAttrs(Window(self.kernel, self.stride, (1, 1), self.pads))
        return Node(self.op, name, (x,), (y,), attrs)


@dataclass(frozen=True)
class Rows:
    """Softmax over rows."""

    rows: int
    depth: int
    scale: float

    def __call__(self, name: str, rounding: Rounding, rng: np.random.Generator) -> Node:
        x = tensor(f"{name}_x", (self.rows, self.depth), 3, self.scale)
        y = tensor(f"{name}_y", (self.rows, self.depth), -128, 1 / 256)
        return Node("softmax", name, (x,), (y,), FixedPointSoftmax.of(self.scale))


@dataclass(frozen=True)
class Padding:
    """Constant padding."""

    shape: Shape
    before: Shape
    after: Shape
    value: int

    def __call__(self, name: str, rounding: Rounding, rng: np.random.Generator) -> Node:
        sizes = zip(self.shape, self.before, self.after, strict=True)
        y = tensor(f"{name}_y", tuple(s + b + e for s, b, e in sizes))
        attrs = PadAttrs(self.before, self.after, self.value)
        return Node("pad", name, (tensor(f"{name}_x", self.shape),), (y,), attrs)


@dataclass(frozen=True)
class Permutation:
    """A transpose."""

    shape: Shape
    perm: Shape

    def __call__(self, name: str, rounding: Rounding, rng: np.random.Generator) -> Node:
        y = tensor(f"{name}_y", tuple(self.shape[k] for k in self.perm))
        x = tensor(f"{name}_x", self.shape)
        return Node("transpose", name, (x,), (y,), TransposeAttrs(self.perm))


@dataclass(frozen=True, eq=False)
class Cases:
    """The graph of all cases for one rounding."""

    graph: Graph
    rounding: Rounding

    def schedule(self, target: str) -> Schedule:
        """Every layer by CMSIS-NN."""
        libraries = Libraries(self.rounding.value, preferred=True)
        return select(self.graph, load_core(target), Goal.SPEED, libraries=libraries)

    def only_library(self, target: str) -> Cases:
        """The cases that the library computes on ``target``; tinyq has no kernel for the others."""
        core = load_core(target)
        kept = [
            node
            for node in self.graph.nodes
            if any(
                not isinstance(kernel.plan(node, core), str)
                for kernel in REGISTRY[node.op].kernels
                if kernel.library
            )
        ]
        inputs = tuple(v for node in kept for v in node.present_inputs if not v.is_constant)
        results = tuple(node.output for node in kept)
        graph = Graph("cases", Stage.INTEGER, inputs, results, tuple(kept))
        return Cases(graph, self.rounding)

    def program(self, target: str, library: CmsisNn) -> Program:
        """The C of all cases."""
        schedule = self.schedule(target)
        used = library.library(library_functions(schedule), self.rounding.value)
        return generate(schedule, plan(schedule), "cases", GenerateOptions(libraries=(used,)))

    def samples(self, count: int, seed: int) -> list[AnyArray]:
        """Random inputs, ends of the range often."""
        rng = np.random.default_rng(seed)
        made = []
        for value in self.graph.inputs:
            x = rng.integers(-128, 128, (count, *value.type.shape))
            ends = rng.integers(0, 8, x.shape)
            x = np.where(ends == 0, -128, np.where(ends == 1, 127, x))
            made.append(x.astype(np.int8))
        return made

    def wanted(self, samples: Sequence[AnyArray]) -> list[AnyArray]:
        """What the integer reference gives, [samples, elements] an output."""
        names = [value.name for value in self.graph.inputs]
        rows = [
            outputs(self.graph, dict(zip(names, each, strict=True)))
            for each in zip(*samples, strict=True)
        ]
        return [
            np.stack([row[k].reshape(-1) for row in rows]) for k in range(len(self.graph.outputs))
        ]


def make_cases(table: dict[str, Make], rounding: Rounding) -> Cases:
    """One graph with a branch for each entry of the table."""
    rng = np.random.default_rng(5)
    nodes = [make(name, rounding, rng) for name, make in table.items()]
    inputs = tuple(v for node in nodes for v in node.present_inputs if not v.is_constant)
    results = tuple(node.output for node in nodes)
    return Cases(Graph("cases", Stage.INTEGER, inputs, results, tuple(nodes)), rounding)


def run(cases: Cases, library: CmsisNn, target: str, folder: Path, emulator: str) -> list[str]:
    """Names of the cases whose outputs differ from the reference, with how many do."""
    write_program(cases.program(target, library), folder)
    samples = cases.samples(4, 1)
    options = RunOptions(emulator=emulator, sanitize=emulator == "host")
    trace = run_network(load_network(folder), samples, options).trace
    wanted = cases.wanted(samples)
    names = [node.name for node in cases.graph.nodes]
    return [
        f"{name}: {np.sum(got != want)} of {want.size}"
        for name, got, want in zip(names, trace.outputs, wanted, strict=True)
        if not np.array_equal(got, want)
    ]


TABLE: dict[str, Make] = {
    "conv_1x1": Conv((5, 4, 8), 5, (1, 1)),
    "conv_1x1_one_channel": Conv((3, 3, 1), 4, (1, 1)),
    "conv_1x1_stride": Conv((7, 6, 5), 9, (1, 1), stride=(2, 2)),
    "conv_1x1_padded": Conv((3, 4, 4), 3, (1, 1), pads=(1, 1, 1, 1)),
    "conv_3x3_same": Conv((6, 5, 3), 7, (3, 3), pads=(1, 1, 1, 1)),
    "conv_3x3_valid_relu": Conv((5, 5, 4), 4, (3, 3), limits=(-9, 127)),
    "conv_3x3_uneven_pads": Conv((6, 6, 2), 5, (3, 3), stride=(2, 2), pads=(0, 0, 1, 1)),
    "conv_10x4": Conv((12, 10, 1), 8, (10, 4), stride=(2, 2), pads=(4, 1, 5, 1)),
    "conv_dilated": Conv((9, 8, 3), 4, (3, 2), dilation=(2, 3), pads=(2, 1, 2, 2)),
    "conv_grouped": Conv((5, 5, 6), 4, (3, 3), pads=(1, 1, 1, 1), groups=2),
    "conv_row": Conv((1, 15, 4), 6, (1, 3), pads=(0, 1, 0, 1)),
    "conv_row_stride": Conv((1, 16, 8), 5, (1, 6), stride=(1, 3), pads=(0, 1, 0, 1)),
    "conv_row_odd_channels": Conv((1, 13, 3), 4, (1, 4), pads=(0, 2, 0, 1)),
    "conv_many_channels": Conv((3, 2, 33), 17, (2, 2), pads=(0, 0, 1, 1)),
    "conv_wide_factors": Conv((4, 4, 5), 16, (2, 2), spread=6.0),
    "conv_zero_ends": Conv((4, 4, 3), 4, (3, 3), pads=(1, 1, 1, 1), x_zero=-128),
    "depthwise_3x3": Conv((6, 7, 8), 8, (3, 3), pads=(1, 1, 1, 1), groups=-1),
    "depthwise_3x3_stride": Conv((8, 6, 5), 5, (3, 3), (2, 2), pads=(0, 0, 1, 1), groups=-1),
    "depthwise_3x3_wide_pads": Conv((5, 5, 4), 4, (3, 3), pads=(2, 2, 2, 2), groups=-1),
    "depthwise_5x1": Conv((9, 3, 6), 6, (5, 1), pads=(2, 0, 2, 0), groups=-1),
    "depthwise_1x15": Conv((1, 20, 7), 7, (1, 15), pads=(0, 7, 0, 7), groups=-1),
    "depthwise_dilated": Conv((9, 9, 3), 3, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2), -1),
    "depthwise_twice": Conv((5, 5, 3), 6, (3, 3), pads=(1, 1, 1, 1), groups=-1),
    "depthwise_one_input": Conv((6, 6, 1), 8, (3, 3), pads=(1, 1, 1, 1), groups=-1),
    "depthwise_130": Conv((4, 3, 130), 130, (3, 3), pads=(1, 1, 1, 1), groups=-1),
    "dense_1": FullyConnected(1, 1),
    "dense_7x5": FullyConnected(7, 5),
    "dense_64x10_relu": FullyConnected(64, 10, limits=(0, 127)),
    "dense_rows": FullyConnected(17, 6, rows=3),
    "dense_per_channel": FullyConnected(33, 9, per_channel=True),
    "dense_zero_end": FullyConnected(31, 4, x_zero=-128),
    "add_1": Pair("add", 1, (0.05, 0.05, 0.1), (0, 0, 0)),
    "add_31": Pair("add", 31, (0.05, 0.013, 0.06), (-3, 128 - 256, 5)),
    "add_1000_relu": Pair("add", 1000, (0.021, 0.7, 0.4), (127, -128, -9), (-9, 127)),
    "add_constant": Pair("add", 33, (0.1, 0.2, 0.15), (1, 2, 3), constant=True),
    "mul_31": Pair("mul", 31, (0.05, 0.02, 0.07), (-5, 9, 3)),
    "mul_1000": Pair("mul", 1000, (0.02, 0.03, 0.011), (127, -128, 0), (-100, 100)),
    "mul_constant": Pair("mul", 7, (0.02, 0.03, 0.04), (0, 0, 0), constant=True),
    "mean_2x2": Pool("average_pool2d", (6, 6, 5), (2, 2), (2, 2)),
    "mean_3x3_pads": Pool("average_pool2d", (5, 6, 4), (3, 3), (2, 1), (1, 1, 1, 1)),
    "mean_global": Pool("average_pool2d", (7, 5, 33), (7, 5), limits=(-10, 127)),
    "max_2x2": Pool("max_pool2d", (6, 4, 5), (2, 2), (2, 2)),
    "max_3x2_pads": Pool("max_pool2d", (7, 5, 18), (3, 2), (2, 2), (1, 1, 1, 0)),
    "softmax_2": Rows(1, 2, 0.1),
    "softmax_10": Rows(3, 10, 0.25),
    "softmax_steep": Rows(2, 33, 3.0),
    "softmax_flat": Rows(2, 100, 0.004),
    "pad_4": Padding((1, 3, 4, 5), (0, 1, 0, 2), (0, 2, 3, 0), -17),
    "pad_2": Padding((3, 7), (1, 0), (0, 4), 5),
    "transpose_2": Permutation((5, 7), (1, 0)),
    "transpose_3": Permutation((3, 4, 5), (2, 0, 1)),
    "transpose_3_reverse": Permutation((3, 17, 5), (2, 1, 0)),
    "transpose_4": Permutation((2, 3, 4, 5), (0, 3, 1, 2)),
    "transpose_4_swap": Permutation((2, 3, 4, 17), (2, 1, 0, 3)),
}


def drawn_convolutions(count: int, seed: int) -> dict[str, Make]:
    """Convolutions of random geometry: plain, grouped, depthwise, over rows."""
    rng = np.random.default_rng(seed)
    made: dict[str, Make] = {}
    while len(made) < count:
        kind = int(rng.integers(0, 4))
        h = 1 if kind == 3 else int(rng.integers(1, 9))
        w, in_c = int(rng.integers(1, 18)), int(rng.integers(1, 20))
        kernel = (1 if kind == 3 else int(rng.integers(1, 5)), int(rng.integers(1, 6)))
        dilation = _draw_pair(rng, 3) if rng.integers(0, 4) == 0 else (1, 1)
        stride = _draw_pair(rng, 4)
        reach = [dilation[k] * (kernel[k] - 1) for k in (0, 1)]
        begin = [int(rng.integers(0, kernel[k])) for k in (0, 1)]
        end = [begin[k] + int(rng.integers(0, 2)) * (kernel[k] > 1) for k in (0, 1)]
        if any((h, w)[k] + begin[k] + end[k] <= reach[k] for k in (0, 1)):
            continue
        groups = {0: 1, 1: int(rng.integers(1, 4)), 2: -1, 3: 1}[kind]
        in_c = in_c * groups if groups > 1 else in_c
        out_c = int(rng.integers(1, 20)) * max(groups, 1)
        out_c = in_c * int(rng.integers(1, 3)) if groups < 0 else out_c
        pads = (begin[0], begin[1], end[0], end[1])
        x_zero = int(rng.choice([-128, -5, 0, 127]))
        made[f"drawn_{len(made)}"] = Conv(
            (h, w, in_c), out_c, kernel, stride, dilation, pads, groups, x_zero
        )
    return made


def _draw_pair(rng: np.random.Generator, end: int) -> tuple[int, int]:
    return int(rng.integers(1, end)), int(rng.integers(1, end))
