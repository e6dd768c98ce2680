"""Random graphs: onnxruntime, the integer reference and C on this machine give the same integers.

Every example is a batch of graphs compiled into one library. ``TINYQ_PROPERTY_EXAMPLES`` sets the
number of batches; the figures of a long run are in docs/verification.md.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from agreement import Model, compile_all, count_different, draw_inputs, run_c
from codegen.host import Instance
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from qdq import Qdq

from tinyq.ir import AnyArray
from tinyq.ops.average_pool2d import AveragePool2dAttrs

BATCHES = int(os.environ.get("TINYQ_PROPERTY_EXAMPLES", "10"))
GRAPHS = 16
INPUTS = 6

Shape = tuple[int, ...]
ENDS = {"int8": (-128, 127), "uint8": (0, 255)}
SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17])
SCALES = st.floats(-5.0, 0.0).map(lambda e: float(np.float32(10.0**e)))
DYADIC = st.integers(-12, 0).map(lambda e: 2.0**e)


@dataclass
class Tally:
    """What a run compared."""

    graphs: int = 0
    outputs: int = 0
    beside_halves: int = 0


TALLY = Tally()


def zero_point(draw: st.DrawFn, dtype: str) -> int:
    low, high = ENDS[dtype]
    return draw(st.sampled_from([low, high, (low + high + 1) // 2]) | st.integers(low, high))


def scale_for(draw: st.DrawFn, accumulator_scale: float, reach: float) -> float:
    """An output scale that spreads the results, or is coarser or finer by up to a hundred."""
    factor = draw(st.sampled_from([0.01, 0.1, 0.5, 1.0, 1.0, 1.0, 3.0, 100.0]))
    free = float(np.float32(accumulator_scale * max(reach, 1) / 128 * factor))
    if draw(st.booleans()) and draw(st.booleans()):
        return float(2.0 ** np.clip(np.rint(np.log2(free)), -60, 20))
    return max(free, 1e-30)


def finish(draw: st.DrawFn, b: Qdq, y: str, accumulator_scale: float, reach: float) -> None:
    if draw(st.booleans()):
        y = b.op("Relu", y)
    b.end(y, scale_for(draw, accumulator_scale, reach), zero_point(draw, b.dtype))


def drawn_weights(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    bound = draw(st.sampled_from([1, 7, 127, 127, 127]))
    return rng.integers(-bound, bound + 1, shape)


def conv(draw: st.DrawFn) -> Qdq:
    b = Qdq(draw(st.sampled_from(["int8", "uint8"])))
    one_dimension = draw(st.integers(0, 4)) == 0
    rank = 1 if one_dimension else 2
    groups = draw(st.sampled_from([1, 1, 2, 3, 5]))
    depthwise = draw(st.booleans())
    per_group_in = 1 if depthwise else draw(SIZES.filter(lambda n: n < 10))
    per_group_out = draw(st.integers(1, 5))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    dilations = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in range(rank)]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [draw(st.integers(0, e - 1)) for e in extent * 2]
    spatial = [max(1, draw(SIZES), e - p) for e, p in zip(extent, pads, strict=False)]
    attributes: dict[str, Any] = {
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)], "dilations": dilations,
        "group": groups,
    }  # fmt: skip
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER"]))
    if auto == "NOTSET" or max(dilations) > 1:
        attributes["pads"] = pads
    else:
        attributes["auto_pad"] = auto
    x_scale, w_scale = draw(SCALES | DYADIC), draw(SCALES | DYADIC)
    out = groups * per_group_out
    weights = drawn_weights(draw, (out, per_group_in, *kernel))
    per_channel = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    scales = (np.float32(w_scale) * rng.uniform(0.1, 1, out)).astype(np.float32)
    scale = scales if per_channel else np.float32(w_scale)
    x = b.x((1, groups * per_group_in, *spatial), x_scale, zero_point(draw, b.dtype))
    reach = 60.0 * np.abs(weights).reshape(out, -1).sum(axis=1).max() / np.sqrt(weights[0].size)
    inputs = [x, b.weights(weights, scale)]
    if draw(st.booleans()):
        bias = rng.integers(-int(reach) - 1, int(reach) + 2, out)
        inputs.append(b.bias(bias, (np.float32(x_scale) * scale).astype(np.float32)))
    y = b.op("Conv", *inputs, **attributes)
    finish(draw, b, y, x_scale * w_scale, reach)
    return b


def dense(draw: st.DrawFn) -> Qdq:
    b = Qdq(draw(st.sampled_from(["int8", "uint8"])))
    depth, out = draw(SIZES | st.sampled_from([31, 33, 64, 130])), draw(SIZES)
    rows = draw(st.sampled_from([1, 1, 2, 3]))
    x_scale, w_scale = draw(SCALES | DYADIC), draw(SCALES | DYADIC)
    transposed = draw(st.integers(0, 1))
    weights = drawn_weights(draw, (out, depth))
    reach = 60.0 * np.abs(weights).sum(axis=1).max() / np.sqrt(depth)
    x = b.x((rows, depth), x_scale, zero_point(draw, b.dtype))
    w = b.weights(weights if transposed else weights.T, np.float32(w_scale))
    inputs = [x, w]
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**20)))
        bias = rng.integers(-int(reach) - 1, int(reach) + 2, out)
        inputs.append(b.bias(bias, np.float32(x_scale) * np.float32(w_scale)))
    y = b.op("Gemm", *inputs, transB=transposed)
    finish(draw, b, y, x_scale * w_scale, reach)
    return b


def elementwise(draw: st.DrawFn) -> Qdq:
    b = Qdq(draw(st.sampled_from(["int8", "uint8"])))
    op = draw(st.sampled_from(["Add", "Sub", "Mul"]))
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    other = tuple(1 if draw(st.booleans()) and draw(st.booleans()) else n for n in shape)
    a_scale, b_scale = draw(SCALES | DYADIC), draw(SCALES | DYADIC)
    x = b.x(shape, a_scale, zero_point(draw, b.dtype))
    y = b.op(op, x, b.x(other, b_scale, zero_point(draw, b.dtype)))
    largest = a_scale * b_scale if op == "Mul" else max(a_scale, b_scale)
    finish(draw, b, y, largest, 128.0 * 128.0 if op == "Mul" else 256.0)
    return b


def pool(draw: st.DrawFn) -> Qdq:
    b = Qdq(draw(st.sampled_from(["int8", "uint8"])), opset=19)
    op = draw(st.sampled_from(["MaxPool", "AveragePool", "AveragePool", "GlobalAveragePool"]))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    spatial = [max(draw(SIZES), k) for k in kernel]
    x_scale, zero = draw(SCALES | DYADIC), zero_point(draw, b.dtype)
    x = b.x((1, draw(SIZES), *spatial), x_scale, zero)
    attributes: dict[str, Any] = {}
    if op != "GlobalAveragePool":
        strides = [draw(st.integers(1, 3)) for _ in range(2)]
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    if op == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    y = b.op(op, x, **attributes)
    if op == "MaxPool":
        b.end(y, x_scale, zero)
    else:
        finish(draw, b, y, x_scale, 64.0)
    return b


@dataclass(frozen=True)
class Tensor:
    """Reals on a grid."""

    name: str
    shape: Shape
    scale: float
    zero: int


MOVEMENT = {"MaxPool", "Transpose", "Slice", "Pad"}


def chain(draw: st.DrawFn) -> Qdq:
    """Several layers, every tensor quantized: layout, lifetimes and in-place are at work.

    No tensor is quantized twice in a row: onnxruntime's optimizer joins two such pairs into one of
    another scale, which is not what the model says.
    """
    b = Qdq(draw(st.sampled_from(["int8", "uint8"])))
    shape = (1, draw(st.integers(1, 6)), draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    zero = zero_point(draw, b.dtype)
    seen = [Tensor(b.x(shape, 0.05, zero), shape, 0.05, zero)]
    for _ in range(draw(st.integers(2, 6))):
        x = seen[-1] if draw(st.integers(0, 3)) else draw(st.sampled_from(seen))
        y, shape, factor = step(draw, b, x, seen)
        if b.nodes[-1].op_type in MOVEMENT:
            scale, zero = x.scale, x.zero
        else:
            scale = float(np.float32(0.05 * factor))
            # A Relu costs no levels, as quantizers choose it: onnxruntime then fuses it.
            fused = b.nodes[-1].op_type == "Relu"
            zero = ENDS[b.dtype][0] if fused else zero_point(draw, b.dtype)
        integers = b.q(y, scale, zero)
        if draw(st.integers(0, 3)) == 0:
            b.output(integers)
        seen.append(Tensor(b.dq(integers, scale, zero), shape, scale, zero))
    last = seen[-1]
    w = b.weights(drawn_weights(draw, (5, int(np.prod(last.shape)))), 0.01)
    flat = b.qdq(b.op("Flatten", last.name), last.scale, last.zero)
    return b.end(b.op("Gemm", flat, w, transB=1), 0.3)


def step(draw: st.DrawFn, b: Qdq, source: Tensor, seen: list[Tensor]) -> tuple[str, Shape, float]:
    """One layer on ``source``: its reals, their shape, and how much larger they are."""
    x, shape = source.name, source.shape
    n, c, h, w = shape
    alike = [t.name for t in seen if t.shape == shape]
    joinable = [t for t in seen if (t.shape[0], *t.shape[2:]) == (n, h, w)]
    kind = draw(st.sampled_from(
        ["conv", "depthwise", "add", "mul", "concat", "max", "transpose", "slice", "pad", "table"]
    ))  # fmt: skip
    if kind == "conv":
        out, k = draw(st.integers(1, 6)), draw(st.sampled_from([1, 3]))
        weights = b.weights(drawn_weights(draw, (out, c, k, k)), 0.01)
        y = b.op("Conv", x, weights, pads=[k // 2] * 4)
        return (b.op("Relu", y) if draw(st.booleans()) else y), (n, out, h, w), 2.0 * k
    if kind == "depthwise":
        weights = b.weights(drawn_weights(draw, (c, 1, 3, 3)), 0.01)
        return b.op("Conv", x, weights, group=c, pads=[1] * 4), shape, 3.0
    if kind in ("add", "mul"):
        other = draw(st.sampled_from(alike))
        return b.op(kind.capitalize(), x, other), shape, 1.5 if kind == "add" else 3.0
    if kind == "concat":
        joined = draw(st.sampled_from(joinable))
        shape = (n, c + joined.shape[1], h, w)
        return b.op("Concat", x, joined.name, axis=1), shape, 1.1
    if kind == "max":
        return b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4), shape, 1.0
    if kind == "transpose":
        perm = draw(st.permutations([1, 2, 3]))
        return b.op("Transpose", x, perm=[0, *perm]), (n, *(shape[k] for k in perm)), 1.0
    if kind == "slice" and c > 1:
        bounds = [b.const(v) for v in ((c - 1,), (0,), (1,), (-1,))]
        return b.op("Slice", x, *bounds), (n, c - 1, h, w), 1.0
    if kind == "pad" and h < 10:
        return b.op("Pad", x, b.const((0, 0, 1, 0, 0, 1, 0, 2))), (n, c + 1, h + 1, w + 2), 1.0
    return b.op("Sigmoid", x), shape, 0.1


KINDS: dict[str, Callable[[st.DrawFn], Qdq]] = {
    "conv": conv, "dense": dense, "elementwise": elementwise, "pool": pool,
    "chain": chain,
}  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> Qdq:
    kind = draw(st.sampled_from(["conv", "conv", "dense", "elementwise", "pool", "chain", "chain"]))
    return KINDS[kind](draw)


def exact(model: Model) -> bool:
    """Whether every requantization is proved to equal onnxruntime's."""
    found = [getattr(node.attrs, "requant", None) for node in model.graph.nodes]
    return all(requant is None or requant.exact for requant in found)


