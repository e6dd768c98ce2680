"""The Helium kernels at the edges of their blocking, on the emulated Cortex-M55.

The oracle is numpy. All layers are one network: kernels are forced, outputs overlap inputs as far
as the kernel says that they may.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dsp_kernels import Conv
from kernel_table import DenseCase, Table
from test_kernel_table import PADS, common

CHANNELS = (*range(1, 10), 15, 16, 17, 31, 33)


def conv_cases() -> list[Conv]:
    """Kernels 1 to 4, strides 1 to 3, dilations, widths 1 to 9; one patch that is the input."""
    cases = []
    for i in range(42):
        kernel = ((1, 1), (3, 3), (1, 1), (2, 4), (1, 3), (4, 1))[i % 6]
        stride = (1, 1) if i % 6 in (0, 1) else (i % 3 + 1, (i // 2) % 3 + 1)
        dilation = (1, 1) if i % 4 else (2, 1 + i % 3 // 2)
        pads = (0, 0, 0, 0) if kernel == (1, 1) else PADS[i % 4]
        height = (kernel[0] - 1) * dilation[0] + 1 + i % 4
        width = (kernel[1] - 1) * dilation[1] + 1 + i % 9
        inputs, outputs = CHANNELS[i % 14], CHANNELS[(i * 5 + 2) % 14]
        cases.append(
            Conv(height, width, inputs, outputs, kernel, stride, dilation, pads, **common(i))
        )
    cases.append(Conv(3, 3, 16, 5, (3, 3)))
    cases.append(Conv(3, 4, 64, 6, (3, 3), pads=(1, 1, 1, 1)))
    return cases


def depthwise_cases() -> list[Conv]:
    """Channels around the vector's, rows and columns, strides up to the kernel, borders."""
    cases = []
    for i in range(36):
        kernel = ((3, 3), (3, 3), (1, 5), (2, 2), (7, 1), (5, 3))[i % 6]
        stride = ((1, 1), (2, 2), (1, 2), (2, 1), (3, 1), (1, 3))[i % 6]
        dilation = (1, 1) if i % 4 else (2, 1 + i % 3 // 2)
        pads = (i % 2, 0, 0, 0) if 1 in kernel else PADS[(i // 6 + i) % 4]
        pads = (0, *pads[1:]) if kernel[0] == 1 else pads
        channels = CHANNELS[i * 3 % 14]
        height = 1 if kernel[0] == 1 else (kernel[0] - 1) * dilation[0] + 1 + i % 4
        width = 1 if kernel[1] == 1 else (kernel[1] - 1) * dilation[1] + 1 + i % 9
        cases.append(
            Conv(height, width, channels, channels, kernel, stride, dilation, pads,
                 groups=channels, **common(i))
        )  # fmt: skip
    cases.append(Conv(4, 5, 128, 128, (3, 3), pads=(1, 1, 1, 1), groups=128))
    return cases


def dense_cases() -> list[DenseCase]:
    """One row and several; inputs and outputs around the lengths of vectors and blocks."""
    cases = []
    for i, inputs in enumerate((*CHANNELS, 112, 128, 640)):
        settings = common(i)
        settings.pop("zp")
        cases.append(DenseCase(1 + i % 4 // 3 * (i % 3 + 1), inputs, CHANNELS[-i % 14], **settings))
    return cases


@pytest.mark.qemu
def test_cortex_m55(tmp_path: Path) -> None:
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    table = Table()
    for i, case in enumerate(conv_cases()):
        table.conv("conv2d_s8_mve", case, i % 3)
    for i, case in enumerate(depthwise_cases()):
        table.conv("depthwise_s8_mve", case, i % 3)
    for i, dense in enumerate(dense_cases()):
        table.dense("dense_s8_mve", dense, i % 3)
    assert table.wrong("cortex-m55", "qemu", tmp_path) == []
