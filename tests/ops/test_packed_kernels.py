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
from tinyq.codegen import GenerateOptions, Program, write_program
from tinyq.errors import TinyqError
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
    "127 ternary": [-127, 0, 127],
    "42 int3": [42 * k for k in range(-3, 4)],
    "18 int4": [18 * k for k in range(-7, 8)],
    "31 pot3": [s * 31 * m for m in (0, 1, 2, 4) for s in (-1, 1)],
    "12 apot4": [s * 12 * m for m in (0, 1, 2, 3, 4, 6, 8, 10) for s in (-1, 1)],
    "codebook5": [k * k * k // 40 - 3 for k in range(-15, 16)],
}
ALL_LEVELS = {**LEVELS, "int8": list(range(-128, 128))}
CONV, CONV_DSP = "conv2d_s8_packed", "conv2d_s8_dsp_packed"
DEPTHWISE, DEPTHWISE_DSP = "depthwise_s8_packed", "depthwise_s8_dsp_packed"
SUMS, BUCKETS = "conv2d_s8_sums", "conv2d_s8_buckets"
DENSE_BUCKETS, DEPTHWISE_SUMS = "dense_s8_buckets", "depthwise_s8_sums"
CODES, DENSE_CODES = "conv2d_s8_dsp_codes", "dense_s8_dsp_codes"
SLOW = "cortex-m0+mul32"
DENSE, DENSE_DSP = "dense_s8_packed", "dense_s8_dsp_packed"


def drawn(encoding: str, shape: tuple[int, ...]) -> Array:
    """Weights of an encoding, every level among them."""
    rng = np.random.default_rng(len(encoding) + shape[0])
    levels = np.array(ALL_LEVELS[encoding])
    flat = rng.choice(levels, int(np.prod(shape)))
    flat[: levels.size] = levels[: flat.size]
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
        # From 4,096 weights on pairs of codes of five bits have a table.
        f"{_kernel} many of five bits": Case(lambda: conv("apot5", 16, 32), _kernel),
        f"{_kernel} many in blocks": Case(lambda: conv("codebook5", 16, 32), _kernel, 1200),
        f"{_kernel} blocks of three bits": Case(lambda: conv("pot3", 7, 6), _kernel, 130),
        f"{_kernel} odd channels": Case(lambda: conv("int4", 5, 7), _kernel),
        f"{_kernel} odd patch": Case(lambda: conv("apot4", 3, 6), _kernel),
        f"{_kernel} 1x1": Case(lambda: conv("pot4", 16, 10, 1, pads=0), _kernel, 40),
        f"{_kernel} stride 2": Case(lambda: conv("ternary", 4, 8, stride=2), _kernel),
        f"{_kernel} one pixel": Case(lambda: conv("int5", 4, 8, size=(3, 3), pads=0), _kernel),
        f"{_kernel} steep": Case(lambda: conv("int4", 4, 8, scale=0.0031), _kernel, 80),
    }
for _name in ALL_LEVELS:
    CASES |= {
        f"{SUMS} {_name}": Case(lambda n=_name: conv(n), SUMS, 0, SLOW),
        f"{BUCKETS} {_name}": Case(lambda n=_name: conv(n, size=(3, 3)), BUCKETS, 0, SLOW),
        f"{BUCKETS} {_name}, one pixel": Case(
            lambda n=_name: conv(n, 11, size=(3, 3), pads=0), BUCKETS, 0, SLOW
        ),
        f"{DENSE_BUCKETS} {_name}": Case(lambda n=_name: dense(n), DENSE_BUCKETS, 0, SLOW),
        f"{DEPTHWISE_SUMS} {_name}": Case(
            lambda n=_name: conv(n, 8, 8, groups=8), DEPTHWISE_SUMS, 0, SLOW
        ),
    }