def tolerated(model: Model, inputs: dict[str, AnyArray]) -> npt.NDArray[np.bool_]:
    """Outputs at which onnxruntime is free to differ from the reference by one.

    Means over a window, and layers before a Relu that is not fused, which onnxruntime computes in
    float32: there the result lies on a half, as near as float32 sums are exact.
    """
    value = model.graph.outputs[0]
    for node in model.graph.nodes:
        if node.op in ("conv2d", "dense"):
            assert node.attrs.requant.exact
        if node.op in ("conv2d", "dense") and "Relu" in {n.op_type for n in model.proto.graph.node}:
            # A Relu above the output's lowest level is not fused: the layer runs in float32.
            real = np.asarray(model.real(inputs, model.proto.graph.node[-1].input[0]), np.float64)
            assert value.type.quant is not None
            real /= value.type.quant.scale
            return np.abs(real - np.floor(real) - 0.5) <= 1e-3
        if isinstance(node.attrs, AveragePool2dAttrs) and node.attrs.rule != "image":
            quant, taps = value.type.quant, np.prod(node.attrs.window.kernel_hw)
            assert quant is not None
            name = model.proto.graph.node[-1].input[0]
            real = np.asarray(model.real(inputs, name), np.float64) / quant.scale
            # Every addition of a float32 sum of `taps` numbers errs by 2^-24 of it at most.
            error = (taps + 3) * 255 * node.attrs.x.scale / quant.scale * 2.0**-24
            return np.abs(real - np.floor(real) - 0.5) <= error
    return np.zeros(value.type.shape, bool)


