"""Portable kernels against numpy: every case of a table is a layer of one compiled network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from codegen.fakes import lut_call, schedule_of, tensor
from codegen.host import UNDEFINED, Instance, build, program_of

from tinyq.ir import AnyArray, DType, Value
from tinyq.ops.base import KernelCall, PackedConstant
from tinyq.ops.pack import PackAttrs, pack_params
from tinyq.ops.params import (
    AddParams,
    AvgPool2dParams,
    ConcatParams,
    Conv2dParams,
    CopyParams,
    CountRequant,
    DenseParams,
    ExtremumParams,
    MatMulParams,
    MaxPool2dParams,
    MulParams,
    PadParams,
    RebaseParams,
    RequantParams,
    ResizeNearestParams,
    SliceParams,
    SoftmaxParams,
    TransposeParams,
    broadcast,
    merged_permutation,
)
from tinyq.quant import Fix
from tinyq.quant.storage import Storage

LONG_MULTIPLY = ((), ("-DTINYQ_NO_LONG_MULTIPLY=1",))


@dataclass(frozen=True)
class Case:
    name: str
    call: KernelCall
    inputs: tuple[AnyArray, ...]
    wanted: AnyArray


def random_s8(seed: int, *shape: int) -> AnyArray:
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def check_cases(cases: Sequence[Case], folder: Path, compiler: str, *flags: str) -> None:
    inputs: list[Value] = []
    outputs: list[Value] = []
    steps: list[Any] = []
    arrays: list[AnyArray] = []
    for case in cases:
        reads = []
        for k, array in enumerate(case.inputs):
            kind = DType.of(array)
            reads.append(tensor(f"{case.name}:{k}", *array.shape, dtype=kind))
        result = tensor(f"{case.name}:y", *case.wanted.shape, dtype=DType.of(case.wanted))
        inputs += reads
        outputs.append(result)
        arrays += case.inputs
        steps.append((case.call, reads, [result]))
    program = program_of(schedule_of(inputs, outputs, steps))
    library = build(program, folder, *UNDEFINED, *flags, compiler=compiler)
    results = Instance(library, program).run(*arrays)
    for case, got in zip(cases, results, strict=True):
        assert np.array_equal(got, case.wanted), case.name


def rescale(acc: Any, m: Any, a: Any, pre: int, post: Any) -> Any:
    """The contract, in unbounded integers."""
    return (((acc * 2**pre * m) // 2**32) + a) // (np.asarray(2, np.int64) ** post)


def requant_arrays(seed: int, channels: int, spread: int) -> tuple[AnyArray, RequantParams]:
    """Multipliers that bring sums of about ``spread`` into int8 and a little beyond."""
    rng = np.random.default_rng(seed)
    post = 6
    scale = 300.0 * 2**post / spread
    pre = 0
    while scale * 2 ** (32 - pre) >= 2**31:
        pre += 1
    m = (rng.uniform(0.5, 1.0, channels) * scale * 2 ** (32 - pre)).astype(np.int32)
    a = rng.integers(-3000, 3000, channels).astype(np.int32)
    low, high = (-128, 127) if seed % 2 else (-100, 90)
    return np.stack([m, a], axis=1), RequantParams(pre, post, low, high)


def requantized(acc: AnyArray, rq: AnyArray, p: RequantParams) -> AnyArray:
    shifts = (p.pre_shift, p.post_shift)
    v = rescale(acc.astype(np.int64), rq[:, 0].astype(np.int64), rq[:, 1], *shifts)
    for fix in p.fixes:
        v[..., fix.channel] += fix.delta * (acc[..., fix.channel] == fix.accumulator)
    return np.clip(v, p.qmin, p.qmax).astype(np.int8)


def requant_constants(rq: AnyArray) -> tuple[PackedConstant, ...]:
    return (PackedConstant("requant", rq, "tinyq_requant_t"),)


@dataclass(frozen=True)
class Geometry:
    h: int
    w: int
    c: int
    o: int
    k: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    zero: int = 0
    wide: bool = False
    fixes: bool = False

    def out(self, axis: int) -> int:
        size = (self.h, self.w)[axis] + self.pads[axis] + self.pads[axis + 2]
        return (size - (self.k[axis] - 1) * self.dilation[axis] - 1) // self.stride[axis] + 1


CONVOLUTIONS = {
    "pointwise": Geometry(5, 7, 9, 6, (1, 1)),
    "pointwise_strided": Geometry(6, 7, 4, 3, (1, 1), (2, 3)),
    "one_pixel": Geometry(1, 1, 1, 1, (1, 1)),
    "square": Geometry(8, 9, 5, 7, (3, 3)),
    "square_same": Geometry(8, 9, 3, 8, (3, 3), pads=(1, 1, 1, 1), zero=-128),
    "zero_point_127": Geometry(5, 5, 2, 3, (3, 3), pads=(1, 1, 1, 1), zero=127),
    "same_upper": Geometry(9, 9, 3, 4, (3, 3), (2, 2), pads=(0, 0, 1, 1), zero=5),
    "uneven": Geometry(49, 10, 1, 4, (10, 4), (2, 2), pads=(4, 1, 5, 1), zero=83),
    "larger_than_image": Geometry(2, 3, 3, 2, (5, 5), pads=(2, 2, 2, 2), zero=-7),
    "dilated": Geometry(11, 9, 3, 4, (3, 2), dilation=(2, 3), pads=(2, 1, 2, 2), zero=4),
    "grouped": Geometry(6, 5, 8, 6, (3, 3), groups=2, pads=(1, 1, 1, 1), zero=-1),
    "depthwise": Geometry(7, 6, 5, 5, (3, 3), groups=5, pads=(1, 1, 1, 1), zero=-3),
    "depthwise_multiplier": Geometry(7, 6, 3, 9, (3, 3), (2, 1), groups=3, pads=(1, 0, 0, 1)),
    "depthwise_dilated": Geometry(9, 9, 4, 4, (3, 3), dilation=(2, 2), groups=4),
    "depthwise_long": Geometry(3, 20, 2, 2, (1, 11), groups=2, pads=(0, 5, 0, 5), zero=9),
    "row": Geometry(1, 31, 4, 5, (1, 9), pads=(0, 4, 0, 4), zero=2),
    "column": Geometry(33, 1, 4, 5, (7, 1), (3, 1)),
    "full_width": Geometry(6, 4, 3, 5, (3, 4)),
    "wide_weights": Geometry(5, 5, 3, 4, (3, 3), wide=True, pads=(1, 1, 1, 1), zero=-9),
    "fixes": Geometry(6, 6, 2, 3, (1, 1), fixes=True),
}


def conv_sums(g: Geometry, x: AnyArray, w: AnyArray) -> AnyArray:
    padded = np.pad(
        x[0].astype(np.int64),
        ((g.pads[0], g.pads[2]), (g.pads[1], g.pads[3]), (0, 0)),
        constant_values=g.zero,
    )
    out_h, out_w, depth, filters = g.out(0), g.out(1), g.c // g.groups, g.o // g.groups
    acc = np.zeros((out_h, out_w, g.o), np.int64)
    for ky in range(g.k[0]):
        for kx in range(g.k[1]):
            top, left = ky * g.dilation[0], kx * g.dilation[1]
            taps = padded[
                top : top + (out_h - 1) * g.stride[0] + 1 : g.stride[0],
                left : left + (out_w - 1) * g.stride[1] + 1 : g.stride[1],
            ]
            for group in range(g.groups):
                xs = taps[:, :, group * depth : (group + 1) * depth]
                ws = w[group * filters : (group + 1) * filters, ky, kx].astype(np.int64)
                acc[:, :, group * filters : (group + 1) * filters] += xs @ ws.T
    return acc


def conv_case(name: str, g: Geometry, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    depth = g.c // g.groups
    x = random_s8(seed + 1, 1, g.h, g.w, g.c)
    limit = 1000 if g.wide else 128
    kind, c_type = (np.int16, "int16_t") if g.wide else (np.int8, "int8_t")
    w = rng.integers(-limit, limit, (g.o, *g.k, depth)).astype(kind)
    acc = conv_sums(g, x, w)
    rq, requant = requant_arrays(seed, g.o, max(1, int(np.abs(acc).max())))
    if g.fixes:
        spots = [(0, int(acc[0, 0, 0]), 1), (2, int(acc[3, 3, 2]), -1)]
        requant = replace(requant, fixes=tuple(Fix(*spot) for spot in spots))
    params = Conv2dParams(
        g.h, g.w, g.c, g.out(0), g.out(1), g.o, *g.k, *g.stride, *g.dilation, *g.pads[:2],
        g.groups, g.zero, c_type, requant,
    )  # fmt: skip
    constants = (PackedConstant("weights", w, c_type), *requant_constants(rq))
    call = KernelCall("conv2d_s8", "ops/conv2d_s8.c.j2", params, constants)
    return Case(name, call, (x,), requantized(acc, rq, requant)[None])


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("multiply", LONG_MULTIPLY, ids=["long", "short"])
def test_conv2d(tmp_path: Path, compiler: str, multiply: tuple[str, ...]) -> None:
    cases = [conv_case(name, g, seed) for seed, (name, g) in enumerate(CONVOLUTIONS.items())]
    assert len({tuple(np.unique(case.wanted)) for case in cases}) > len(cases) / 2
    check_cases(cases, tmp_path, compiler, *multiply)


def dense_case(rows: int, i: int, o: int, wide: bool) -> Case:
    seed = 100 + rows + i + o
    kind, c_type = (np.int16, "int16_t") if wide else (np.int8, "int8_t")
    x = random_s8(seed, rows, i)
    w = np.random.default_rng(seed).integers(-128, 128, (o, i)).astype(kind)
    acc = x.astype(np.int64) @ w.astype(np.int64).T
    rq, requant = requant_arrays(seed, o, max(1, int(np.abs(acc).max())))
    params = DenseParams(rows, i, o, c_type, requant)
    constants = (PackedConstant("weights", w, c_type), *requant_constants(rq))
    call = KernelCall("dense_s8", "ops/dense_s8.c.j2", params, constants)
    wanted = requantized(acc, rq, requant)
    return Case(f"dense{rows}x{i}x{o}{c_type}", call, (x,), wanted)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_dense(tmp_path: Path, compiler: str) -> None:
    sizes = [(1, 1, 1), (1, 3, 4), (2, 8, 5), (1, 9, 7), (3, 31, 2), (1, 33, 8), (1, 640, 3)]
    cases = [dense_case(*size, wide=False) for size in sizes]
    cases += [dense_case(2, 11, 3, wide=True)]
    check_cases(cases, tmp_path, compiler)


def binary_call(template: str, params: Any, b: AnyArray | None = None) -> KernelCall:
    constants = () if b is None else (PackedConstant("operand", b, "int8_t"),)
    return KernelCall(template, f"ops/{template}.c.j2", params, constants)


SHAPES = [
    ((7,), (7,)),
    ((1, 4, 5, 3), (1, 4, 5, 3)),
    ((1, 4, 5, 3), (3,)),
    ((1, 4, 5, 3), (1, 4, 5, 1)),
    ((1, 4, 1, 3), (1, 1, 5, 1)),
    ((4, 1), (1, 6)),
    ((1,), (2, 3)),
]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_elementwise_pairs(tmp_path: Path, compiler: str) -> None:
    cases: list[Case] = []
    for number, (a_shape, b_shape) in enumerate(SHAPES):
        a, b = random_s8(number, *a_shape), random_s8(number + 50, *b_shape)
        al, bl = np.broadcast_arrays(a.astype(np.int64), b.astype(np.int64))
        loops = broadcast(al.shape, a_shape, b_shape)
        fix = (int(al.flat[0]), int(bl.flat[0]), 1)
        fixed = (al == fix[0]) & (bl == fix[1])

        def add(
            name: str, template: str, params: Any, v: AnyArray, a: AnyArray = a, b: AnyArray = b
        ) -> None:
            wanted = np.clip(v, -120, 110).astype(np.int8)
            constant = params.b_constant
            call = binary_call(template, params, b if constant else None)
            cases.append(Case(name, call, (a,) if constant else (a, b), wanted))

        constant = number % 2 == 1
        sums = al * 700000 + bl * -300000 + 12345
        plain = AddParams(loops, 700000, -300000, 12345, 20, -120, 110, (fix,), 0, 0, constant)
        add(f"add{number}", "add_s8", plain, (sums >> 20) + fixed)
        even = AddParams(loops, 3, 5, -3, 3, -120, 110, (), 1, 4, constant)
        halves = al * 3 + bl * 5 - 7
        add(f"even{number}", "add_s8", even, np.rint(halves / 8.0).astype(np.int64) + 4)
        shallow = MulParams(loops, -5, 100, 2**30 + 12345, -9, 4, 3, -120, 110, (fix,), constant)
        product = rescale((al + 5) * (bl - 100), 2**30 + 12345, -9, 4, 3)
        add(f"mul{number}", "mul_s8", shallow, product + fixed)
        for kind, function in (("max", np.maximum), ("min", np.minimum)):
            params = ExtremumParams(loops, kind, constant)
            call = binary_call("extremum_s8", params, b if constant else None)
            inputs = (a,) if constant else (a, b)
            wanted = function(al, bl).astype(np.int8)
            cases.append(Case(f"{kind}{number}", call, inputs, wanted))
    check_cases(cases, tmp_path, compiler)


def _plain(kernel: str, params: Any, *constants: PackedConstant) -> KernelCall:
    return KernelCall(kernel, f"ops/{kernel}.c.j2", params, constants)


APOT = (-128, -127, -126, -124, -120, -119, -118, -116, -112, -96, -95, -94, -92, -88, -80, -64)
PACKED = [
    (1, 1, 4, tuple(range(-128, -112))), (3, 1, 2, (-2, -1, 0, 1)), (2, 3, 4, APOT),
    (3, 4, 4, tuple(range(-8, 8))), (2, 7, 4, tuple(range(112, 128))), (2, 8, 4, tuple(range(11))),
    (3, 8, 2, (0, 1, 2, 4)), (2, 9, 4, APOT), (3, 12, 2, (-128, -127, -126, -125)),
    (2, 16, 4, APOT), (3, 33, 1, (-1, 0)), (1, 64, 1, (-1, 1)), (2, 41, 4, tuple(range(-8, 8))),
]  # fmt: skip
"""Rows, elements of a row, bits, levels."""


def by_hand(codes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int8]:
    """Byte i of each word of four holds the codes of elements i, i + 4, ... of its group."""
    group = 32 // bits
    packed = np.zeros((len(codes), -(-codes.shape[1] // group) * 4), np.int64)
    for (row, k), code in np.ndenumerate(codes):
        within = k % group
        packed[row, k // group * 4 + within % 4] |= int(code) << (bits * (within // 4))
    return packed.astype(np.uint8).view(np.int8)


def movement_cases() -> list[Case]:
    """Kernels that only move or look up bytes."""
    cases: list[Case] = []

    def add(call: KernelCall, wanted: AnyArray, *inputs: AnyArray) -> None:
        cases.append(Case(f"{call.kernel}{len(cases)}", call, inputs, wanted))

    for shape, perm in [
        ((5,), (0,)),
        ((3, 4), (1, 0)),
        ((1, 3, 4, 5), (0, 3, 1, 2)),
        ((1, 3, 4, 5), (0, 2, 3, 1)),
        ((2, 3, 4, 5, 2), (4, 2, 0, 3, 1)),
        ((2, 3, 4, 5), (1, 0, 2, 3)),
        ((2, 1, 3, 2, 2, 3), (5, 4, 3, 2, 1, 0)),
    ]:
        x = random_s8(1, *shape)
        merged = TransposeParams(*merged_permutation(shape, perm))
        for params in (TransposeParams(shape, perm), merged):
            add(_plain("transpose_s8", params), x.transpose(perm), x)
    for outer, inner in [(1, (3,)), (1, (4, 5)), (3, (2, 1, 7)), (6, (1, 1))]:
        parts = [random_s8(k, outer, n) for k, n in enumerate(inner)]
        add(_plain("concat_s8", ConcatParams(outer, inner)), np.concatenate(parts, 1), *parts)
    for shape, index in [
        ((9,), (slice(2, 7),)),
        ((9,), (slice(8, None, -3),)),
        ((4, 6, 3), (slice(1, 3), slice(0, 6), slice(0, 3))),
        ((4, 6, 3), (slice(0, 4), slice(5, None, -2), slice(1, 2))),
        ((2, 5, 4), (slice(1, 2), slice(0, 5, 2), slice(3, None, -1))),
    ]:
        x = random_s8(2, *shape)
        wanted = x[index]
        bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
        starts, steps = tuple(b[0] for b in bounds), tuple(b[2] for b in bounds)
        params = SliceParams(shape, starts, steps, wanted.shape)
        add(_plain("slice_s8", params), wanted, x)
    for shape, before, after, value in [
        ((3,), (2,), (0,), -128),
        ((2, 3), (1, 0), (0, 4), 127),
        ((1, 3, 2, 4), (0, 1, 2, 0), (0, 2, 1, 3), -5),
    ]:
        x = random_s8(3, *shape)
        wanted = np.pad(x, list(zip(before, after, strict=True)), constant_values=value)
        add(_plain("pad_s8", PadParams(shape, before, after, value)), wanted, x)
    x = random_s8(4, 1, 3, 4, 5)
    rows, columns = np.array([0, 0, 1, 2, 2, 2]), np.array([3, 1, 0])
    call = _plain(
        "resize_nearest_s8",
        ResizeNearestParams(3, 4, 5, 6, 3),
        PackedConstant("rows", rows.astype(np.uint16), "uint16_t"),
        PackedConstant("columns", columns.astype(np.uint16), "uint16_t"),
    )
    add(call, x[:, rows][:, :, columns], x)
    for count in (1, 3, 4, 5, 7, 8, 33):
        u = np.random.default_rng(count).integers(0, 256, count).astype(np.uint8)
        there = RebaseParams(count, "uint8_t", "int8_t")
        add(_plain("rebase_s8", there), (u.astype(np.int16) - 128).astype(np.int8), u)
        back = RebaseParams(count, "int8_t", "uint8_t")
        s = random_s8(count, count)
        add(_plain("rebase_s8", back), (s.astype(np.int16) + 128).astype(np.uint8), s)
        add(_plain("copy_s8", CopyParams(count)), s, s)
    table = random_s8(5, 256)
    every = np.arange(-128, 128, dtype=np.int8)
    add(lut_call(table, 256), table[every.view(np.uint8)], every)
    for seed, (rows, elements, bits, levels) in enumerate(PACKED):
        picks = np.random.default_rng(seed).integers(0, len(levels), (rows, elements))
        x, packed = np.array(levels, np.int8)[picks], by_hand(picks, bits)
        run = levels[-1] - levels[0] < len(levels)
        storage = Storage(bits, levels)
        attrs = PackAttrs(storage, 1, elements)
        params = pack_params(attrs, rows, by_table=not run)
        whole = np.array((*levels, *[0] * (2**bits - len(levels))), np.int8)
        codes = PackedConstant("codes", storage.codes(), "uint8_t")
        entries = PackedConstant("levels", whole, "int8_t")
        words = ("tinyq_words.h",)
        call = _plain("pack_s8", params, *[] if run else [codes])
        add(replace(call, includes=words), packed, x)
        call = _plain("unpack_s8", params, *[] if run else [entries])
        add(replace(call, includes=words), x, packed)
        assert np.array_equal(storage.pack(x), packed)
        assert np.array_equal(storage.unpack(packed, elements), x)
    tables = random_s8(6, 3, 256)
    x = random_s8(7, 1, 5, 3)
    picked = np.stack([tables[c][x[..., c].view(np.uint8)] for c in range(3)], axis=-1)
    add(lut_call(tables, 15, 3), picked, x)
    return cases


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_data_movement(tmp_path: Path, compiler: str) -> None:
    check_cases(movement_cases(), tmp_path, compiler)


@dataclass(frozen=True)
class Pool:
    h: int
    w: int
    c: int
    k: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceil: bool = False

    def out(self, axis: int) -> int:
        size = (self.h, self.w)[axis] + self.pads[axis] + self.pads[axis + 2]
        span = size - (self.k[axis] - 1) * self.dilation[axis] - 1
        return (-(-span // self.stride[axis]) if self.ceil else span // self.stride[axis]) + 1

    def windows(self, image: AnyArray, fill: int, margin: int) -> AnyArray:
        """[out_h, out_w, taps, c] of the padded image; ``margin`` is what lies beyond padding."""
        t, left, b, right = self.pads
        padded = np.pad(image, ((t, b), (left, right), (0, 0)), constant_values=fill)
        padded = np.pad(padded, ((0, 9), (0, 9), (0, 0)), constant_values=margin)
        rows = [
            [
                padded[
                    oy * self.stride[0] : oy * self.stride[0] + self.k[0] * self.dilation[0],
                    ox * self.stride[1] : ox * self.stride[1] + self.k[1] * self.dilation[1],
                ][:: self.dilation[0], :: self.dilation[1]].reshape(-1, self.c)
                for ox in range(self.out(1))
            ]
            for oy in range(self.out(0))
        ]
        return np.array(rows)


POOLS = {
    "plain": Pool(6, 8, 3, (2, 2), (2, 2)),
    "overlapping": Pool(7, 7, 2, (3, 3), (2, 1)),
    "padded": Pool(7, 6, 4, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "ceil": Pool(6, 6, 2, (3, 3), (2, 2), ceil=True),
    "uneven": Pool(5, 9, 1, (2, 4), (1, 3), pads=(0, 2, 1, 3)),
    "global": Pool(5, 3, 7, (5, 3)),
}


def max_pool_case(name: str, pool: Pool) -> Case:
    x = random_s8(11, 1, pool.h, pool.w, pool.c)
    wanted = pool.windows(x[0], -128, -128).max(axis=2)[None]
    params = MaxPool2dParams(
        pool.h, pool.w, pool.c, pool.out(0), pool.out(1), *pool.k, *pool.stride, *pool.dilation,
        *pool.pads[:2],
    )  # fmt: skip
    return Case(f"max_{name}", _plain("max_pool2d_s8", params), (x,), wanted)


def avg_pool_case(name: str, pool: Pool, include_pad: bool) -> Case:
    zero = -11
    x = random_s8(12, 1, pool.h, pool.w, pool.c)
    ones = np.ones_like(x[0], dtype=np.int64)
    counts = pool.windows(ones, int(include_pad), 0).sum(axis=2)
    sums = pool.windows(x[0].astype(np.int64), zero if include_pad else 0, 0).sum(axis=2)
    requants = []
    wanted = np.zeros_like(sums)
    for count in np.unique(counts).tolist():
        fixes = ((int(sums[counts == count][0]), 1),)
        r = CountRequant(count, 2**31 // (count + 3), 16 + count, 6, 5, fixes)
        requants.append(r)
        v = rescale(sums, r.multiplier, r.addend, 6, 5) + (sums == fixes[0][0])
        wanted = np.where(counts == count, v, wanted)
    params = AvgPool2dParams(
        pool.h, pool.w, pool.c, pool.out(0), pool.out(1), *pool.k, *pool.stride, *pool.pads,
        include_pad, zero, tuple(requants), -90, 100,
    )  # fmt: skip
    clamped = np.clip(wanted, -90, 100).astype(np.int8)[None]
    return Case(f"avg_{name}_{include_pad}", _plain("avg_pool2d_s8", params), (x,), clamped)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_pooling(tmp_path: Path, compiler: str) -> None:
    cases = [max_pool_case(name, pool) for name, pool in POOLS.items()]
    cases.append(max_pool_case("dilated", Pool(9, 8, 2, (3, 2), (1, 2), (2, 3))))
    for name, pool in POOLS.items():
        cases += [avg_pool_case(name, pool, include) for include in (False, True)]
    check_cases(cases, tmp_path, compiler)


def matmul_case(batch: int, m: int, k: int, n: int) -> Case:
    a, b = random_s8(21, batch, m, k), random_s8(22, batch, k, n)
    acc = (a.astype(np.int64) + 7) @ (b.astype(np.int64) - 13)
    rq, requant = requant_arrays(23, 1, int(np.abs(acc).max()))
    requant = replace(requant, fixes=(Fix(0, int(acc[0, 0, 0]), 1),))
    params = MatMulParams(batch, m, k, n, -7, 13, requant)
    wanted = requantized(acc[..., None], rq, requant)[..., 0]
    call = _plain("matmul_s8", params, *requant_constants(rq))
    return Case(f"matmul{batch}{m}{k}{n}", call, (a, b), wanted)


def softmax_case(rows: int, depth: int, scale: float, levels: int) -> Case:
    x = random_s8(31, rows, depth)
    table = np.rint(np.exp(-np.arange(256) * scale) * 2.0**20).astype(np.uint32)
    e = table[x.max(axis=1, keepdims=True).astype(int) - x].astype(np.int64)
    total = e.sum(axis=1, keepdims=True)
    quotients = (2 * e.astype(object) * levels + total) // (2 * total.astype(object))
    wanted = np.clip(quotients - 128, -128, 127).astype(np.int8)
    params = SoftmaxParams(rows, depth, levels, -128, -128, 127)
    call = _plain("softmax_s8", params, PackedConstant("exp", table, "uint32_t"))
    return Case(f"softmax{rows}x{depth}_{levels}", call, (x,), wanted)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_matmul_and_softmax(tmp_path: Path, compiler: str) -> None:
    cases = [matmul_case(*size) for size in [(1, 1, 1, 1), (2, 3, 5, 4), (1, 7, 9, 1)]]
    cases += [
        softmax_case(1, 12, 0.1, 256),
        softmax_case(5, 3, 0.02, 341),
        softmax_case(2, 10, 1.0, 1),
        softmax_case(3, 1, 0.5, 2**31 - 1),
        softmax_case(1, 4, 0.0, 255),
    ]
    check_cases(cases, tmp_path, compiler)


FLOOR_CASES: list[tuple[int, int]] = [
    (p, q)
    for p in (-(2**31), -(2**31) + 1, -65537, -65536, -65535, -1, 0, 1, 65535, 65536, 2**31 - 1)
    for q in (1, 2, 65535, 65536, 65537, 2**30, 2**31 - 65536, 2**31 - 1)
]


@pytest.mark.parametrize("flags", LONG_MULTIPLY, ids=["long", "short"])
def test_mulhi_floors(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Both forms of the high multiply give floor(p * q / 2**32)."""
    import ctypes
    import subprocess

    from tinyq.resources import data_dir

    source = tmp_path / "mulhi.c"
    source.write_text(
        '#include "tinyq_math.h"\nint32_t mulhi(int32_t p, int32_t q);\n'
        "int32_t mulhi(int32_t p, int32_t q) { return tinyq_mulhi(p, q); }\n"
    )
    library = tmp_path / "mulhi.so"
    include = f"-I{data_dir('templates') / 'lib'}"
    command = ["gcc", "-std=c99", "-O1", "-fPIC", "-shared", include, *UNDEFINED, *flags]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    mulhi: Callable[[int, int], int] = ctypes.CDLL(str(library)).mulhi
    rng = np.random.default_rng(5)
    drawn = rng.integers(-(2**31), 2**31, (2000, 2)).tolist()
    for p, q in [*FLOOR_CASES, *((p, abs(q) % 2**31) for p, q in drawn)]:
        assert mulhi(p, q) == p * q // 2**32
