"""Kernels that count bits give what onnxruntime gives."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agreement import Model, compile_all, count_different, draw_inputs, models_of, run_c
from codegen.host import program_of, write
from qdq import Qdq
from test_packed_kernels import innermost_loops, side_by_side

import tinyq
from tinyq.codegen import GenerateOptions, write_program
from tinyq.ops.counts import Bits
from tinyq.select import Goal, select
from tinyq.target import load_core
from tinyq.verification.verify import VerifyOptions

CONV, DENSE = "conv2d_s8_counts", "dense_s8_counts"
WEIGHTS = {"binary": (-127, 127), "ternary": (-64, 0, 64), "mostly zero": (0, 0, 0, 0, 5, -5)}
VALUES = {
    "one bit": (0, 255), "signs": (27, 229), "two bits": (0, 85, 170, 255),
    "apot": (0, 63, 126, 252), "three": (10, 20, 30), "uneven": (0, 20, 60, 140),
}  # fmt: skip


def levels(b: Qdq, x: str, values: tuple[int, ...], zero: int) -> str:
    """Reals that take the uint8 ``values``, by a table of 256."""
    table = np.array(values, np.uint8)[np.arange(256) * len(values) // 256]
    codes = b.op("Cast", b.q(x, 0.05, 128), to=6)
    return b.dq(b.op("Gather", b.const(table), codes), 0.04, zero, "uint8")


def conv(
    weights: str = "ternary", values: str = "two bits", channels: int = 16, outputs: int = 6,
    kernel: tuple[int, int] = (3, 3), *, size: tuple[int, int] = (5, 4), pads: int | None = None,
    stride: int = 1, dilation: int = 1, zero: int | None = None,
) -> Qdq:  # fmt: skip
    b, rng = Qdq("uint8"), np.random.default_rng(channels + outputs)
    taken = VALUES[values]
    x = levels(b, b.x((1, channels, *size), 0.05, 128), taken, taken[0] if zero is None else zero)
    shape = (outputs, channels, *kernel)
    drawn = rng.choice(np.array(WEIGHTS[weights]), shape)
    drawn.flat[: len(WEIGHTS[weights])] = WEIGHTS[weights]
    each = [k // 2 for k in kernel] if pads is None else [pads, pads]
    scale = 0.04 * 100 * np.abs(drawn).max() * np.sqrt(drawn[0].size)
    bias = rng.integers(-3000, 3000, outputs)
    y = b.op(
        "Conv", x, b.weights(drawn, 0.01), b.bias(bias, 0.04 * 0.01), pads=[*each, *each],
        strides=[stride] * 2, dilations=[dilation] * 2,
    )  # fmt: skip
    return b.end(y, float(scale) * 0.01 / 90, 120)


def dense(
    weights: str, values: str = "two bits", inputs: int = 70, outputs: int = 5, rows: int = 1
) -> Qdq:
    b, rng = Qdq("uint8"), np.random.default_rng(inputs)
    x = levels(b, b.x((rows, inputs), 0.05, 128), VALUES[values], VALUES[values][0])
    drawn = rng.choice(np.array(WEIGHTS[weights]), (outputs, inputs))
    drawn.flat[: len(WEIGHTS[weights])] = WEIGHTS[weights]
    scale = 0.04 * 100 * np.abs(drawn).max() * np.sqrt(inputs) * 0.01 / 90
    return b.end(b.op("Gemm", x, b.weights(drawn, 0.01), transB=1), float(scale), 120)


CASES: dict[str, Callable[[], Qdq]] = {}
for _weights in WEIGHTS:
    for _values in VALUES:
        CASES[f"{_weights}, {_values}"] = lambda w=_weights, v=_values: conv(w, v)
        CASES[f"dense {_weights}, {_values}"] = lambda w=_weights, v=_values: dense(w, v)
for _channels in (1, 3, 7, 8, 9, 17, 24, 32, 40, 64):
    CASES[f"{_channels} channels"] = lambda c=_channels: conv(channels=c)
    CASES[f"{_channels} channels, binary"] = lambda c=_channels: conv("binary", "apot", c)
    CASES[f"{_channels} channels, 1x1"] = lambda c=_channels: conv(
        "binary", "apot", c, kernel=(1, 1)
    )
CASES |= {
    "padded with the highest": lambda: conv("binary", "two bits", 11, zero=255),
    "padded with the second": lambda: conv("binary", "apot", 5, zero=63),
    "padded with the middle": lambda: conv("ternary", "three", 13, zero=20),
    "zero point apart, no padding": lambda: conv("ternary", "signs", pads=0, zero=128),
    "stride": lambda: conv(stride=2, size=(7, 6)),
    "1x1 stride": lambda: conv(kernel=(1, 1), stride=2, size=(7, 6)),
    "stride 3": lambda: conv(stride=3, size=(9, 8), kernel=(2, 2), pads=0),
    "dilated": lambda: conv("binary", "two bits", 9, dilation=2, pads=2, size=(6, 7)),
    "rows": lambda: conv(kernel=(1, 5), size=(1, 9)),
    "columns": lambda: conv(kernel=(5, 1), size=(9, 1)),
    "5x4": lambda: conv(kernel=(5, 4), size=(6, 6), pads=1),
    "long": lambda: conv("binary", "apot", 128, 3),
    "one output": lambda: conv(outputs=1, size=(3, 3), pads=0),
    "dense rows": lambda: dense("ternary", "apot", 33, 7, 3),
    "dense long": lambda: dense("binary", "two bits", 1500, 3),
}
MODELS = models_of(CASES)


def forced(model: Model) -> dict[str, str]:
    return {
        node.name: {"conv2d": CONV, "dense": DENSE}[node.op]
        for node in model.graph.nodes
        if node.op in ("conv2d", "dense")
    }


def test_c_equals_onnxruntime(tmp_path: Path) -> None:
    graphs = {f"m{k}": model.graph for k, model in enumerate(MODELS.values())}
    kernels = {f"m{k}": forced(model) for k, model in enumerate(MODELS.values())}
    assert all(kernels.values())
    instances = compile_all(graphs, tmp_path, "cortex-m0plus", kernels=kernels)
    wrong = []
    for name, model in zip(graphs, MODELS.values(), strict=True):
        seen: set[int] = set()
        for x in draw_inputs(model.graph, 4):
            wanted = model.oracle(x)
            seen |= set(wanted[0].flat)
            if count_different(run_c(instances[name], model.graph, x), wanted):
                wrong.append(model.name)
        assert len(seen) > 2, model.name
    assert wrong == []


@pytest.mark.qemu
@pytest.mark.parametrize("target", ["cortex-m0plus", "cortex-m4"])
def test_emulated_core(target: str, tmp_path: Path) -> None:
    """Every case in one firmware."""
    model = Model(
        "counts",
        side_by_side([build() for name, build in CASES.items() if name != "dense rows"]).model(),
    )
    schedule = select(model.graph, load_core(target), Goal("speed"), forced(model))
    assert {layer.call.kernel for layer in schedule.layers} >= {CONV, DENSE}
    options = GenerateOptions(model=model.proto.SerializeToString())
    write_program(program_of(schedule, "counts", options), tmp_path / "out")
    report = tinyq.verify(tmp_path / "out", VerifyOptions(random=2))
    assert report.equal
    assert report.outputs_compared == 2 * sum(v.type.elements for v in model.graph.outputs)


def test_no_multiplication_in_the_inner_loop(tmp_path: Path) -> None:
    model = MODELS["64 channels"]
    chosen = select(model.graph, load_core("cortex-m0"), Goal("speed"), forced(model))
    write(program_of(chosen, "net"), tmp_path / "net")
    flags = ("-mcpu=cortex-m0", "-mthumb", "-O2", "-std=c99", "-c")
    command = ["arm-none-eabi-gcc", *flags, str(tmp_path / "net" / "net.c"), "-o"]
    subprocess.run([*command, str(tmp_path / "net.o")], check=True)
    listing = subprocess.run(
        ["arm-none-eabi-objdump", "-d", "--no-show-raw-insn", str(tmp_path / "net.o")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    loops = [loop for loop in innermost_loops(listing, "tinyq_count_s8") if "eors" in loop]
    assert loops
    assert not [loop for loop in loops if "mul" in loop or "bl " in loop]


@pytest.mark.parametrize("values", VALUES.values())
def test_bits_add_up_to_the_value(values: tuple[int, ...]) -> None:
    bits = Bits.of(values)
    assert len(bits.weights) <= len(values) - 1
    for value in values:
        ones = bits.of_value(value)
        assert bits.base + bits.unit * sum(map(int.__mul__, bits.weights, ones)) == value
    assert len(Bits.of((0, 85, 170, 255)).weights) == 2


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: conv("ternary", "signs", zero=128), "its padding is none of the values"),
        (lambda: conv("ternary", "far"), "unevenly far apart"),
        (lambda: conv("ternary", "five"), "can take more than 4 values"),
    ],
)
def test_refusals(build: Callable[[], Qdq], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VALUES, "far", (0, 1, 100, 103))
    monkeypatch.setitem(VALUES, "five", (0, 1, 2, 3, 4))
    schedule = select(
        Model("refused", build().model()).graph, load_core("cortex-m0plus"), Goal("speed")
    )
    (layer,) = [la for la in schedule.layers if la.node.op == "conv2d"]
    (found,) = [c.refusal for c in layer.candidates if c.kernel == CONV]
    assert reason in found
