"""The Helium kernels at the edges of their blocking, on the emulated Cortex-M55.

The oracle is numpy. All layers are one network: kernels are forced, outputs overlap inputs as far
as the kernel says that they may.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from dsp_kernels import Conv
from kernel_table import FORMS, PROOF, DenseCase, Table
from test_kernel_table import PADS, common

from tinyq.ir import DType, Node, QuantParams, TensorType, Value
from tinyq.ops.add import AddAttrs
from tinyq.ops.average_pool2d import AveragePool2dAttrs
from tinyq.ops.windows import Window
from tinyq.quant import Fix, Requant, Ties

TIES: tuple[Ties, ...] = ("up", "even", "odd")
SUFFIXES = ("", "_short")
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
    cases.append(Conv(2, 3, 64, 13))
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


class MveTable(Table):
    """With sums and means."""

    def add(self, size: int, index: int) -> None:
        """A sum with a constant: corrections, windows for ties, clamps by turns."""
        a, b = self._draw((size,)), self._draw((size,))
        fixes = tuple((int(a[k]), int(b[k]), 1 - 2 * k) for k in range(min(index % 3, size)))
        window, zero = (0, 0) if index % 4 else (1 << 12, 3)
        attrs = AddAttrs(405_404 + index, -1_072_283, 77_777 * index, 20, -128 + index, 127 - index,
                         window, zero, fixes)  # fmt: skip
        total = a.astype(np.int64) * attrs.multiplier_a + b.astype(np.int64) * attrs.multiplier_b
        total += attrs.addend
        level = (total - (total >> 20 & 1) * window >> 20) + zero
        for first, second, delta in dict.fromkeys(fixes):
            level += delta * ((a == first) & (b == second))
        expected = level.clip(attrs.qmin, attrs.qmax).astype(np.int8)
        self._add("add", "add_s8_mve", f"{len(self.nodes)}_add_{size}", a, b, attrs, expected)

    def pool(self, channels: int, window: tuple[int, int], index: int) -> None:
        """A mean of windows side by side: ties, corrections, clamps by turns."""
        (kh, kw), columns = window, index % 3 + 1
        x = self._draw((1, kh + index % 2, kw * columns, channels))
        total = x[0, :kh].astype(np.int64).reshape(kh, columns, kw, channels).sum(axis=(0, 2))
        # A mean with seven bits of fraction: (total << 9) * 2**30 / taps / 2**32.
        pre, post, multiplier = 9, 7, 2**30 // (kh * kw) + 1
        ties: Ties = TIES[index % 3]
        level = ((total << pre) * multiplier >> 32) + (3 << post)
        if ties != "up":
            level -= ((level >> post ^ int(ties == "odd")) & 1) * 2
        level >>= post
        fixes = (Fix(0, int(total[0, 0]), 1),) if index % 2 else ()
        if fixes:
            level[total == total[0, 0]] += 1
        limits = (-100, 90) if index % 4 else (-128, 127)
        requant = Requant(np.array([multiplier], np.int32), np.array([3 << post], np.int32), pre,
                          post, *limits, fixes, PROOF, ties)  # fmt: skip
        attrs = AveragePool2dAttrs(
            Window(window, window, (1, 1), (0, 0, 0, 0)), False, QuantParams.per_tensor(0.1, 0),
            *limits, "image", ((kh * kw, requant),),
        )  # fmt: skip
        expected = level.clip(*limits).astype(np.int8)[None, None]
        name = f"{len(self.nodes)}_pool_{channels}_{kh}x{kw}"
        source = Value(f"x_{name}", TensorType(x.shape, DType.INT8))
        result = Value(f"y_{name}", TensorType(expected.shape, DType.INT8))
        self.nodes.append(Node("average_pool2d", name, (source,), (result,), attrs))
        self.kernels[name] = "avg_pool2d_s8_mve"
        self.inputs.append(x)
        self.expected.append(expected)


def all_kernels() -> MveTable:
    """Every kernel for Helium."""
    table = MveTable()
    for i, case in enumerate(conv_cases()):
        table.conv(f"conv2d_s8_mve{SUFFIXES[i // 3 % 2]}", case, i % 3, form=FORMS[i % 7])
    for i, case in enumerate(depthwise_cases()):
        table.conv("depthwise_s8_mve", case, i % 3, form=FORMS[(i + i // 7) % 7])
    for i, dense in enumerate(dense_cases()):
        table.dense(f"dense_s8_mve{SUFFIXES[i // 2 % 2]}", dense, i % 3, form=FORMS[i % 7])
    for i, channels in enumerate(CHANNELS):
        table.add(channels + 1, i)
        table.pool(channels, ((2, 2), (3, 3), (1, 1), (4, 9), (25, 5))[i % 5], i)
    return table


@pytest.mark.qemu
def test_cortex_m55(tmp_path: Path) -> None:
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    assert all_kernels().wrong("cortex-m55", "qemu", tmp_path) == []
