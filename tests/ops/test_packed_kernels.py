"""Kernels that read packed weights give what onnxruntime gives, in every encoding."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import pytest
from agreement import Model, count_different, draw_inputs, run_c
from codegen.host import UNDEFINED, WARNINGS, Instance, program_of, write
from qdq import Array, Qdq

import tinyq
from tinyq.codegen import Program
from tinyq.ops import packed, sums
from tinyq.ops.base import KernelCall
from tinyq.select import Goal, Schedule, select
from tinyq.target import load_core
from tinyq.verification.verify import VerifyOptions

LEVELS: dict[str, list[int]] = {
    "binary": [-64, 64],
    "ternary": [-64, 0, 64],
    "codebook2": [-100, -7, 3, 90],
    "int3": [16 * k for k in range(-3, 4)],
    "pot3": [s * 16 * m for m in (0, 1, 2, 4) for s in (-1, 1)],
    "int4": [8 * k for k in range(-8, 8)],
    "pot4": [s * m for m in (0, 1, 2, 4, 8, 16, 32, 64) for s in (-1, 1)],
    "apot4": [s * 8 * m for m in (0, 1, 2, 3, 4, 6, 8, 10) for s in (-1, 1)],
    "codebook4": [-128, -90, -60, -33, -20, -11, -5, -1, 2, 7, 13, 29, 50, 88, 101, 127],
    "apot5": [s * 2 * (i + 2 * j) for i in (0, 1, 4, 16) for j in (0, 1, 4, 16) for s in (-1, 1)],
    "int5": list(range(-16, 16)),
    "codebook5": [k * k * k // 40 - 3 for k in range(-15, 16)],
}
CONV, CONV_DSP = "conv2d_s8_packed", "conv2d_s8_dsp_packed"
DEPTHWISE, DEPTHWISE_DSP = "depthwise_s8_packed", "depthwise_s8_dsp_packed"
SUMS = "conv2d_s8_sums"
DENSE, DENSE_DSP = "dense_s8_packed", "dense_s8_dsp_packed"


def drawn(encoding: str, shape: tuple[int, ...]) -> Array:
    """Weights of an encoding, every level among them."""
    rng = np.random.default_rng(len(encoding) + shape[0])
    levels = np.array(LEVELS[encoding])
    flat = rng.choice(levels, int(np.prod(shape)))
    flat[: levels.size] = levels
    return rng.permutation(flat).reshape(shape).astype(np.int8)


def conv(
    encoding: str, channels: int = 12, outputs: int = 8, kernel: int = 3, *, groups: int = 1,
    size: tuple[int, int] = (5, 4), pads: int = 1, stride: int = 1, scale: float = 0.7,
) -> Qdq:  # fmt: skip
    b = Qdq()
    weights = drawn(encoding, (outputs, channels // groups, kernel, kernel))
    bias = np.random.default_rng(1).integers(-3000, 3000, outputs)
    x = b.x((1, channels, *size), 0.05, 3)
    y = b.op(
        "Conv", x, b.weights(weights, 0.01), b.bias(bias, 0.05 * 0.01), pads=[pads] * 4,
        group=groups, strides=[stride] * 2,
    )  # fmt: skip
    return b.end(y, scale, -5)


def dense(encoding: str, inputs: int = 40, outputs: int = 12, rows: int = 1) -> Qdq:
    b = Qdq()
    weights = drawn(encoding, (outputs, inputs))
    x = b.x((rows, inputs), 0.05, 3)
    return b.end(b.op("Gemm", x, b.weights(weights, 0.01), transB=1), 0.47, -5)


@dataclass(frozen=True)
class Case:
    """A network of one layer, the kernel it must use, and how many blocks that makes."""

    build: Callable[[], Qdq]
    kernel: str
    block: int = 0
    target: str = "cortex-m4"

    @cached_property
    def model(self) -> Model:
        return Model(self.kernel, self.build().model())


CASES: dict[str, Case] = {}
for _name in LEVELS:
    for _kernel in (CONV, CONV_DSP):
        CASES[f"{_kernel} {_name}"] = Case(lambda n=_name: conv(n), _kernel)
    for _kernel in (DENSE, DENSE_DSP):
        CASES[f"{_kernel} {_name}"] = Case(lambda n=_name: dense(n), _kernel)
    for _kernel in (DEPTHWISE, DEPTHWISE_DSP):
        CASES[f"{_kernel} {_name}"] = Case(lambda n=_name: conv(n, 8, 8, groups=8), _kernel)
for _kernel in (CONV, CONV_DSP):
    CASES |= {
        f"{_kernel} blocks": Case(lambda: conv("apot4", 12, 12), _kernel, 500),
        f"{_kernel} blocks of five bits": Case(lambda: conv("apot5", 8, 16), _kernel, 200),
        f"{_kernel} blocks of three bits": Case(lambda: conv("pot3", 7, 6), _kernel, 130),
        f"{_kernel} odd channels": Case(lambda: conv("int4", 5, 7), _kernel),
        f"{_kernel} odd patch": Case(lambda: conv("apot4", 3, 6), _kernel),
        f"{_kernel} 1x1": Case(lambda: conv("pot4", 16, 10, 1, pads=0), _kernel, 40),
        f"{_kernel} stride 2": Case(lambda: conv("ternary", 4, 8, stride=2), _kernel),
        f"{_kernel} one pixel": Case(lambda: conv("int5", 4, 8, size=(3, 3), pads=0), _kernel),
        f"{_kernel} steep": Case(lambda: conv("int4", 4, 8, scale=0.0031), _kernel, 80),
    }
for _name in LEVELS:
    CASES[f"{SUMS} {_name}"] = Case(lambda n=_name: conv(n), SUMS, 0, "cortex-m0+mul32")
CASES |= {
    f"{SUMS} {name}": Case(build, SUMS, block, "cortex-m0+mul32")
    for name, build, block in (
        ("blocks", lambda: conv("apot4", 12, 12), 1000),
        ("blocks of five bits", lambda: conv("apot5", 8, 16), 500),
        ("long", lambda: conv("pot3", 40, 5), 0),
        ("codes across bytes", lambda: conv("int3", 7, 6), 300),
        ("steep", lambda: conv("int4", 4, 8, scale=0.0031), 0),
        ("odd pixels", lambda: conv("pot4", 16, 10, 1, size=(3, 5), pads=0), 0),
    )
}
CASES |= {
    f"{DENSE_DSP} blocks": Case(lambda: dense("apot4", 37, 12), DENSE_DSP, 170),
    f"{DENSE_DSP} odd": Case(lambda: dense("apot4", 33, 7), DENSE_DSP),
    f"{DENSE_DSP} direct": Case(lambda: dense("int4", 300, 8), DENSE_DSP, 1300),
    f"{DENSE} rows": Case(lambda: dense("apot4", 33, 7, 3), DENSE),
    f"{DEPTHWISE_DSP} stride 2": Case(
        lambda: conv("int4", 8, 8, groups=8, stride=2), DEPTHWISE_DSP
    ),
    f"{DEPTHWISE_DSP} 5x5": Case(lambda: conv("pot4", 8, 8, 5, groups=8, pads=2), DEPTHWISE_DSP),
}


def scheduled(case: Case, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    if case.block:
        monkeypatch.setattr(sums, "_BLOCK", case.block)
        monkeypatch.setattr(packed, "_BLOCK", case.block)
        monkeypatch.setattr(packed, "_BLOCK_DSP", case.block)
    graph = case.model.graph
    name = next(n.name for n in graph.nodes if n.op in ("conv2d", "dense"))
    schedule = select(graph, load_core(case.target), Goal("balanced"), {name: case.kernel})
    monkeypatch.undo()
    return schedule


def call_of(schedule: Schedule) -> KernelCall:
    return next(la.call for la in schedule.layers if la.node.op in ("conv2d", "dense"))


def test_c_equals_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs: dict[str, Program] = {}
    units = []
    for number, case in enumerate(CASES.values()):
        name = f"m{number}"
        schedule = scheduled(case, monkeypatch)
        assert (call_of(schedule).params.blocks > 1) is (case.block > 0), case
        program = program_of(schedule, name)
        write(program, tmp_path / name)
        unit = tmp_path / name / "unit.c"
        unit.write_text(f'#include "{name}.c"\n#include "{name}_data.c"\n')
        units.append(str(unit))
        programs[name] = program
    library = tmp_path / "libmodels.so"
    command = ["gcc", *WARNINGS, *UNDEFINED, "-O0", "-pipe", "-fPIC", "-shared", *units]
    done = subprocess.run(
        [*command, "-o", str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wrong = []
    for program, (title, case) in zip(programs.values(), CASES.items(), strict=True):
        instance = Instance(library, program)
        for x in draw_inputs(case.model.graph, 4):
            if count_different(run_c(instance, case.model.graph, x), case.model.oracle(x)):
                wrong.append(title)
    assert not wrong


@pytest.mark.parametrize("name", LEVELS)
def test_weights_take_their_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(lambda: conv(name, 16, 16), CONV, 0, "cortex-m0plus")
    constants = call_of(scheduled(case, monkeypatch)).constants
    bits = 1 if name == "binary" else 2 if name == "ternary" else int(name[-1])
    assert constants[0].array.nbytes == 16 * 16 * 9 * bits // 8
    assert constants[1].array.nbytes == 2**bits


def test_weights_of_more_values_are_refused() -> None:
    b = Qdq()
    weights = np.arange(-60, 60).reshape(10, 12)
    graph = Model(
        "int8", b.end(b.op("Gemm", b.x((1, 12)), b.weights(weights, 0.01), transB=1)).model()
    ).graph
    node = next(n for n in graph.nodes if n.op == "dense")
    for core in ("cortex-m4", "cortex-m0plus"):
        candidates = select(graph, load_core(core), Goal("size")).layers[-1].candidates
        refused = {c.kernel: c.refusal for c in candidates if "packed" in c.kernel}
        assert refused[DENSE] == "the weights have more than 32 values", node


def test_digits_of_every_weight() -> None:
    for value in range(-128, 129):
        plus, minus = sums.signed_digits(value)
        assert plus - minus == value
        assert (plus | minus) & ((plus | minus) << 1) == 0
        assert plus | minus < 256


def innermost_loops(listing: str, function: str) -> list[str]:
    """Instructions of the loops of a function that hold no other loop."""
    (body,) = re.findall(rf"<{function}[.\w]*>:\n(.*?)\n\n", listing, re.DOTALL)
    lines = [line.split("\t") for line in body.splitlines() if line.count("\t") > 1]
    at = {int(line[0].strip().rstrip(":"), 16): " ".join(line[1:]) for line in lines}
    ends = []
    for address, text in at.items():
        found = re.match(r"b\S*\s+([0-9a-f]+) <", text)
        if found and int(found[1], 16) <= address:
            ends.append((int(found[1], 16), address))
    inner = [
        (a, b) for a, b in ends
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in ends)
    ]  # fmt: skip
    return ["\n".join(text for k, text in at.items() if a <= k <= b) for a, b in inner]


def test_sums_do_not_multiply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = {}
    for kernel in (SUMS, CONV):
        case = Case(lambda: conv("apot4", 12, 8), kernel, 0, "cortex-m0+mul32")
        write(program_of(scheduled(case, monkeypatch), kernel), tmp_path / kernel)
        unit, binary = tmp_path / kernel / f"{kernel}.c", tmp_path / f"{kernel}.o"
        flags = ("-mcpu=cortex-m0", "-mthumb", "-O2", "-std=c99", "-c")
        subprocess.run(["arm-none-eabi-gcc", *flags, str(unit), "-o", str(binary)], check=True)
        listing = subprocess.run(
            ["arm-none-eabi-objdump", "-d", "--no-show-raw-insn", str(binary)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        name = "tinyq_sums_s8" if kernel == SUMS else "tinyq_product_s8"
        loops[kernel] = [la for la in innermost_loops(listing, name) if "ldrsb" in la]
    assert len(loops[SUMS]) == 4
    assert not [la for la in loops[SUMS] if "mul" in la or "bl " in la]
    assert loops[CONV]
    assert all("muls" in la for la in loops[CONV])


@pytest.mark.parametrize(
    ("target", "kernel"),
    [
        ("cortex-m4", CONV_DSP),
        ("cortex-m0plus", CONV),
        ("cortex-m0+mul32", SUMS),
    ],
)
def test_emulated_core_equals_onnxruntime(target: str, kernel: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(conv("apot4", 24, 16, size=(6, 5)).model(), str(model))
    goal = "size" if kernel == CONV else "balanced"
    compiled = tinyq.compile(model, output=tmp_path / "out", target=target, optimize=goal)
    assert call_of(compiled.schedule).kernel == kernel
    report = tinyq.verify(tmp_path / "out", VerifyOptions(random=3))
    assert report.equal
    assert report.outputs_compared == 3 * 16 * 6 * 5
