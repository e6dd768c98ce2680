"""Layers that a prepared network has in place of torch.nn's, with the same parameter names.

They subclass what they replace and share its parameters, so that a float state dict loads into a
prepared network and optimisers, Lightning and hand-written loops see nothing new.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyq.learn.quantizers import WeightQuantizer
from tinyq.learn.quantizers.state import is_frozen


class QuantConv2d(nn.Conv2d):
    """Convolution whose weight is fake quantized at each call."""

    weight_quantizer: WeightQuantizer
    quantize_weight = True  # False computes the float network, for comparison

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` [N, C, H, W] with the quantized weight."""
        used = self.weight_quantizer if self.quantize_weight else self.weight_quantizer.prepared
        return self._conv_forward(x, used(self.weight), self.bias)


class QuantLinear(nn.Linear):
    """Dense layer whose weight is fake quantized at each call."""

    weight_quantizer: WeightQuantizer
    quantize_weight = True  # False computes the float network, for comparison

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x`` [N, I] with the quantized weight."""
        used = self.weight_quantizer if self.quantize_weight else self.weight_quantizer.prepared
        return F.linear(x, used(self.weight), self.bias)


class _FreezingBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics stop moving after ``freeze_step`` training steps.

    The count is a buffer: a resumed run freezes at the same step. Frozen statistics are also what
    the forward normalises with, so that training computes what will be deployed. ``calls`` is how
    often a step calls the module.
    """

    steps: Tensor
    freeze_step: int | None = None
    calls = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``."""
        if not self.training or self.frozen:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        self.steps.add_(1)
        return super().forward(x)

    @property
    def frozen(self) -> bool:
        """Whether the statistics have stopped."""
        last = None if self.freeze_step is None else self.freeze_step * self.calls
        return is_frozen(self.steps, last)


class FreezingBatchNorm2d(_FreezingBatchNorm, nn.BatchNorm2d):
    """For [N, C, H, W]."""


class FreezingBatchNorm1d(_FreezingBatchNorm, nn.BatchNorm1d):
    """For [N, C]."""


class IntegerConv2d(nn.Module):
    """Converted convolution: integer weight, step per channel, bias on the accumulator's grid.

    ``weight_int`` [O, I/g, kh, kw] int16, ``weight_step`` [O], ``bias_int`` [O] int32 in units of
    the input's step times the weight's. The forward accumulates integers exactly and rounds once,
    by float32(acc) * float32(xs*ws/ys), as onnxruntime's QLinearConv does; summing dequantized
    values instead moves a few results in a million, and in a deep network each of them grows.
    """

    weight_int: Tensor
    weight_step: Tensor
    bias_int: Tensor
    input_step: Tensor
    output_step: Tensor

    def __init__(
        self, source: nn.Module, weight: Tensor, step: Tensor, bias: Tensor, input_step: Tensor
    ):
        super().__init__()
        self.conv = (
            (source.stride, source.padding, source.dilation, source.groups)
            if isinstance(source, nn.Conv2d)
            else None
        )
        self.register_buffer("weight_int", weight.to(torch.int16))
        self.register_buffer("weight_step", step)
        self.register_buffer("bias_int", bias)
        self.register_buffer("input_step", input_step)
        self.register_buffer("output_step", torch.tensor(1.0))
        # Partial sums below 2^24 are exact in float32, whatever their order.
        widest = float(weight.abs().reshape(len(weight), -1).sum(1).max()) * 255.0
        self.dtype = torch.float32 if widest < 2.0**24 else torch.float64

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (or multiply) [N, ...]; the result is whole output steps, not yet clipped."""
        x_int = torch.round(x / self.input_step).to(self.dtype)
        weight = self.weight_int.to(self.dtype)
        if self.conv is None:
            acc = F.linear(x_int, weight)
        else:
            acc = F.conv2d(x_int, weight, None, *self.conv)
        shape = (-1,) + (1,) * (acc.dim() - 2)
        acc = acc.double() + self.bias_int.double().reshape(shape)
        scale = self.input_step * self.weight_step / self.output_step
        return torch.round(acc.float() * scale.reshape(shape)) * self.output_step


class IntegerLinear(IntegerConv2d):
    """Converted dense layer, weight [O, I]."""


class IntegerGlobalAvgPool2d(nn.Module):
    """Converted mean over height and width: sums integers, rounds once, as onnxruntime does."""

    input_step: Tensor
    output_step: Tensor

    def __init__(self, input_step: Tensor, output_step: Tensor, *, keep: bool):
        super().__init__()
        self.keep = keep
        self.register_buffer("input_step", input_step)
        self.register_buffer("output_step", output_step)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, 1, 1] (or [N, C]); the result is whole output steps."""
        total = torch.round(x / self.input_step).sum((2, 3), keepdim=self.keep)
        scale = self.input_step / (self.output_step * float(x.shape[2] * x.shape[3]))
        return torch.round(total * scale) * self.output_step


class IntegerAdd(nn.Module):
    """Converted sum of two tensors of one shape, in onnxruntime's arithmetic (QLinearAdd).

    ``steps`` of the operands and the result, ``zeros`` their zero points in uint8. The kernel
    weighs operands by ratios of steps, in fused multiply-adds from the second operand to the first;
    a sum in float beside one half would be rounded the other way now and then (measured
    on x86 with FMA3).
    """

    steps: Tensor
    zeros: Tensor

    def __init__(self, steps: Tensor, zeros: Tensor):
        super().__init__()
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", zeros)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Add ``a`` and ``b`` [...]; the result is whole output steps, not yet clipped."""
        step_a, step_b, step = self.steps
        zero_a, zero_b, zero = self.zeros.float()
        ratio_a, ratio_b = step_a / step, step_b / step
        # Fused sums: a product is exact in float64, and only the sum is rounded to float32.
        zeros = (zero_a.double() * ratio_a.double() + (ratio_b * zero_b).double()).float()
        total = zero - zeros
        for x, own, at, ratio in ((b, step_b, zero_b, ratio_b), (a, step_a, zero_a, ratio_a)):
            integers = torch.round(x / own).double() + at
            total = (integers * ratio.double() + total.double()).float()
        return (torch.round(total) - zero) * step
