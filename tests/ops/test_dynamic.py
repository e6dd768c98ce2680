"""Dynamic quantization: scales found at run time, by onnxruntime, the reference and C."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from agreement import (
    Model,
    assert_refused,
    compile_all,
    count_different,
    draw_inputs,
    models_of,
    run_c,
)
from onnx import helper, numpy_helper
from qdq import Qdq

import tinyq
from tinyq.errors import TinyqError
from tinyq.ops.reals import find_scale, quantize, scale_of, scale_parts
from tinyq.resources import data_dir
from tinyq.verification.verify import VerifyOptions

Bits = npt.NDArray[np.uint32]
LINK_SCRIPT = Path(__file__).with_name("dsp_kernels.ld")


class Dynamic(Qdq):
    """Draws what onnxruntime.quantization.quantize_dynamic writes; reals are passed by name."""

    def __init__(self, seed: int, dtype: str = "int8") -> None:
        super().__init__(dtype)
        self.rng = np.random.default_rng(seed)

    def _weights(
        self, shape: tuple[int, ...], kind: str, axis: int, per_channel: bool
    ) -> list[str]:
        low, high = (0, 256) if kind == "uint8" else (-127, 128)
        integers = self.rng.integers(low, high, shape).astype(kind)
        points = shape[axis] if per_channel else 1
        zeros = self.rng.integers(90, 170, points) if kind == "uint8" else np.zeros(points)
        zero = zeros.astype(kind).reshape(-1 if per_channel else ())
        return [self.const(integers), self.const(zero)]

    def _scaled(self, sums: str, scale: str, wide: tuple[int, ...] | int, per_channel: bool) -> str:
        spread = self.rng.uniform(0.002, 0.02, wide if per_channel else ())
        product = self.op("Mul", scale, self.const(np.asarray(spread, np.float32)))
        return self.op("Mul", self.op("Cast", sums, to=1), product)

    def dense(
        self, x: str, depth: int, out: int, kind: str = "int8", per_channel: bool = False
    ) -> str:
        y, scale, zero = self.ops("DynamicQuantizeLinear", 3, x)
        w, w_zero = self._weights((depth, out), kind, 1, per_channel)
        return self._scaled(self.op("MatMulInteger", y, w, zero, w_zero), scale, out, per_channel)

    def conv(
        self, x: str, shape: tuple[int, ...], kind: str = "int8", per_channel: bool = False,
        **attributes: Any,
    ) -> str:  # fmt: skip
        y, scale, zero = self.ops("DynamicQuantizeLinear", 3, x)
        w, _ = self._weights(shape, kind, 0, False)
        points = (17, 130)[kind == "uint8"]
        w_zero = self.const(np.asarray(points, kind))
        sums = self.op("ConvInteger", y, w, zero, w_zero, kernel_shape=shape[2:], **attributes)
        wide = (1, shape[0], *(1,) * (len(shape) - 2))
        return self._scaled(sums, scale, wide, per_channel)

    def bias(self, x: str, *shape: int) -> str:  # type: ignore[override]
        return self.op("Add", x, self.const(self.rng.normal(0, 1, shape).astype(np.float32)))

    def real_end(self, value: str) -> Qdq:
        self.output(value)
        return self


def mlp(
    depth: int = 13, hidden: int = 9, *, kind: str = "int8", per_channel: bool = False,
    rows: tuple[int, ...] = (1,), dtype: str = "int8", relu: bool = True, static: bool = False,
) -> Qdq:  # fmt: skip
    """Two dense layers."""
    b = Dynamic(depth * 31 + hidden, dtype)
    zero = {"int8": 5, "uint8": 140}[dtype]
    x = b.bias(b.dense(b.x((*rows, depth), 0.021, zero), depth, hidden, kind, per_channel), hidden)
    y = b.bias(b.dense(b.op("Relu", x) if relu else x, hidden, 5, kind, per_channel), 5)
    return b.end(b.op("Relu", y), 0.04, -100) if static else b.real_end(y)


def cnn(
    shape: tuple[int, ...] = (3, 9, 7), *, kind: str = "int8", per_channel: bool = False,
    channels: int = 6, kernel: int = 3, bias: bool = True, pool: str = "", **attributes: Any,
) -> Qdq:  # fmt: skip
    """Two convolutions, then a pool or Flatten, then a dense layer."""
    b = Dynamic(sum(shape) * 7 + channels)
    ones = (1,) * (len(shape) - 1)
    kernels = (kernel,) * (len(shape) - 1)
    groups = attributes.get("group", 1)
    first = (channels, shape[0] // groups, *kernels)
    x = b.conv(b.x((1, *shape), 0.02, -30), first, kind, per_channel, **attributes)
    x = b.op("Relu", b.bias(x, 1, channels, *ones) if bias else x)
    x = b.bias(b.conv(x, (5, channels, *(1,) * len(ones)), kind), 1, 5, *ones)
    if pool:
        size = [int(n) for n in onnx_shape(b, x)[2:]]
        window = {"kernel_shape": size, "strides": size}
        x = b.op(pool, x, **(window if pool == "AveragePool" else {}))
    depth = int(np.prod(onnx_shape(b, x)[1:]))
    return b.real_end(b.dense(b.op("Flatten", x), depth, 4))


def onnx_shape(b: Qdq, value: str) -> list[int]:
    """Shape of a value of an unfinished model."""
    graph = helper.make_graph(
        b.nodes, "g", b.inputs, [helper.make_empty_tensor_value_info(value)], b.constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    inferred = onnx.shape_inference.infer_shapes(model)
    return [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim]


def residual(*, transposed: bool = False, last_relu: bool = True) -> Qdq:
    """A block whose sum is read by a convolution and by another sum."""
    b = Dynamic(77)
    if transposed:
        x = b.op("Transpose", b.x((1, 7, 6, 4), 0.03, 11), perm=[0, 3, 1, 2])
    else:
        x = b.x((1, 4, 7, 6), 0.03, 11)
    same: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    first = b.op("Relu", b.bias(b.conv(x, (4, 4, 3, 3), **same), 1, 4, 1, 1))
    second = b.bias(b.conv(first, (4, 4, 3, 3), **same), 1, 4, 1, 1)
    total = b.op("Relu", b.op("Add", first, second))
    third = b.bias(b.conv(total, (4, 4, 1, 1)), 1, 4, 1, 1)
    total = b.op("Add", third, total)
    total = b.op("Relu", total) if last_relu else total
    mean = b.op("GlobalAveragePool", total)
    return b.real_end(b.dense(b.op("Reshape", mean, b.const([1, 4])), 4, 3))


def sums_with_the_input() -> Qdq:
    """The reals of the input meet those of a layer."""
    b = Dynamic(5)
    x = b.x((1, 12), 0.3, -3)
    return b.real_end(b.op("Add", x, b.bias(b.dense(x, 12, 12), 12)))


def large_bias() -> Qdq:
    """A bias far beyond the sums: no fixed-point form of the map is precise enough."""
    b = Dynamic(6)
    x = b.x((40, 6), 0.0001, 0)
    return b.real_end(b.op("Add", b.dense(x, 6, 4), b.const(np.float32([1e6, -3e4, 900, 20]))))


def small_scales() -> Qdq:
    """Reals down to the subnormal numbers of float32."""
    b = Dynamic(8)
    x = b.x((30, 5), 1e-22, 7)
    for _ in range(3):
        y, scale, zero = b.ops("DynamicQuantizeLinear", 3, x)
        w, w_zero = b._weights((5, 5), "int8", 1, False)
        sums = b.op("Cast", b.op("MatMulInteger", y, w, zero, w_zero), to=1)
        x = b.op("Mul", sums, b.op("Mul", scale, b.const(np.float32(3e-9).item())))
    return b.real_end(x)


def two_outputs() -> Qdq:
    """One output of static integers, one with a scale found at run time."""
    b = Dynamic(9)
    x = b.op("Relu", b.dense(b.x((1, 10), 0.02, 3), 10, 8))
    b.end(b.dense(x, 8, 3, "uint8", True), 0.07, 4)
    return b.real_end(b.dense(x, 8, 6))


CASES: dict[str, Callable[[], Qdq]] = {
    "mlp": mlp,
    "mlp uint8 weights": partial(mlp, kind="uint8"),
    "mlp per channel": partial(mlp, per_channel=True),
    "mlp uint8 per channel": partial(mlp, 17, 4, kind="uint8", per_channel=True),
    "mlp uint8 input": partial(mlp, 16, 8, dtype="uint8"),
    "mlp without Relu": partial(mlp, 7, 3, relu=False),
    "mlp of rows": partial(mlp, 10, 6, rows=(11,)),
    "mlp of rows, per channel": partial(mlp, 11, 7, rows=(3, 5), per_channel=True),
    "static output": partial(mlp, 12, 5, static=True),
    "static output of rows": partial(mlp, 12, 5, rows=(13,), static=True),
    **{f"depth {k}": partial(mlp, k, 33 - k % 7) for k in (1, 2, 3, 4, 5, 8, 9, 31)},
    "cnn": cnn,
    "cnn padded": partial(cnn, pads=[1, 0, 2, 1]),
    "cnn strided": partial(cnn, (4, 11, 10), strides=[2, 3], dilations=[2, 1]),
    "cnn uint8": partial(cnn, kind="uint8", pads=[1, 1, 1, 1]),
    "cnn per channel": partial(cnn, per_channel=True, pads=[1, 1, 1, 1]),
    "cnn grouped": partial(cnn, (4, 8, 8), channels=6, group=2, pads=[0, 1, 0, 1]),
    "cnn depthwise": partial(cnn, (6, 8, 9), channels=6, group=6, bias=False),
    "cnn 1-D": partial(cnn, (3, 20), pads=[2, 1]),
    "cnn averaged": partial(cnn, pool="AveragePool"),
    "cnn averaged globally": partial(cnn, pool="GlobalAveragePool", pads=[1, 1, 1, 1]),
    "residual": residual,
    "residual, channels last": partial(residual, transposed=True),
    "residual, no last Relu": partial(residual, last_relu=False),
    "sum with the input": sums_with_the_input,
    "large bias": large_bias,
    "small scales": small_scales,
    "two outputs": two_outputs,
}
MODELS = models_of(CASES)


def inputs_of(model: Model, count: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Whole ranges, constant tensors, zeros, and tensors with one element that is not zero."""
    yield from draw_inputs(model.graph, count)
    (value,) = model.graph.inputs
    assert value.type.quant is not None
    zeros = np.full(value.type.shape, value.type.quant.zero_point, value.type.dtype.numpy)
    yield {value.name: zeros}
    for change in (1, -1, 60):
        moved = (zeros.astype(np.int64) + change).astype(zeros.dtype)
        one = zeros.copy()
        one.flat[one.size // 2] = moved.flat[0]
        yield {value.name: one}
        yield {value.name: moved}


@pytest.mark.parametrize("name", CASES)
def test_reference_equals_onnxruntime(name: str) -> None:
    """With the optimisations of onnxruntime and without."""
    model = MODELS[name]
    for x in inputs_of(model, 8):
        wanted = model.reference(x)
        assert count_different(wanted, model.plain_oracle(x)) == 0
        assert count_different(wanted, model.oracle(x)) == 0


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m0plus"])
def test_c_equals_reference(target: str, tmp_path: Path) -> None:
    step = {"cortex-m4": 1, "cortex-m0plus": 3}[target]
    models = list(MODELS.values())[::step]
    graphs = {f"m{k}": model.graph for k, model in enumerate(models)}
    instances = compile_all(graphs, tmp_path, target)
    wrong = [
        model.name
        for name, model in zip(graphs, models, strict=True)
        for x in inputs_of(model, 6)
        if count_different(run_c(instances[name], model.graph, x), model.reference(x))
    ]
    assert not wrong


EMULATED = ("cortex-m0plus", "cortex-m4", "cortex-m55")
ON_CORES = ("residual, channels last", "cnn averaged globally")


@pytest.mark.qemu
@pytest.mark.parametrize("name", ON_CORES)
@pytest.mark.parametrize("target", EMULATED)
def test_emulated_core_layer_by_layer(target: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(MODELS[name].proto, path)
    tinyq.compile(path, output=tmp_path / "net", target=target)
    report = tinyq.verify(tmp_path / "net", VerifyOptions(random=6, layers=True))
    assert report.equal, report.comparisons
    compared = [layer for layer in report.layers if layer.oracle_different is not None]
    assert len(compared) >= {"residual, channels last": 8, "cnn averaged globally": 2}[name]


# --- the rule of DynamicQuantizeLinear ------------------------------------------------------------


def tensors() -> Iterator[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    for k in range(400):
        x = rng.standard_normal(rng.integers(1, 40)) * np.exp(rng.uniform(-60, 60))
        x = (x, np.abs(x), -np.abs(x), np.rint(x * 8) * 0.5, x * 0 + x[0])[k % 5]
        yield x.astype(np.float32)
    for corner in (
        [0, 0], [-0.0], [1e-45, 0], [-1e-45], [1e-44, -1e-44, 0], [1e-42, 3e-42], [7e-41, -1e-41],
        [5, 5, 5], [-5, -5], [3.4e38], [1e-30, 1e30, -1e-30], [0.5, 1.5, 2.5, 255],
        [1e-45] * 70, [1e-45] * 40 + [0] * 40 + [-2e-45] * 40,
    ):  # fmt: skip
        yield np.float32(corner)


def test_rule_equals_onnxruntime() -> None:
    import onnxruntime as ort

    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    ends = [helper.make_empty_tensor_value_info(n) for n in "ysz"]
    start = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])
    graph = helper.make_graph([node], "rule", [start], ends)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in tensors():
        integers, scale, zero = session.run(None, {"x": x})
        assert find_scale(x) == (scale, zero), x
        assert np.array_equal(quantize(x, scale, int(zero) - 128), integers.astype(int) - 128), x
        assert scale_of(scale_parts(scale, 0)) == scale


# --- float32 in integers --------------------------------------------------------------------------

_PRIMITIVES = r"""
#include "tinyq_reals.h"
uint32_t compute(int op, uint32_t a, uint32_t b);
uint32_t compute(int op, uint32_t a, uint32_t b) {
    switch (op) {
    case 0:
        return tinyq_real_multiply(a, b);
    case 1:
        return tinyq_real_add(a, b);
    case 2:
        return tinyq_real_divide(a, b);
    case 3:
        return tinyq_real_from_int((int32_t)a);
    default:
        return (uint32_t)tinyq_real_to_int(a);
    }
}
"""
_EACH = r"""
void each(int op, const uint32_t *a, const uint32_t *b, uint32_t *y, int n);
void each(int op, const uint32_t *a, const uint32_t *b, uint32_t *y, int n) {
    int i;
    for (i = 0; i < n; i++) {
        y[i] = compute(op, a[i], b[i]);
    }
}
"""
_ON_CORE = r"""
int main(void);
int main(void) {
    uint32_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (compute((int)cases[i][0], cases[i][1], cases[i][2]) != cases[i][3]) {
            put("different\n");
        }
    }
    put("done\n");
    finish();
    return 0;
}
void reset_handler(void);
void reset_handler(void) {
    main();
}
extern uint32_t _estack[];
typedef void (*handler_t)(void);
__attribute__((section(".vectors"), used)) static const handler_t vectors[2] = {
    (handler_t)(uintptr_t)_estack, reset_handler};
"""
_SEMIHOSTING = r"""
static void put(const char *s) {
    register uint32_t op __asm__("r0") = 4;
    register const char *arg __asm__("r1") = s;
    __asm__ volatile("bkpt 0xab" : "+r"(op) : "r"(arg) : "memory");
}
static void finish(void) {
    register uint32_t op __asm__("r0") = 0x18;
    register uint32_t arg __asm__("r1") = 0x20026;
    __asm__ volatile("bkpt 0xab" : "+r"(op) : "r"(arg) : "memory");
}
"""
_STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")


@cache
def primitive_cases(count: int) -> dict[int, tuple[Bits, Bits, Bits]]:
    """Operands and what numpy computes, by operation: all exponents, equal ones, subnormals, few
    bits (exact results and halves), neighbours that cancel."""
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 2**32, (8, 2, count), dtype=np.uint64).astype(np.uint32)
    draws[1, 1] = (draws[1, 1] & 0x807FFFFF) | (draws[1, 0] & 0x7F800000)
    draws[2, 1] = draws[2, 0] ^ (draws[2, 1] & 0x80000007)
    draws[3] &= np.uint32(0x81FFFFFF)
    draws[4] &= np.uint32(0xFFFFF000)
    draws[5, 0] &= np.uint32(0x807FFFFF)
    draws[6] &= np.uint32(0xFF800000)
    draws[7, 1] &= np.uint32(0x80000000)
    a, b = draws.transpose(1, 0, 2).reshape(2, -1)
    finite = ((a >> 23) & 255 != 255) & ((b >> 23) & 255 != 255)
    a, b = a[finite], b[finite]
    x, y = a.view(np.float32), b.view(np.float32)
    halves = (rng.integers(-3000, 3000, count) * np.float32(0.5)).astype(np.float32)
    steps = [halves, *(np.nextafter(halves, np.float32(end)) for end in (np.inf, -np.inf))]
    near = np.concatenate(steps)
    divides = y != 0
    with np.errstate(all="ignore"):
        return {
            0: (a, b, (x * y).view(np.uint32)),
            1: (a, b, (x + y).view(np.uint32)),
            2: (a[divides], b[divides], (x[divides] / y[divides]).view(np.uint32)),
            3: (a, b, a.view(np.int32).astype(np.float32).view(np.uint32)),
            4: (
                near.view(np.uint32), near.view(np.uint32),
                np.clip(np.rint(near), -1024, 1024).astype(np.int32).view(np.uint32),
            ),
        }  # fmt: skip