for _name in ("binary", "ternary", "pot3", "apot4", "codebook5", "int8"):
    # Every count of codes up to a whole turn and one, one and two pixels.
    for _inputs in range(1, 10):
        CASES[f"{BUCKETS} {_name} {_inputs}"] = Case(
            lambda n=_name, k=_inputs: conv(n, k, 3, 1, size=(1, 1 + k % 2), pads=0), BUCKETS,
            0, SLOW,
        )  # fmt: skip
CASES |= {
    f"{DENSE_BUCKETS} rows": Case(lambda: dense("apot4", 33, 7, 3), DENSE_BUCKETS, 0, SLOW),
    f"{BUCKETS} steep": Case(lambda: conv("int4", 4, 8, scale=0.0031), BUCKETS, 0, SLOW),
    f"{BUCKETS} stride 2": Case(lambda: conv("pot3", 7, 5, stride=2), BUCKETS, 0, SLOW),
    f"{SUMS} int8 blocks": Case(lambda: conv("int8", 12, 12), SUMS, 2000, SLOW),
    f"{DEPTHWISE_SUMS} stride 2": Case(
        lambda: conv("apot5", 8, 8, groups=8, stride=2), DEPTHWISE_SUMS, 0, SLOW
    ),
    f"{DEPTHWISE_SUMS} 5x5": Case(
        lambda: conv("pot4", 8, 8, 5, groups=8, pads=2, size=(7, 6)), DEPTHWISE_SUMS, 0, SLOW
    ),
    f"{DEPTHWISE_SUMS} wide plane": Case(
        lambda: conv("int8", 3, 3, groups=3, size=(3, 140)), DEPTHWISE_SUMS, 0, SLOW
    ),
    f"{DEPTHWISE_SUMS} two outputs a channel": Case(
        lambda: conv("codebook4", 5, 10, groups=5), DEPTHWISE_SUMS, 0, SLOW
    ),
    f"{DEPTHWISE_SUMS} steep": Case(
        lambda: conv("int4", 8, 8, groups=8, scale=0.0031), DEPTHWISE_SUMS, 0, SLOW
    ),
}
WIDTHS = ("binary", "ternary", "pot3", "apot4")
SHAPES: dict[str, Callable[[str], Qdq]] = {
    "one pixel": lambda n: conv(n, 12, 8, size=(3, 3), pads=0),
    "two pixels": lambda n: conv(n, 8, 6, size=(2, 1)),
    "five pixels": lambda n: conv(n, 5, 3, size=(1, 5)),
    "padded": lambda n: conv(n, 4, 8, size=(4, 4)),
    "strided 5x5": lambda n: conv(n, 4, 5, 5, size=(7, 6), pads=2, stride=2),
    "1x1": lambda n: conv(n, 16, 10, 1, size=(3, 3), pads=0),
    "dense": lambda n: dense(n, 37, 12),
    "dense, odd channels": lambda n: dense(n, 64, 7),
    "rows": lambda n: dense(n, 40, 6, 3),
}
SHAPES |= {
    "groups": lambda n: conv(n, 12, 9, groups=3, size=(3, 3)),
    "groups of one pixel": lambda n: conv(n, 8, 8, groups=2, size=(3, 3), pads=0),
}
for _name in WIDTHS:
    for _shape, _build in SHAPES.items():
        CASES[f"codes {_name} {_shape}"] = Case(
            lambda n=_name, b=_build: b(n), DENSE_CODES if "dense" in _shape or _shape == "rows"
            else CODES,
        )  # fmt: skip
