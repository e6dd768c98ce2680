"""One graph of many independent layers, each with its kernel, its numpy result, and corrections."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dsp_kernels import Conv, accumulate, draw_requant

from tinyq.build import load_network
from tinyq.codegen import generate, write_program
from tinyq.emulate import RunOptions, run_network
from tinyq.ir import DType, Graph, Node, Stage, TensorType, Value
from tinyq.ops.conv2d import Conv2dAttrs
from tinyq.ops.dense import DenseAttrs
from tinyq.plan import MemoryPlan
from tinyq.quant import (
    Fix,
    FixedPointLinear,
    Guard,
    OrtLinear,
    OrtMatMulFloatBias,
    Requant,
    RequantProof,
    Rounding,
    build_staircase,
    with_guard,
)
from tinyq.select import Goal, Schedule, select
from tinyq.target import load_core

Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]
PROOF = RequantProof(0, 0, 0, 0, 0, True)
FORMS = ("up", "even", "odd", "float", "float_bias", "once", "twice")
"""Ways of requantizing: with ties, or with a guard that leaves sums near a step to a rule."""


@dataclass(frozen=True)
class DenseCase:
    """Dense [rows, I] to [rows, O]."""

    rows: int
    i: int
    o: int
    pre_shift: int = 0
    qmin: int = -128
    qmax: int = 127


@dataclass
class Table:
    """Layers by name: the kernel of each, its input, what numpy makes of it."""

    nodes: list[Node] = field(default_factory=list)
    kernels: dict[str, str] = field(default_factory=dict)
    inputs: list[Int8] = field(default_factory=list)
    expected: list[Int8] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def conv(
        self, kernel: str, case: Conv, fixes: int = 2, wide: bool = False, form: str = "up"
    ) -> None:
        """A convolution; ``wide`` draws weights of 16 bits; ``form`` is one of FORMS."""
        x = self._draw((case.h, case.w, case.c))
        shape = (case.o, *case.k, case.c // case.groups)
        weights = self._weights(shape, wide)
        acc = accumulate(x, weights, case)
        requant, expected = self._requant(acc, case, fixes, form)
        attrs = Conv2dAttrs(
            case.s, case.d, case.pads, case.groups, case.zp, _no_oracle(), np.ones(case.o), requant
        )
        name = f"{len(self.nodes)}_{kernel}_{case.name}"
        self._add("conv2d", kernel, name, x[None], weights, attrs, expected[None])

    def dense(
        self, kernel: str, case: DenseCase, fixes: int = 2, wide: bool = False, form: str = "up"
    ) -> None:
        """A dense layer."""
        x = self._draw((case.rows, case.i))
        weights = self._weights((case.o, case.i), wide)
        acc = x.astype(np.int64) @ weights.astype(np.int64).T
        requant, expected = self._requant(acc, case, fixes, form)
        attrs = DenseAttrs(_no_oracle(), np.ones(case.o), requant)
        name = f"{len(self.nodes)}_{kernel}_{case.rows}x{case.i}x{case.o}"
        self._add("dense", kernel, name, x, weights, attrs, expected)

    def _draw(self, shape: tuple[int, ...]) -> Int8:
        return self.rng.integers(-128, 128, shape).astype(np.int8)

    def _weights(self, shape: tuple[int, ...], wide: bool) -> Any:
        if wide:
            return self.rng.integers(-300, 301, shape).astype(np.int16)
        return self._draw(shape)

    def _requant(self, acc: Int64, case: Any, count: int, form: str) -> tuple[Requant, Int8]:
        """Parameters with ``count`` corrections of accumulators that occur, and the outputs."""
        flat = acc.reshape(-1, acc.shape[-1])
        if form not in ("up", "even", "odd"):
            requant, outputs = self._guarded(flat, case, form)
            return requant, outputs.astype(np.int8).reshape(acc.shape)
        drawn = draw_requant(self.rng, np.concatenate([flat, -flat]), pre_shift=case.pre_shift)
        if form != "up":  # levels with two bits of fraction at least
            shift = max(0, 2 - drawn.post_shift)
            drawn = replace(drawn, multiplier=drawn.multiplier, addend=drawn.addend << shift,
                            post_shift=drawn.post_shift + shift)  # fmt: skip
        level = ((flat << drawn.pre_shift) * drawn.multiplier >> 32) + drawn.addend
        if form != "up":
            level -= (level >> drawn.post_shift & 1 ^ int(form == "odd")) * 2
        level >>= drawn.post_shift
        fixes: list[Fix] = []
        for k in range(count):
            channel, pixel = (5 * k) % flat.shape[1], (7 * k) % len(flat)
            value, delta = int(flat[pixel, channel]), 1 - 2 * (k % 2)
            if all((f.channel, f.accumulator) != (channel, value) for f in fixes):
                level[flat[:, channel] == value, channel] += delta
                fixes.append(Fix(channel, value, delta))
        requant = Requant(
            drawn.multiplier.astype(np.int32), drawn.addend.astype(np.int32), drawn.pre_shift,
            drawn.post_shift, case.qmin, case.qmax, tuple(fixes), PROOF, form,
        )  # fmt: skip
        return requant, level.clip(case.qmin, case.qmax).astype(np.int8).reshape(acc.shape)

    def _guarded(self, flat: Int64, case: Any, form: str) -> tuple[Requant, Int64]:
        """Parameters with a guard so wide that the rule is asked often, and the rule's outputs."""
        channels = flat.shape[1]
        most = np.abs(flat).max(axis=0) + 1
        scale = (self.rng.uniform(50, 200, channels) / most).astype(np.float32)
        offset = self.rng.integers(-most // 2, most // 2 + 1)
        zero_point = int(self.rng.integers(-20, 20))
        rest = (offset, zero_point, case.qmin, case.qmax)
        nothing = np.zeros(channels, np.int64)
        oracle: Any
        if form == "float":
            oracle = OrtLinear(scale, nothing, *rest)
        elif form == "float_bias":
            bias = self.rng.uniform(-1, 1, channels).astype(np.float32)
            oracle = OrtMatMulFloatBias(scale / 64, bias, offset, 1 / 64, *rest[1:])
        else:
            oracle = FixedPointLinear.of_scales(
                scale.astype(np.float64), nothing, *rest[:2], Rounding(form), *rest[2:]
            )
        stair = build_staircase(oracle, -most, most, case.qmin, case.qmax)
        found = with_guard(stair, scale.astype(np.float64), oracle)
        assert found.guard is not None
        outputs = np.asarray(oracle(flat.T).T)
        return replace(found, guard=Guard(min(2, found.guard.bits), oracle)), outputs

    def _add(
        self, op: str, kernel: str, name: str, x: Int8, weights: Any, attrs: Any, expected: Int8
    ) -> None:
        dtype = DType.INT16 if weights.dtype == np.int16 else DType.INT8
        source = Value(f"x_{name}", TensorType(x.shape, DType.INT8))
        constant = Value(f"w_{name}", TensorType(weights.shape, dtype), weights)
        result = Value(f"y_{name}", TensorType(expected.shape, DType.INT8))
        self.nodes.append(Node(op, name, (source, constant), (result,), attrs))
        self.kernels[name] = kernel
        self.inputs.append(x)
        self.expected.append(expected)

    def schedule(self, target: str) -> Schedule:
        """Every layer with its kernel."""
        graph = Graph(
            "table",
            Stage.INTEGER,
            tuple(node.input(0) for node in self.nodes),
            tuple(node.output for node in self.nodes),
            tuple(self.nodes),
        )
        return select(graph, load_core(target), Goal.SPEED, self.kernels)

    def wrong(self, target: str, emulator: str, folder: Path) -> list[str]:
        """Names of the layers whose outputs differ from numpy's."""
        schedule = self.schedule(target)
        write_program(generate(schedule, tightest(schedule), "table"), folder / "table")
        network = load_network(folder / "table")
        options = RunOptions(emulator=emulator, sanitize=emulator == "host")
        trace = run_network(network, [x[None] for x in self.inputs], options).trace
        return [
            node.name
            for node, got, wanted in zip(self.nodes, trace.outputs, self.expected, strict=True)
            if not np.array_equal(got.reshape(wanted.shape), wanted)
        ]


def tightest(schedule: Schedule) -> MemoryPlan:
    """Every layer in memory of its own, its output over its input as far as the kernel allows."""
    offsets: dict[Value, int] = {}
    scratch: list[int | None] = []
    end = 0
    for layer in schedule.layers:
        x, y, call = layer.inputs[0], layer.outputs[0], layer.call
        distance = 0 if call.overlap is None and 0 in call.in_place else call.overlap
        if distance is None:
            distance = -x.type.bytes
        offsets[x] = end + max(0, distance)
        offsets[y] = end + max(0, -distance)
        end = max(offsets[v] + v.type.bytes for v in (x, y)) + 15 & -16
        scratch.append(end if call.scratch_bytes else None)
        end = end + call.scratch_bytes + 15 & -16
    overlays = (None,) * len(schedule.layers)
    return MemoryPlan(max(1, end), end, offsets, tuple(scratch), overlays)


def _no_oracle() -> Any:
    """The requantization is given: nothing is synthesised."""
    return None