def compare(model: Model, instance: Instance, x: dict[str, AnyArray], graph: str) -> None:
    """One inference three ways."""
    wanted = model.reference(x)
    assert count_different(run_c(instance, model.graph, x), wanted) == 0, f"C: {graph}"
    given_by_ort = model.oracle(x)
    TALLY.outputs += wanted[0].size
    if count_different(wanted[1:], given_by_ort[1:]):
        assert not exact(model), f"reference: {graph}"
    elif count_different(wanted, given_by_ort):
        gap = wanted[0].astype(int) - given_by_ort[0]
        assert np.abs(gap).max() <= 1, f"reference: {graph}"
        assert not np.any((gap != 0) & ~tolerated(model, x)), f"reference: {graph}"
        TALLY.beside_halves += int(np.sum(gap != 0))


@settings(
    max_examples=BATCHES, deadline=None, derandomize="TINYQ_PROPERTY_SEED" not in os.environ,
    suppress_health_check=list(HealthCheck), database=None,
    # A batch takes a second: the failing graph is named instead of shrunk.
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
@given(st.lists(graphs(), min_size=GRAPHS, max_size=2 * GRAPHS))
def check_batch(batch: list[Qdq]) -> None:
    models = {f"g{k}": Model(f"g{k}", builder.model()) for k, builder in enumerate(batch)}
    with tempfile.TemporaryDirectory() as name:
        instances = compile_all({n: m.graph for n, m in models.items()}, Path(name))
        for builder, (key, model) in zip(batch, models.items(), strict=True):
            for x in draw_inputs(model.graph, INPUTS):
                compare(model, instances[key], x, repr(builder))
    TALLY.graphs += len(batch)


def test_random_graphs_agree() -> None:
    check_batch()
    # Seen with -s: what docs/verification.md records.
    print(
        f"\n{TALLY.graphs} graphs, {TALLY.outputs} outputs compared; reference and C: 0 differ; "
        f"reference and onnxruntime: {TALLY.beside_halves} beside halves of float32 means"
    )
    assert TALLY.graphs >= BATCHES