@pytest.mark.parametrize("flags", [(), ("-DTINYQ_NO_LONG_MULTIPLY",)], ids=["long", "short"])
def test_float32_on_the_host(flags: tuple[str, ...], tmp_path: Path) -> None:
    source, library = tmp_path / "reals.c", tmp_path / "reals.so"
    source.write_text(_PRIMITIVES + _EACH)
    include = f"-I{data_dir('templates') / 'lib'}"
    trap = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    command = ["gcc", *_STRICT, *trap, *flags, "-O2", "-fPIC", "-shared", include, str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    each = ctypes.CDLL(str(library)).each
    for op, (*operands, wanted) in primitive_cases(60_000).items():
        a, b = map(np.ascontiguousarray, operands)
        got = np.empty_like(wanted)
        each(op, *(ctypes.c_void_p(x.ctypes.data) for x in (a, b, got)), len(a))
        wrong = np.flatnonzero(got != wanted)
        assert not len(wrong), (op, a[wrong[:3]], b[wrong[:3]])


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("cpu", "machine"), [("cortex-m0", "mps2-an385"), ("cortex-m4", "mps2-an386")]
)
def test_float32_on_a_core(cpu: str, machine: str, tmp_path: Path) -> None:
    """Code for ARMv6-M runs on the Cortex-M3's machine too."""
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    rows = [
        f"{{{op}U, {a}U, {b}U, {wanted}U}}"
        for op, columns in primitive_cases(400).items()
        for a, b, wanted in zip(*columns, strict=True)
    ]
    table = "static const uint32_t cases[][4] = {\n" + ",\n".join(rows) + "};\n"
    source, firmware = tmp_path / "reals.c", tmp_path / "reals.elf"
    source.write_text(_PRIMITIVES + _SEMIHOSTING + table + _ON_CORE)
    include = f"-I{data_dir('templates') / 'lib'}"
    target = ["-mthumb", f"-mcpu={cpu}", "-mfloat-abi=soft", "-nostartfiles", f"-T{LINK_SCRIPT}"]
    bases = "-Wl,--defsym=FLASH_BASE=0,--defsym=RAM_BASE=0x20000000"
    command = ["arm-none-eabi-gcc", "-O2", "-std=gnu99", *target, bases, include, str(source)]
    subprocess.run([*command, "-o", str(firmware)], check=True)
    hosted = ["-semihosting-config", "enable=on,target=native", "-kernel", str(firmware)]
    quiet = ["-nographic", "-monitor", "none", "-serial", "none"]
    run = subprocess.run(
        ["qemu-system-arm", "-M", machine, *quiet, *hosted], capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert run.stdout + run.stderr == "done\n"


# --- models of quantize_dynamic, and refusals -----------------------------------------------------


def float_model() -> onnx.ModelProto:
    """Convolution, Relu, Flatten, MatMul and Add in float32."""
    rng = np.random.default_rng(4)
    arrays = {
        "w": rng.normal(0, 1, (4, 2, 3, 3)), "b": rng.normal(0, 1, 4),
        "w2": rng.normal(0, 1, (4 * 5 * 4, 3)), "b2": rng.normal(0, 1, 3),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w2"], ["m"], "matmul"),
        helper.make_node("Add", ["m", "b2"], ["y"], "add"),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", kind, [1, 2, 5, 4])],
        [helper.make_tensor_value_info("y", kind, [1, 3])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_input_without_a_range_is_refused_once(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    source, target = tmp_path / "float.onnx", tmp_path / "dynamic.onnx"
    onnx.save(float_model(), source)
    quantize_dynamic(source, target)
    with pytest.raises(TinyqError) as caught:
        tinyq.compile(target, output=tmp_path / "net", target="cortex-m4")
    (found,) = caught.value.diagnostics
    assert (found.code, found.node) == ("TQ202", "x")
    assert "--input-scale" in found.remedy


def refused(change: Callable[[Dynamic, str], str]) -> Qdq:
    b = Dynamic(1)
    y = change(b, b.dense(b.x((1, 6), 0.02, 3), 6, 6))
    return b.real_end(b.dense(y, 6, 2))


REFUSED: dict[str, tuple[str, Callable[[Dynamic, str], str]]] = {
    "an operator between": ("TQ202", lambda b, x: b.op("Sigmoid", x)),
    "a product of reals": ("TQ203", lambda b, x: b.op("Mul", x, x)),
    "a mean of a part": (
        "TQ203",
        lambda b, x: b.op(
            "Squeeze",
            b.op("AveragePool", b.op("Reshape", x, b.const([1, 6, 1, 1])), kernel_shape=[1, 1]),
            b.const([2, 3]),
        ),
    ),
    "two biases": ("TQ203", lambda b, x: b.bias(b.bias(x, 6), 6)),
    "Relu then bias": ("TQ203", lambda b, x: b.bias(b.op("Relu", x), 6)),
    "reals too large": ("TQ204", lambda b, x: b.op("Add", x, b.const(np.full(6, 1e36, "f4")))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    code, change = REFUSED[name]
    assert_refused(refused(change).model(), code)


def test_other_oracles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(MODELS["mlp"].proto, path)
    with pytest.raises(TinyqError) as caught:
        tinyq.compile(path, output=tmp_path / "net", target="cortex-m4", oracle="cmsis-nn")
    assert {d.code for d in caught.value.diagnostics} == {"TQ203"}
