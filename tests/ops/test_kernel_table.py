"""Every kernel of convolutions and dense layers at the edges of its blocking, as compiled.

The oracle is numpy. All layers of a table are one network: kernels are forced, outputs overlap
inputs as far as the kernel says that they may.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from dsp_kernels import Conv
from kernel_table import FORMS, DenseCase, Table

Pads = tuple[int, int, int, int]
EFFORTS = ("", "_short", "_compact")
PADS: tuple[Pads, ...] = ((0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), (2, 1, 0, 3))


def common(i: int) -> dict[str, Any]:
    """Clamps, shifts and zero points by turns."""
    return {"pre_shift": (0, 0, 3)[i % 3], "qmin": -128 + 11 * (i % 2), "qmax": 127 - 7 * (i % 3),
            "zp": (53 * i) % 256 - 128}  # fmt: skip


def conv_cases(count: int, first: int = 0) -> list[Conv]:
    """Convolutions: kernels 1 to 4, strides 1 to 3, dilations, groups, widths 1 to 9."""
    cases = []
    for i in range(first, first + count):
        kernel = ((1, 1), (3, 3), (1, 1), (2, 4), (1, 3), (4, 1))[i % 6]
        stride = (1, 1) if i % 6 in (0, 1) else (i % 3 + 1, (i // 2) % 3 + 1)
        dilation = (1, 1) if i % 4 else (2, 1 + i % 3 // 2)
        groups = (1, 1, 1, 2)[(i // 2) % 4]
        pads = (0, 0, 0, 0) if kernel == (1, 1) else PADS[i % 4]
        height = (kernel[0] - 1) * dilation[0] + 1 + i % 4
        width = (kernel[1] - 1) * dilation[1] + 1 + i % 9
        cases.append(
            Conv(height, width, groups * (i % 9 + 1), groups * ((i * 7 + 3) % 9 + 1), kernel,
                 stride, dilation, pads, groups, **common(i))
        )  # fmt: skip
    return cases


def depthwise_cases(count: int, first: int = 0) -> list[Conv]:
    """Depthwise: planes of stride 1 and 2, 3x3 of stride 2, columns of width 1, multipliers."""
    cases = []
    for i in range(first, first + count):
        kernel = ((3, 3), (3, 3), (1, 5), (2, 2), (3, 1), (5, 3))[i % 6]
        stride = ((1, 1), (2, 2), (1, 1), (2, 1), (1, 1), (1, 3))[i % 6]
        pads: Pads = PADS[(i // 6) % 3] if kernel == (3, 3) else (i % 2, 0, 0, 0)
        width = 1 if kernel[1] == 1 else i % 9 + kernel[1]
        channels, multiplier = i % 7 + 1, 2 if i % 5 == 4 else 1
        cases.append(
            Conv(kernel[0] + i % 4, width, channels, channels * multiplier, kernel, stride,
                 pads=pads, groups=channels, **common(i))
        )  # fmt: skip
    return cases


def dense_cases(count: int, rows: int = 1) -> list[DenseCase]:
    """Dense layers of 1 to 9 inputs and outputs and some longer ones."""
    cases = []
    for i in range(count):
        settings = common(i)
        settings.pop("zp")
        inputs = (i * 5) % 9 + 1 if i % 3 else 260 + 4 * i
        cases.append(DenseCase(rows and rows + i % 3 * (rows > 1), inputs, i % 9 + 1, **settings))
    return cases


def scalar_table(count: int) -> Table:
    """Kernels for every core."""
    table = Table()
    for i in range(count):
        fixes, form = i % 3, FORMS[i % 7]
        table.conv("conv2d_s8", conv_cases(1, i)[0], fixes, form=form)
        table.conv("conv2d_s8_columns", conv_cases(1, i)[0], fixes, i % 5 == 4, form)
        table.conv("depthwise_s8_planes", depthwise_cases(1, i)[0], fixes, form=form)
    for kernel, rows in (("dense_s8", 1), ("dense_s8_rows", 2)):
        for i, case in enumerate(dense_cases(count // 2, rows)):
            table.dense(kernel, case, i % 3, i % 5 == 4, FORMS[i % 7])
    return table


def dsp_table(count: int) -> Table:
    """Kernels for the DSP extension, in every effort."""
    table = Table()
    for e, effort in enumerate(EFFORTS):
        for i in range(e, count + e):
            fixes = (0, 1, 2, 5)[i % 4]
            form = FORMS[(i + i // 7 + 1) % 7]
            table.conv(f"conv2d_s8_dsp{effort}", conv_cases(1, i)[0], fixes, i % 7 == 6, form)
            table.conv(f"depthwise_s8_dsp{effort}", depthwise_cases(1, i)[0], fixes, form=form)
        for i, case in enumerate((*dense_cases(count // 2), *dense_cases(count // 4, 2))):
            table.dense(f"dense_s8_dsp{effort}", case, i % 3, i % 5 == 4, FORMS[(i + e) % 7])
    return table


def need_tools(emulator: str) -> None:
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if emulator == "qemu" and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


@pytest.mark.parametrize(("kernels", "count"), [(scalar_table, 18), (dsp_table, 12)])
def test_host(kernels: Any, count: int, tmp_path: Path) -> None:
    assert kernels(count).wrong("cortex-m4", "host", tmp_path) == []


CORES = (
    ("cortex-m0", scalar_table, 12),
    ("cortex-m3", scalar_table, 24),
    ("cortex-m4", dsp_table, 24),
    ("cortex-m7", dsp_table, 8),
    ("cortex-m33", dsp_table, 8),
    ("cortex-m55", dsp_table, 8),
)


@pytest.mark.qemu
@pytest.mark.parametrize(("target", "kernels", "count"), CORES)
def test_cores(target: str, kernels: Any, count: int, tmp_path: Path) -> None:
    need_tools("qemu")
    assert kernels(count).wrong(target, "qemu", tmp_path) == []
