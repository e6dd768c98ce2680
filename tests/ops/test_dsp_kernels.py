"""Kernels for the DSP extension against numpy: C twins on the host, assembly on emulated cores."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dsp_kernels import Conv, Dense, Program, add_conv, add_dense, add_depthwise

from tinyq.ops import packing
from tinyq.target import load_core

Pads = tuple[int, int, int, int]
MODES: tuple[packing.MatmulMode, ...] = ("plain", "mixed", "wide")
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33)
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wmissing-prototypes", "-Werror"]
LINK_SCRIPT = Path(__file__).with_name("dsp_kernels.ld")


def pointwise_cases() -> list[Conv]:
    """1x1: input and output channels, pixels, modes, clamps, corrections, both ways in place."""
    cases = []
    for i, c in enumerate(SIZES):
        o = SIZES[(i * 5 + 3) % len(SIZES)]
        cases.append(
            Conv(i % 3 + 1, i % 9 + 1, c, o, mode=MODES[i % 3], unroll=i % 3 + 1, fixes=i % 3,
                 pre_shift=(0, 3, 8, 11)[i % 4], qmin=-128 + 9 * (i % 2), qmax=127 - 5 * (i % 3),
                 in_place="start" if o <= c else "end")
        )  # fmt: skip
        cases.append(Conv(3, 3, o, c, s=(i % 3 + 1, (i + 1) % 3 + 1), mode=MODES[(i + 1) % 3]))
    return cases


def conv_cases() -> list[Conv]:
    """k x k: kernels, strides, dilations, paddings, groups and channels around the blocking."""
    pads: list[Pads] = [(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), (2, 0, 1, 3), (4, 1, 5, 1)]
    cases = []
    for i in range(48):
        kernel = (i % 4 + 1, (i // 3) % 5 + 1)
        dilation = (i % 2 + 1, (i // 2) % 2 + 1)
        groups = (1, 1, 2, 3)[i % 4]
        cases.append(
            Conv(
                i % 7 + (kernel[0] - 1) * dilation[0] + 1,
                i % 9 + (kernel[1] - 1) * dilation[1] + 1,
                groups * (i % 9 + 1), groups * ((i * 7) % 9 + 1), kernel, (i % 3 + 1, i % 2 + 1),
                dilation, pads[i % 5], groups, MODES[i % 3], zp=(37 * i) % 256 - 128,
                unroll=i % 2 + 1, fixes=i % 3, pre_shift=(0, 0, 8, 2)[i % 4],
            )
        )  # fmt: skip
    cases += [
        Conv(8, 8, 3, 16, (3, 3), pads=(1, 1, 1, 1), mode="mixed"),
        Conv(9, 9, 3, 8, (3, 3), (2, 2), pads=(0, 0, 1, 1), mode="wide"),
        Conv(49, 10, 1, 5, (10, 4), (2, 2), pads=(4, 1, 5, 1), mode="mixed", zp=83),
        Conv(5, 5, 68, 4, (3, 3), pads=(1, 1, 1, 1), mode="plain", unroll=9),
        Conv(2, 2, 1200, 2, mode="wide", unroll=4),
    ]
    return cases


def dense_cases() -> list[Dense]:
    """Inputs and outputs around the blocking, with and without a loop over the inputs."""
    cases = [
        Dense(SIZES[(i * 3) % 14], o, MODES[i % 3], (0, 3, 9)[i % 3 if i % 2 else 0],
              -128 + 7 * (i % 3), 127 - 4 * (i % 2), i % 2 + 1, i % 3)
        for i, o in enumerate((*SIZES, *range(1, 10)))
    ]  # fmt: skip
    cases += [
        Dense(4 * i, 10 - i, MODES[i % 3], 3 * (i % 2), unroll=i % 3 + 1, fixes=i % 3, direct=True)
        for i in range(1, 10)
    ]
    return [
        *cases,
        Dense(2052, 3, "mixed", direct=True),
        Dense(640, 5, "mixed"),
        Dense(2052, 7, "plain"),
        Dense(4104, 2, "wide"),
    ]


def depthwise(h: int, w: int, c: int, k: tuple[int, int], m: int = 1, **other: Any) -> Conv:
    return Conv(h, w, c, c * m, k, groups=c, **other)


def depthwise_cases() -> list[tuple[Conv, str]]:
    """Every variant: sizes 1 to 9, strides, paddings, kernels, in place, channel multipliers."""
    pads: list[Pads] = [(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), (1, 0, 0, 1), (1, 1, 0, 0)]
    cases: list[tuple[Conv, str]] = []
    for i, (h, w) in enumerate((h, w) for h in range(1, 10) for w in range(1, 10)):
        common: dict[str, Any] = {
            "zp": (53 * i) % 256 - 128, "fixes": i % 3, "pre_shift": (0, 0, 4)[i % 3],
            "qmin": -128 + i % 7, "qmax": 127 - i % 9, "in_place": ("start", "")[i % 2],
            "unroll": i % 4 + 1,
        }  # fmt: skip
        pad = pads[i % 5]
        channels = (1, 3, 130, 5, 300 if w < 6 else 7)[i % 5]
        if h + pad[0] + pad[2] >= 3 and w + pad[1] + pad[3] >= 3 and i % 2:
            cases.append((depthwise(h, w, channels, (3, 3), s=(2, 2), pads=pad, **common), "s2"))
        if i % 2 == 0:
            same = depthwise(h, w, channels, (3, 3), pads=(1, 1, 1, 1), **common)
            cases.append((same, "plane3x3"))
    for i in range(72):
        kernel = (i % 5 + 1, i % 8 + 1)
        stride = (i % 2 + 1, (i // 2) % 3 + 1)
        dilation = (i % 2 + 1, 2 if stride[1] == 3 or i % 5 == 0 else 1)
        variant = "plane" if stride[1] < 3 and dilation[1] == 1 else "planar"
        case = depthwise(
            (kernel[0] - 1) * dilation[0] + 1 + i % 3, (kernel[1] - 1) * dilation[1] + 1 + i % 9,
            (1, 3, 5, 300)[i % 4] if i % 3 == 0 else i % 4 + 1, kernel, 1 + (i % 5 == 0), s=stride,
            d=dilation, pads=[(0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0), (2, 0, 0, 3)][i % 4],
            zp=(91 * i) % 256 - 128, fixes=i % 3, pre_shift=i % 5, qmax=127 - i % 9,
        )  # fmt: skip
        cases.append((case, variant))
    cases += [(depthwise(1, 28, 6, (1, k)), "plane") for k in (3, 5, 10, 15)]
    return cases


def program(paired: bool) -> Program:
    made = Program(paired)
    rng = np.random.default_rng(20)
    for conv in (*pointwise_cases(), *conv_cases()):
        add_conv(made, conv, rng)
    for dense in dense_cases():
        add_dense(made, dense, rng)
    for case, variant in depthwise_cases():
        add_depthwise(made, case, rng, variant)
    return made


@cache
def source(paired: bool = False) -> tuple[str, tuple[str, ...]]:
    made = program(paired)
    return made.text(), tuple(made.names)


def outcome(stdout: str) -> list[tuple[str, int]]:
    """Name and number of wrong bytes of every case that ran."""
    return [(name, int(wrong)) for name, wrong, _ in map(str.split, stdout.splitlines())]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_host_equals_numpy(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    text, names = source()
    path = tmp_path / "kernels.c"
    path.write_text(text)
    binary = tmp_path / "kernels"
    flags = ["-std=c99", "-O1"]
    if compiler == "gcc":
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, *WARNINGS, path, "-o", binary], check=True)
    run = subprocess.run([binary], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert outcome(run.stdout) == [(name, 0) for name in names]


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("cpu", "machine"),
    [("cortex-m4", "mps2-an386"), ("cortex-m7", "mps2-an500"), ("cortex-m33", "mps2-an505")],
)
def test_core_equals_numpy(cpu: str, machine: str, tmp_path: Path) -> None:
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    text, names = source(load_core(cpu).pairs)
    path = tmp_path / "kernels.c"
    path.write_text(text)
    firmware = tmp_path / "kernels.elf"
    base = ("0x10000000", "0x38000000") if machine == "mps2-an505" else ("0", "0x20000000")
    target = [
        "-mthumb",
        f"-mcpu={cpu}",
        "-mfloat-abi=soft",
        "-nostartfiles",
        "-T",
        str(LINK_SCRIPT),
    ]
    origins = [f"-Wl,--defsym=FLASH_BASE={base[0]},--defsym=RAM_BASE={base[1]}"]
    subprocess.run(
        [
            "arm-none-eabi-gcc",
            "-std=c99",
            "-O2",
            *WARNINGS,
            *target,
            *origins,
            path,
            "-o",
            firmware,
        ],
        check=True,
    )
    quiet = ["-nographic", "-monitor", "none", "-serial", "none"]
    hosted = ["-semihosting-config", "enable=on,target=native", "-kernel", str(firmware)]
    command = ["qemu-system-arm", "-M", machine, *quiet, *hosted]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert outcome(run.stdout + run.stderr) == [(name, 0) for name in names]