CASES[f"{CODES} steep"] = Case(lambda: conv("int4", 4, 8, scale=0.0031), CODES)
CASES |= {
    f"{SUMS} {name}": Case(build, SUMS, block, SLOW)
    for name, build, block in (
        ("blocks", lambda: conv("apot4", 12, 12), 1000),
        ("blocks of five bits", lambda: conv("apot5", 8, 16), 500),
        ("long", lambda: conv("pot3", 40, 5), 0),
        ("codes across bytes", lambda: conv("int3", 7, 6), 300),
        ("steep", lambda: conv("int4", 4, 8, scale=0.0031), 0),
        ("odd pixels", lambda: conv("pot4", 16, 10, 1, size=(3, 5), pads=0), 0),
    )
}
GROUPS: dict[str, tuple[Callable[[], Qdq], int]] = {
    "binary": (lambda: conv("binary", 12, 8, groups=2), 0),
    "three bits": (lambda: conv("pot3", 12, 8, groups=2), 0),
    "five bits": (lambda: conv("int5", 12, 8, groups=2), 0),
    "in blocks": (lambda: conv("apot4", 12, 24, groups=2), 500),
    "one a block": (lambda: conv("pot3", 9, 9, groups=3), 100),
    "of odd channels": (lambda: conv("int4", 10, 15, groups=5), 0),
    "strided 1x1": (lambda: conv("codebook2", 8, 12, 1, groups=4, pads=0, stride=2), 0),
    "of one output": (lambda: conv("int4", 8, 4, groups=4), 0),
    "steep": (lambda: conv("int4", 8, 8, groups=2, scale=0.0031), 90),
}
for _name, (_build, _block) in GROUPS.items():
    CASES |= {
        f"{CONV} groups {_name}": Case(_build, CONV, _block),
        f"{CONV_DSP} groups {_name}": Case(_build, CONV_DSP, _block),
        # Lists are always of a group, or of a block of it.
        f"{SUMS} groups {_name}": Case(_build, SUMS, 3 * _block or 4_608, SLOW),
        f"{BUCKETS} groups {_name}": Case(_build, BUCKETS, 0, SLOW),
    }
CASES[f"{SUMS} int8 groups"] = Case(lambda: conv("int8", 12, 8, groups=2), SUMS, 2000, SLOW)
CASES[f"{BUCKETS} int8 groups"] = Case(lambda: conv("int8", 12, 8, groups=2), BUCKETS, 0, SLOW)
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
        blocks = getattr(call_of(schedule).params, "blocks", 1)
        assert (blocks > 1) is (case.block > 0), case
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
    bits = 1 if name == "binary" else 2 if name.endswith("ternary") else int(name[-1])
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


MULTIPLICATION_FREE = {
    SUMS: ("tinyq_sums_s8", 4, lambda: conv("apot4", 12, 8)),
    BUCKETS: ("tinyq_buckets_s8", 1, lambda: conv("apot4", 12, 8)),
    DENSE_BUCKETS: ("tinyq_buckets_s8", 1, lambda: dense("int8")),
    DEPTHWISE_SUMS: ("tinyq_sums_s8", 4, lambda: conv("int8", 8, 8, groups=8)),
}


