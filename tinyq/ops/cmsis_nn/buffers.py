"""Bytes of working memory that CMSIS-NN's functions want, by instruction set.

They equal what the library's own ``*_get_buffer_size`` functions return when it is built with GCC
or LLVM for that instruction set (Arm Compiler 6 wants other sizes for 1x1 convolutions).
"""

from __future__ import annotations

from dataclasses import dataclass

MVE_CHANNEL_BLOCK = 124
"""Channels that the Helium depthwise kernel takes at a time."""


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution: input [1, in_h, in_w, in_c], filter [out_c, kernel_h, kernel_w, filter_c].

    pads are those of the top and left. Depthwise: filter_c is 1.
    """

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    kernel_h: int
    kernel_w: int
    filter_c: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int

    @property
    def is_pointwise(self) -> bool:
        """Whether the wrapper takes its 1x1 function."""
        return (
            (self.kernel_h, self.kernel_w, self.dilation_h, self.dilation_w) == (1, 1, 1, 1)
            and (self.pad_h, self.pad_w) == (0, 0)
            and self.in_c == self.filter_c
        )

    @property
    def is_row(self) -> bool:
        """Whether the wrapper takes its 1xN function (when it is not pointwise)."""
        return (
            (self.in_h, self.dilation_w, self.kernel_h) == (1, 1, 1)
            and self.stride_w * self.in_c % 4 == 0
            and self.in_c == self.filter_c
        )


def convolve_bytes(g: ConvGeometry, isa: str) -> int:
    """``arm_convolve_wrapper_s8_get_buffer_size``; isa is ``scalar``, ``dsp`` or ``mve``."""
    if g.is_pointwise:
        return 0
    if isa != "mve":
        return 4 * _round_up(g.kernel_w * g.kernel_h * g.in_c, 4)
    return _row_bytes_mve(g) if g.is_row else _columns_bytes_mve(g)


def _columns_bytes_mve(g: ConvGeometry) -> int:
    return 4 * _round_up(g.in_c * g.kernel_w * g.kernel_h, 16)


@dataclass(frozen=True)
class _Row:
    """How the Helium 1xN function divides a row: outputs of the left border, inside, of the right.

    total: padding that the geometry needs; uneven: what of it the right has more than the left.
    """

    total: int
    uneven: int
    left: int
    inner: int
    right: int

    @classmethod
    def of(cls, g: ConvGeometry) -> _Row:
        total = (g.out_w - 1) * g.stride_w + g.kernel_w - g.in_w
        uneven = abs(total) % 2 * (1 if total >= 0 else -1)  # C's remainder has the dividend's sign
        right = max(1, _divide(g.pad_w + uneven + g.stride_w - 1, g.stride_w))
        right = right if g.pad_w + uneven != 0 else 0
        left = max(1, _divide(g.pad_w + g.stride_w - 1, g.stride_w)) if g.pad_w else 0
        return cls(total, uneven, left, max(g.out_w - (right + left), 0), right)


def _row_bytes_mve(g: ConvGeometry) -> int:
    """Left and right border columns of a 1xN convolution."""
    row = _Row.of(g)
    if row.right + row.inner + row.left != g.out_w:
        return _columns_bytes_mve(g)
    pad_left = g.pad_w * g.in_c
    pad_right = row.right * g.in_c if row.uneven else pad_left
    whole = g.kernel_w * g.in_c
    return max(whole + pad_left, whole - g.in_c + pad_right)


def row_is_right(g: ConvGeometry) -> bool:
    """Whether the Helium 1xN function computes this row: it takes the first output of the right
    border to lack exactly one input, which strides make untrue (found by test with 19.1.0).
    """
    row = _Row.of(g)
    if 2 * g.pad_w + row.uneven != row.total:
        return False
    if row.right + row.inner + row.left != g.out_w:
        return True  # it then takes the general function
    if row.left and (row.left - 1) * g.stride_w - g.pad_w + g.kernel_w > g.in_w:
        return False
    start = g.stride_w * (row.left + row.inner) - g.pad_w
    padded = row.right if row.uneven else g.pad_w
    return row.right == 0 or (
        g.in_w - start == g.kernel_w - 1 and (row.right - 1) * g.stride_w + 1 <= padded
    )


def takes_wrong_row(g: ConvGeometry, isa: str) -> bool:
    """Whether ``arm_convolve_wrapper_s8`` would compute a row wrongly."""
    return isa == "mve" and not g.is_pointwise and g.is_row and not row_is_right(g)


def takes_wrong_window(g: ConvGeometry, isa: str) -> bool:
    """Whether ``arm_depthwise_conv_wrapper_s8`` would compute a window wrongly.

    Its 3x3 function takes the middle column of every window to lie in the input, which two columns
    of padding on the right make untrue (found by test with 19.1.0).
    """
    if isa == "mve":
        return g.in_c == 1 and takes_wrong_row(g, isa)
    special = g.in_c == g.out_c and (g.kernel_h, g.kernel_w, g.dilation_h, g.dilation_w) == (
        3, 3, 1, 1,
    )  # fmt: skip
    middle = (g.out_w - 1) * g.stride_w - g.pad_w + 1
    return special and max(g.pad_h, g.pad_w) <= 1 and middle >= g.in_w


def depthwise_bytes(g: ConvGeometry, isa: str) -> int:
    """``arm_depthwise_conv_wrapper_s8_get_buffer_size``."""
    if isa == "mve" and g.in_c == 1 and g.out_c > 1:
        as_convolution = ConvGeometry(**{**vars(g), "filter_c": 1})
        return convolve_bytes(as_convolution, isa) + g.out_c * g.kernel_h * g.kernel_w
    if g.in_c != g.out_c or (g.dilation_h, g.dilation_w) != (1, 1) or isa == "scalar":
        return 0
    if isa == "mve":
        return 4 * MVE_CHANNEL_BLOCK * g.kernel_w * g.kernel_h
    if (g.kernel_h, g.kernel_w) == (3, 3) and max(g.pad_h, g.pad_w) <= 1:
        return 0
    return 2 * g.in_c * g.kernel_w * g.kernel_h


def dense_bytes(out_features: int, isa: str) -> int:
    """``arm_fully_connected_s8_get_buffer_size``, whose dims hold the outputs: the kernel sums."""
    return 4 * out_features if isa == "mve" else 0


def average_pool_bytes(channels: int, isa: str) -> int:
    """``arm_avgpool_s8_get_buffer_size``."""
    return 4 * channels if isa == "dsp" else 0


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _divide(value: int, by: int) -> int:
    """C's integer division."""
    return -(-value // by) if value < 0 else value // by
