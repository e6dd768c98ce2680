"""Builds one C program out of many kernel cases, each with its inputs and its expected outputs.

The oracle is numpy (sums of products in int64, Python's exact shifts); the program compares and
prints one line a case: name, number of wrong bytes, ticks of the timer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tinyq.codegen.environment import render
from tinyq.ops import packing

Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Requant:
    """Parameters of the requantization contract, one multiplier and addend a channel."""

    multiplier: Int64
    addend: Int64
    pre_shift: int
    post_shift: int
    qmin: int = -128
    qmax: int = 127

    def apply(self, acc: Int64) -> Int64:
        """Outputs of accumulators [..., O]."""
        high = ((acc << self.pre_shift) * self.multiplier) >> 32
        y: Int64 = (high + self.addend) >> self.post_shift
        return y.clip(self.qmin, self.qmax)


def draw_requant(
    rng: np.random.Generator,
    acc: Int64,
    *,
    pre_shift: int = 0,
    qmin: int = -128,
    qmax: int = 127,
) -> Requant:
    """Parameters that spread accumulators [..., O] over the int8 range, some beyond its ends."""
    flat = acc.reshape(-1, acc.shape[-1])
    spread = max(float(np.abs(flat - flat.mean(axis=0)).mean()), 4.0)
    scale = 70.0 / spread / 2**pre_shift
    post_shift = 0
    while scale * 2.0 ** (32 + post_shift) < 2.0**30 and post_shift < 20:
        post_shift += 1
    base = min(scale * 2.0 ** (32 + post_shift), 2.0**30)
    multiplier = np.floor(base * rng.uniform(0.5, 1.5, acc.shape[-1])).astype(np.int64)
    centre = np.floor(flat.mean(axis=0) * 2**pre_shift * multiplier / 2**32).astype(np.int64)
    addend = rng.integers(-60, 60, acc.shape[-1]) * 2**post_shift - centre
    return Requant(multiplier, addend, pre_shift, post_shift, qmin, qmax)


@dataclass(frozen=True)
class Fix:
    """Where the accumulator of ``channel`` is ``acc``, the output ``before`` becomes ``after``."""

    channel: int
    acc: int
    before: int
    after: int


def draw_fixes(acc: Int64, requant: Requant, count: int) -> tuple[list[Fix], Int64]:
    """Corrections of ``count`` accumulators that occur, and the outputs [..., O] with them."""
    outputs = requant.apply(acc)
    flat_acc = acc.reshape(-1, acc.shape[-1])
    flat_out = outputs.reshape(flat_acc.shape)
    fixes: list[Fix] = []
    for i in range(count):
        channel = (i * 5) % flat_acc.shape[1]
        row = (i * 7) % flat_acc.shape[0]
        value = int(flat_acc[row, channel])
        if any(f.channel == channel and f.acc == value for f in fixes):
            continue
        before = int(requant.apply(acc)[..., channel].reshape(-1)[row])
        after = before - 1 if before > 0 else before + 1
        flat_out[flat_acc[:, channel] == value, channel] = after
        fixes.append(Fix(channel, value, before, after))
    return fixes, outputs


@dataclass
class Program:
    """Accumulates functions, data and calls; ``text()`` is the whole C file.

    ``paired``: inner loops for cores that issue two instructions a cycle.
    """

    paired: bool = False
    functions: dict[str, str] = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def array(self, ctype: str, name: str, values: Int64 | Int8, const: bool = True) -> None:
        body = ",".join(str(int(v)) for v in np.ravel(values))
        qualifier = "static const" if const else "static"
        self.data.append(f"{qualifier} {ctype} {name}[] ALIGNED = {{{body}}};")

    def case(
        self,
        name: str,
        fn: str,
        x: Int8,
        w: Int8,
        requant: Requant,
        y: Int64,
        scratch_bytes: int,
        in_place: str = "",
    ) -> None:
        """One call; ``in_place`` is "", "start" (y at x) or "end" (y ends where x ends)."""
        i = len(self.names)
        self.names.append(name)
        size = x.size if not in_place else max(x.size, y.size)
        self.array("int8_t", f"x{i}", x)
        self.array("int8_t", f"w{i}", w)
        self.array("int8_t", f"e{i}", y)
        pairs = ",".join(
            f"{{{m},{a}}}" for m, a in zip(requant.multiplier, requant.addend, strict=True)
        )
        self.data.append(f"static const tinyq_requant_t rq{i}[] = {{{pairs}}};")
        x_at = size - x.size if in_place == "end" else 0
        self.calls.append(
            f'    {{"{name}", {fn}, x{i}, w{i}, rq{i}, e{i},'
            f" {x.size}, {y.size}, {size}, {x_at}, {scratch_bytes}, {int(bool(in_place))}}},"
        )

    def text(self) -> str:
        return "\n".join(
            [
                render("lib/tinyq_dsp.h"), _PRELUDE, *self.functions.values(), *self.data,
                "static const case_t cases_[] = {", *self.calls, "};", _MAIN,
            ]
        )  # fmt: skip


@dataclass(frozen=True)
class Conv:
    """A convolution case; pads are top, left, bottom, right."""

    h: int
    w: int
    c: int
    o: int
    k: tuple[int, int] = (1, 1)
    s: tuple[int, int] = (1, 1)
    d: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    mode: packing.MatmulMode = "plain"
    zp: int = -128
    pre_shift: int = 0
    qmin: int = -128
    qmax: int = 127
    unroll: int = 0
    fixes: int = 0
    in_place: str = ""

    @property
    def out_hw(self) -> tuple[int, int]:
        top, left, bottom, right = self.pads
        oh = (self.h + top + bottom - (self.k[0] - 1) * self.d[0] - 1) // self.s[0] + 1
        ow = (self.w + left + right - (self.k[1] - 1) * self.d[1] - 1) // self.s[1] + 1
        return oh, ow

    @property
    def macs(self) -> int:
        oh, ow = self.out_hw
        return oh * ow * self.o * self.k[0] * self.k[1] * self.c // self.groups

    @property
    def name(self) -> str:
        return (
            f"conv_{self.h}x{self.w}x{self.c}_o{self.o}_k{self.k[0]}x{self.k[1]}_s{self.s[0]}{self.s[1]}"
            f"_d{self.d[0]}{self.d[1]}_p{''.join(map(str, self.pads))}_g{self.groups}_{self.mode}"
            f"_pre{self.pre_shift}_q{self.qmin}_{self.qmax}_u{self.unroll}_f{self.fixes}{self.in_place}"
        )


def accumulate(x: Int8, weight_ohwi: Int8, case: Conv) -> Int64:
    """Accumulators [OH, OW, O] of raw int8 inputs [H, W, C]; padding is the zero point."""
    top, left, bottom, right = case.pads
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=case.zp)
    oh, ow = case.out_hw
    og, cg = case.o // case.groups, case.c // case.groups
    acc = np.zeros((oh, ow, case.o), np.int64)
    for ky in range(case.k[0]):
        for kx in range(case.k[1]):
            y0, x0 = ky * case.d[0], kx * case.d[1]
            rows = slice(y0, y0 + (oh - 1) * case.s[0] + 1, case.s[0])
            columns = slice(x0, x0 + (ow - 1) * case.s[1] + 1, case.s[1])
            tap = padded[rows, columns].astype(np.int64)
            for g in range(case.groups):
                w = weight_ohwi[g * og : (g + 1) * og, ky, kx].astype(np.int64)
                acc[:, :, g * og : (g + 1) * og] += tap[:, :, g * cg : (g + 1) * cg] @ w.T
    return acc


def largest_unroll(steps: int, limit: int) -> int:
    """Largest divisor of ``steps`` up to ``limit``."""
    return max(u for u in range(1, limit + 1) if steps % u == 0)


def add_conv(program: Program, case: Conv, rng: np.random.Generator) -> None:
    """Renders the case's functions and adds its data and call."""
    x = rng.integers(-128, 128, (case.h, case.w, case.c)).astype(np.int8)
    cg, og = case.c // case.groups, case.o // case.groups
    low = -127 if case.mode == "mixed" else -128
    weight = rng.integers(low, 128, (case.o, *case.k, cg)).astype(np.int8)
    acc = accumulate(x, weight, case)
    requant = draw_requant(rng, acc, pre_shift=case.pre_shift, qmin=case.qmin, qmax=case.qmax)
    fixes, expected = draw_fixes(acc, requant, case.fixes)
    by_rows = packing.gathers_rows(case.groups, case.k[1], case.d[1])
    order = packing.column_order(case.k, cg, by_rows)
    flat = weight.reshape(case.o, -1)
    groups = [
        packing.pack_matmul(flat[g * og : (g + 1) * og], order, case.mode)
        for g in range(case.groups)
    ]
    k4 = order.size
    unroll = largest_unroll(k4 // 4, case.unroll or 16)
    mm = f"mm_{k4}_{og}_{case.o}_{case.mode}_{requant.pre_shift}_{requant.post_shift}_{unroll}"
    mm += f"_{case.qmin + 128}_{case.qmax}"
    program.functions[mm] = render(
        "ops/matmul_s8_dsp.c.j2", fn=mm, k4=k4, o=og, y_stride=case.o, mode=case.mode,
        paired=program.paired,
        pre_shift=requant.pre_shift, post_shift=requant.post_shift, qmin=case.qmin,
        qmax=case.qmax, unroll=unroll, ties="up", guard=None,
    )  # fmt: skip
    fn = f"conv_{len(program.names)}"
    oh, ow = case.out_hw
    program.functions[fn] = render(
        "ops/conv_s8_dsp.c.j2", fn=fn, mm=mm, h=case.h, w=case.w, c=case.c, oh=oh, ow=ow, o=case.o,
        kh=case.k[0], kw=case.k[1], sh=case.s[0], sw=case.s[1], dh=case.d[0], dw=case.d[1],
        pt=case.pads[0], pl=case.pads[1], in_zp=case.zp, groups=case.groups, fixes=fixes,
        group_bytes=groups[0].size, blocks=1,
    )  # fmt: skip
    scratch = packing.conv_scratch_bytes(k4, cg * case.k[0] * case.k[1], case.o)
    program.case(
        case.name, fn, x, np.concatenate(groups), requant, expected, scratch, case.in_place
    )


@dataclass(frozen=True)
class Dense:
    """A dense case: K inputs, O outputs."""

    k: int
    o: int
    mode: packing.MatmulMode = "plain"
    pre_shift: int = 0
    qmin: int = -128
    qmax: int = 127
    unroll: int = 0
    fixes: int = 0
    direct: bool = False

    @property
    def macs(self) -> int:
        return self.k * self.o

    @property
    def name(self) -> str:
        return (
            f"dense_{self.k}_{self.o}_{self.mode}_pre{self.pre_shift}_q{self.qmin}_{self.qmax}"
            f"_u{self.unroll}_f{self.fixes}{'_direct' * self.direct}"
        )


def add_dense(program: Program, case: Dense, rng: np.random.Generator) -> None:
    """Renders the case's functions and adds its data and call."""
    x = rng.integers(-128, 128, case.k).astype(np.int8)
    low = -127 if case.mode == "mixed" else -128
    weight = rng.integers(low, 128, (case.o, case.k)).astype(np.int8)
    acc = weight.astype(np.int64) @ x.astype(np.int64)
    # One row of accumulators: draw the spread from their variety over the channels.
    requant = draw_requant(
        rng,
        np.stack([acc, -acc]),
        pre_shift=case.pre_shift,
        qmin=case.qmin,
        qmax=case.qmax,
    )
    fixes, expected = draw_fixes(acc, requant, case.fixes)
    k4 = (case.k + 3) // 4 * 4
    unroll = largest_unroll(k4 // 4, case.unroll or 16)
    mv = f"mv_{k4}_{case.o}_{case.mode}_{requant.pre_shift}_{requant.post_shift}_{unroll}"
    mv += f"_{case.qmin + 128}_{case.qmax}{'_direct' * case.direct}"
    program.functions[mv] = render(
        "ops/matvec_s8_dsp.c.j2", fn=mv, k4=k4, o=case.o, mode=case.mode,
        pre_shift=requant.pre_shift, post_shift=requant.post_shift, qmin=case.qmin,
        qmax=case.qmax, unroll=unroll, direct=case.direct, ties="up", guard=None,
    )  # fmt: skip
    fn = f"dense_{len(program.names)}"
    program.functions[fn] = render(
        "ops/dense_s8_dsp.c.j2",
        fn=fn,
        mv=mv,
        k=case.k,
        direct=case.direct,
        fixes=fixes,
        block=0,
    )
    if case.direct:
        program.functions[f"{fn}_case"] = _IGNORES_SCRATCH.replace("FN", fn)
        fn += "_case"
    program.case(
        case.name, fn, x, packing.pack_matvec(weight, case.mode), requant, expected,
        packing.dense_scratch_bytes(case.k),
    )  # fmt: skip


def add_depthwise(program: Program, case: Conv, rng: np.random.Generator, variant: str) -> None:
    """A depthwise case: ``case.groups == case.c``; ``variant`` as in depthwise_s8_dsp.c.j2."""
    x = rng.integers(-128, 128, (case.h, case.w, case.c)).astype(np.int8)
    weight = rng.integers(-128, 128, (case.o, *case.k, 1)).astype(np.int8)
    acc = accumulate(x, weight, case)
    requant = draw_requant(rng, acc, pre_shift=case.pre_shift, qmin=case.qmin, qmax=case.qmax)
    fixes, expected = draw_fixes(acc, requant, case.fixes)
    oh, ow = case.out_hw
    shifts = {
        "pre_shift": requant.pre_shift,
        "post_shift": requant.post_shift,
        "qmin": case.qmin,
        "qmax": case.qmax,
        "ties": "up",
        "guard": None,
    }
    core = f"p3_{len(program.names)}"
    if variant == "plane3x3":
        unroll = largest_unroll(max(ow // 2, 1), case.unroll or 6)
        program.functions[core] = render(
            "ops/plane3x3_s8_dsp.c.j2", fn=core, oh=oh, ow=ow, o=case.o, unroll=unroll,
            paired=program.paired, **shifts,
        )  # fmt: skip
    if variant == "plane":
        program.functions[core] = render(
            "ops/plane_s8_dsp.c.j2", fn=core, oh=oh, ow=ow, o=case.o, kh=case.k[0], kw=case.k[1],
            sh=case.s[0], sw=case.s[1], dh=case.d[0],
            pw=packing.depthwise_plane_width(ow, case.k[1], case.s[1], case.d[1]), **shifts,
        )  # fmt: skip
    fn = f"depthwise_{len(program.names)}"
    if variant == "s2":
        program.functions[fn] = render(
            "ops/depthwise3x3s2_s8_dsp.c.j2", fn=fn, h=case.h, w=case.w, c=case.c, oh=oh, ow=ow,
            pt=case.pads[0], pl=case.pads[1], in_zp=case.zp, unroll=case.unroll or 4, fixes=fixes,
            in_place=bool(case.in_place), **shifts,
        )  # fmt: skip
        program.functions[f"{fn}_case"] = _IGNORES_SCRATCH.replace("FN", fn)
        fn += "_case"
        name = f"{variant}_{case.name}"
        program.case(name, fn, x, weight.ravel(), requant, expected, 4, case.in_place)
        return
    program.functions[fn] = render(
        "ops/depthwise_s8_dsp.c.j2", fn=fn, variant=variant, core=core, h=case.h, w=case.w,
        c=case.c, oh=oh, ow=ow, multiplier=case.o // case.c, kh=case.k[0], kw=case.k[1],
        sh=case.s[0], sw=case.s[1], dh=case.d[0], dw=case.d[1], pt=case.pads[0], pl=case.pads[1],
        in_zp=case.zp, fixes=fixes, **shifts,
    )  # fmt: skip
    scratch = packing.depthwise_scratch_bytes((oh, ow), case.k, case.s, case.d)
    program.case(
        f"{variant}_{case.name}", fn, x, weight.ravel(), requant, expected, scratch, case.in_place
    )


_IGNORES_SCRATCH = """
static void FN_case(
    const int8_t *x, int8_t *y, const int8_t *w, const tinyq_requant_t *rq, void *scratch) {
    (void)scratch;
    FN(x, y, w, rq);
}
"""

_PRELUDE = r"""
#define ALIGNED __attribute__((aligned(16)))
#ifdef __arm__
static int8_t memory_[3][98304] ALIGNED;
static uint32_t now(void) {
    static uint32_t high;
    static uint32_t last;
    const uint32_t value = 0xFFFFFFU - *(volatile uint32_t *)0xE000E018U;
    if (value < last) {
        high += 0x1000000U;
    }
    last = value;
    return high + value;
}
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
static void start(void) {
    *(volatile uint32_t *)0xE000E014U = 0xFFFFFFU;
    *(volatile uint32_t *)0xE000E018U = 0;
    *(volatile uint32_t *)0xE000E010U = 5;
}
static int8_t *buffer(int32_t size, int32_t index) {
    memset(memory_[index], 0x55, (size_t)size + 16U);
    return memory_[index];
}
static void release(void) {}
int main(void);
extern uint32_t _sidata[], _sdata[], _edata[], _sbss[], _ebss[], _estack[];
void reset_handler(void);
void reset_handler(void) {
    main();
    for (;;) {
    }
}
typedef union {
    const void *stack;
    void (*handler)(void);
} vector_t;
__attribute__((section(".vectors"), used)) static const vector_t vectors_[7] = {
    {_estack}, {.handler = reset_handler}, {.handler = finish}, {.handler = finish},
    {.handler = finish}, {.handler = finish}, {.handler = finish}};
#else
#include <stdio.h>
#include <stdlib.h>
static void *blocks_[8];
static int32_t used_;
static uint32_t now(void) { return 0; }
static void put(const char *s) { fputs(s, stdout); }
static void start(void) {}
static void finish(void) {}
static int8_t *buffer(int32_t size, int32_t index) {
    (void)index;
    blocks_[used_] = malloc((size_t)size);
    memset(blocks_[used_], 0x55, (size_t)size);
    return blocks_[used_++];
}
static void release(void) {
    while (used_ > 0) {
        free(blocks_[--used_]);
    }
}
#endif
typedef struct {
    const char *name;
    void (*fn)(const int8_t *, int8_t *, const int8_t *, const tinyq_requant_t *, void *);
    const int8_t *x;
    const int8_t *w;
    const tinyq_requant_t *rq;
    const int8_t *expected;
    int32_t x_size;
    int32_t y_size;
    int32_t size;
    int32_t x_at;
    int32_t scratch_size;
    int32_t in_place;
} case_t;
static void put_number(uint32_t v) {
    char text[12];
    int32_t i = 11;
    text[i] = 0;
    do {
        text[--i] = (char)('0' + v % 10U);
        v /= 10U;
    } while (v != 0U);
    put(text + i);
}
static void report(
    const char *name, const int8_t *y, const int8_t *expected, int32_t n, uint32_t ticks) {
    uint32_t wrong = 0;
    for (int32_t i = 0; i < n; i++) {
        wrong += y[i] != expected[i];
    }
    put(name);
    put(" ");
    put_number(wrong);
    put(" ");
    put_number(ticks);
    put("\n");
}
"""

_MAIN = r"""
int main(void) {
    start();
    for (size_t i = 0; i < sizeof cases_ / sizeof cases_[0]; i++) {
        const case_t *c = cases_ + i;
        int8_t *b = buffer(c->size, 0);
        int8_t *x = b + c->x_at;
        int8_t *y = c->in_place ? b : buffer(c->y_size, 1);
        void *scratch = buffer(c->scratch_size, 2);
        memcpy(x, c->x, (size_t)c->x_size);
        const uint32_t begin = now();
        c->fn(x, y, c->w, c->rq, scratch);
        report(c->name, y, c->expected, c->y_size, now() - begin);
        release();
    }
    finish();
    return 0;
}
"""