def loops_of(kernel: str, build: Callable[[], Qdq], function: str, folder: Path,
             monkeypatch: pytest.MonkeyPatch) -> list[str]:  # fmt: skip
    """The innermost loops that read activations."""
    case = Case(build, kernel, 0, SLOW)
    write(program_of(scheduled(case, monkeypatch), kernel), folder / kernel)
    unit, binary = folder / kernel / f"{kernel}.c", folder / f"{kernel}.o"
    flags = ("-mcpu=cortex-m0", "-mthumb", "-O2", "-std=c99", "-c")
    subprocess.run(["arm-none-eabi-gcc", *flags, str(unit), "-o", str(binary)], check=True)
    listing = subprocess.run(
        ["arm-none-eabi-objdump", "-d", "--no-show-raw-insn", str(binary)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [la for la in innermost_loops(listing, function) if "ldrsb" in la]


@pytest.mark.parametrize("kernel", MULTIPLICATION_FREE)
def test_no_multiplication(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, count, build = MULTIPLICATION_FREE[kernel]
    loops = loops_of(kernel, build, function, tmp_path, monkeypatch)
    assert len(loops) == count
    assert not [la for la in loops if "mul" in la or "bl " in la]


def test_multiplications_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above finds them where they are."""
    build = MULTIPLICATION_FREE[SUMS][2]
    loops = loops_of(CONV, build, "tinyq_product_s8", tmp_path, monkeypatch)
    assert loops
    assert all("muls" in la for la in loops)


ON_CORES = [
    ("cortex-m4", CONV_DSP),
    ("cortex-m4", DEPTHWISE_DSP),
    ("cortex-m4", DENSE_DSP),
    ("cortex-m0plus", CONV),
    ("cortex-m0plus", DENSE),
    ("cortex-m0plus", DEPTHWISE),
    (SLOW, SUMS),
    (SLOW, BUCKETS),
    (SLOW, DENSE_BUCKETS),
    (SLOW, DEPTHWISE_SUMS),
]


@pytest.mark.parametrize(("target", "kernel"), ON_CORES)
def test_emulated_core_equals_onnxruntime(target: str, kernel: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    build = {
        BUCKETS: lambda: conv("apot4", 24, 16, size=(2, 2)),
        DENSE_BUCKETS: lambda: dense("int8", 65, 9),
        DENSE: lambda: dense("apot4"),
        DENSE_DSP: lambda: dense("apot4"),
        DEPTHWISE: lambda: conv("apot4", 8, 8, groups=8),
        DEPTHWISE_DSP: lambda: conv("apot4", 8, 8, groups=8),
        DEPTHWISE_SUMS: lambda: conv("int8", 24, 24, groups=24, size=(6, 5)),
    }.get(kernel, lambda: conv("apot4", 24, 16, size=(9, 8)))
    onnx.save(build().model(), str(model))
    goal, kernels = ("balanced", "shift") if target == SLOW else ("speed", "packed")
    compiled = tinyq.compile(
        model, output=tmp_path / "out", target=target, optimize=goal, kernels=kernels
    )
    assert call_of(compiled.schedule).kernel == kernel
    report = tinyq.verify(tmp_path / "out", VerifyOptions(random=3))
    assert report.equal
    assert report.outputs_compared == 3 * compiled.graph.outputs[0].type.elements


def side_by_side(parts: list[Qdq]) -> Qdq:
    """One model of several, their names kept apart."""
    whole = Qdq()
    for k, part in enumerate(parts):
        model = onnx.compose.add_prefix(part.model(), f"m{k}_")
        whole.nodes += model.graph.node
        whole.constants += model.graph.initializer
        whole.inputs += model.graph.input
        whole.outputs += model.graph.output
    return whole


def test_codes_on_the_emulated_core(tmp_path: Path) -> None:
    """Every shape at every width of codes, in one firmware: what runs there is assembly."""
    builds = [build(name) for name in WIDTHS for shape, build in SHAPES.items() if shape != "rows"]
    builds += [conv("apot4", k, o, 1, size=(1, px), pads=0)
               for k in range(7, 10) for o in (1, 2, 5) for px in (1, 2, 3, 4)]  # fmt: skip
    model = Model("many", side_by_side(builds).model())
    layers = [n for n in model.graph.nodes if n.op in ("conv2d", "dense")]
    forced = {n.name: CODES if n.op == "conv2d" else DENSE_CODES for n in layers}
    schedule = select(model.graph, load_core("cortex-m4"), Goal("speed"), forced)
    options = GenerateOptions(model=model.proto.SerializeToString())
    write_program(program_of(schedule, "many", options), tmp_path / "out")
    report = tinyq.verify(tmp_path / "out", VerifyOptions(random=3))
    assert report.equal
    assert report.outputs_compared == 3 * sum(v.type.elements for v in model.graph.outputs)


@pytest.mark.parametrize(
    ("target", "kernels"), [("cortex-m4", (CONV_DSP, CONV)), (SLOW, (SUMS, BUCKETS))]
)
def test_groups_on_the_emulated_core(
    target: str, kernels: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups whole and in blocks, in one firmware."""
    builds = [build() for build, _ in GROUPS.values() for _ in kernels]
    model = Model("groups", side_by_side(builds).model())
    layers = [n for n in model.graph.nodes if n.op == "conv2d"]
    forced = {n.name: kernels[k % len(kernels)] for k, n in enumerate(layers)}
    for module in (packed, sums):
        monkeypatch.setattr(module, "_BLOCK", 300)
    monkeypatch.setattr(packed, "_BLOCK_DSP", 300)
    schedule = select(model.graph, load_core(target), Goal("speed"), forced)
    monkeypatch.undo()
    options = GenerateOptions(model=model.proto.SerializeToString())
    write_program(program_of(schedule, "groups", options), tmp_path / "out")
    report = tinyq.verify(tmp_path / "out", VerifyOptions(random=3))
    assert report.equal
    assert report.outputs_compared == 3 * sum(v.type.elements for v in model.graph.outputs)


def two_computed() -> Qdq:
    """A product of two computed tensors, a grouped convolution, and a plain one."""
    b = Qdq()
    x = b.x((1, 4, 6, 6), 0.05)
    y = b.qdq(b.op("Conv", x, b.weights(drawn("pot4", (4, 2, 3, 3)), 0.01), group=2), 0.1)
    y = b.qdq(b.op("Conv", y, b.weights(drawn("pot4", (4, 4, 1, 1)), 0.01)), 0.1)
    return b.end(b.op("MatMul", y, y), 0.3)


def test_layers_that_must_multiply_are_listed(tmp_path: Path) -> None:
    graph = Model("mixed", two_computed().model()).graph
    with pytest.raises(TinyqError) as caught:
        select(graph, load_core("cortex-m4"), Goal("speed"), family="shift")
    found = {d.operator: (d.code, d.found) for d in caught.value.diagnostics}
    assert set(found) == {"matmul"}
    assert {code for code, _ in found.values()} == {"TQ207"}
    assert "the operator has no other" in found["matmul"][1]


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m0plus", SLOW])
@pytest.mark.parametrize("goal", ["speed", "size"])
def test_kernels_of_a_family(target: str, goal: str) -> None:
    """Chosen wherever they can be; else nothing without products that is slower."""
    graph = Model("net", conv("pot4", 16, 16).model()).graph
    core = load_core(target)

    def call(family: str) -> KernelCall:
        return call_of(select(graph, core, Goal(goal), family=family))

    assert not call("shift").multiplies
    assert call("packed").encoding == "pot4"
    if target != SLOW:
        assert call("packed").multiplies
        assert call("").multiplies
    plain = Model("plain", conv("int8", 16, 16).model()).graph
    assert not call_of(select(plain, core, Goal(goal), family="shift")).multiplies
    if target != SLOW:
        assert call_of(select(plain, core, Goal(goal), family="packed")).encoding == ""


@pytest.mark.parametrize(
    ("build", "few", "bytes_"),
    [
        (lambda n: conv(n, 32, 32, size=(12, 12)), 0.25, 0.5),
        (lambda n: dense(n, 256, 64), 0.5, 0.8),
        (lambda n: conv(n, 128, 32, 1, size=(2, 2), pads=0), 0.5, 0.8),
        (lambda n: conv(n, 16, 16, groups=16, size=(16, 16)), 0.65, 0.85),
    ],
    ids=["conv", "dense", "few pixels", "depthwise"],
)
def test_slow_multipliers_are_avoided(
    build: Callable[[str], Qdq], few: float, bytes_: float
) -> None:
    """At most a part of the cycles of the best kernel that multiplies, with 4 bits and with 8."""
    core = load_core(SLOW)
    for name, part in (("pot4", few), ("apot4", few), ("int8", bytes_)):
        schedule = select(Model(name, build(name).model()).graph, core, Goal("speed"))
        layer = next(la for la in schedule.layers if la.node.op in ("conv2d", "dense"))
        assert not layer.call.multiplies
        best = min(c.cost for c in layer.candidates if c.call and c.call.multiplies)
        assert layer.call.instructions < part * best
