"""Removal of taps that meet nothing but padding: what is left computes the same."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import Model, assert_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from qdq import Qdq

from tinyq.ir import Node
from tinyq.passes.dead_taps import live_taps


def network(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, dilation: int,
    pads: tuple[int, int, int, int], groups: int = 1, seed: int = 0,
) -> Qdq:  # fmt: skip
    rng = np.random.default_rng(seed)
    b = Qdq()
    w = b.weights(rng.integers(-127, 128, (4, 4 // groups, *kernel)), 0.0107)
    bias = b.bias(rng.integers(-2000, 2000, 4), 0.0513 * 0.0107)
    y = b.op(
        "Conv", b.x((1, 4, *size), 0.0513, 17), w, bias, pads=list(pads), strides=[stride] * 2,
        dilations=[dilation] * 2, group=groups,
    )  # fmt: skip
    return b.end(y, 0.231, -5)


def conv_of(model: Model) -> Node:
    return next(n for n in model.graph.nodes if n.op == "conv2d")


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads", "left"),
    [
        ((1, 1), (3, 3), 1, (1, 1, 1, 1), (1, 1)),
        ((2, 2), (3, 3), 2, (1, 1, 1, 1), (2, 2)),
        ((1, 5), (3, 3), 1, (1, 1, 1, 1), (1, 3)),
        ((2, 2), (5, 5), 1, (2, 2, 2, 2), (3, 3)),
        ((4, 4), (3, 3), 1, (1, 1, 1, 1), (3, 3)),
        ((1, 1), (1, 1), 1, (0, 0, 0, 0), (1, 1)),
        ((2, 3), (3, 3), 1, (0, 2, 1, 0), (2, 3)),
    ],
)
@pytest.mark.parametrize("groups", [1, 4])
def test_kernels_shrink(
    size: tuple[int, int], kernel: tuple[int, int], stride: int,
    pads: tuple[int, int, int, int], left: tuple[int, int], groups: int,
) -> None:  # fmt: skip
    model = Model("crop", network(size, kernel, stride, 1, pads, groups).model())
    node = conv_of(model)
    assert node.input(1).type.shape[1:3] == left
    removed = left != kernel
    assert any("meet nothing but padding" in note for note in model.lowered.notes) is removed
    assert_reference(model, 6)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    seed=st.integers(0, 99),
)
def test_any_geometry(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, dilation: int,
    pads: tuple[int, int, int, int], seed: int,
) -> None:  # fmt: skip
    """onnxruntime computes the model with all taps; the graph has those that matter."""
    outputs = [
        (s + pads[k] + pads[k + 2] - dilation * (n - 1) - 1) // stride + 1
        for k, (s, n) in enumerate(zip(size, kernel, strict=True))
    ]
    if min(outputs) < 1 or any(pads[k] >= kernel[k] * dilation for k in (0, 1)):
        return
    model = Model("any", network(size, kernel, stride, dilation, pads, 1, seed).model())
    assert_reference(model, 4, plain=False)
    weights = conv_of(model).input(1).array
    for k in (0, 1):
        first, last = live_taps(size[k], outputs[k], kernel[k], stride, dilation, pads[k])
        assert weights.shape[1 + k] >= last - first + 1
        if dilation == 1 and stride == 1:
            assert weights.shape[1 + k] == last - first + 1
