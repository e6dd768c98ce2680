"""Layers that a prepared network has in place of torch.nn's, with the same parameter names.

They subclass what they replace and share its parameters, so that a float state dict loads into a
prepared network and optimisers, Lightning and hand-written loops see nothing new.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyq.learn.quantizers import WeightQuantizer


class QuantConv2d(nn.Conv2d):
    """Convolution whose weight is fake quantized at each call."""

    weight_quantizer: WeightQuantizer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` [N, C, H, W] with the quantized weight."""
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


class QuantLinear(nn.Linear):
    """Dense layer whose weight is fake quantized at each call."""

    weight_quantizer: WeightQuantizer

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x`` [N, I] with the quantized weight."""
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


class _FreezingBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics stop moving after ``freeze_step`` training steps.

    The count is a buffer: a resumed run freezes at the same step. Frozen statistics are also what
    the forward normalises with, so that training computes what will be deployed.
    """

    steps: Tensor
    freeze_step: int | None = None

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
        return self.freeze_step is not None and int(self.steps) >= self.freeze_step


class FreezingBatchNorm2d(_FreezingBatchNorm, nn.BatchNorm2d):
    """For [N, C, H, W]."""


class FreezingBatchNorm1d(_FreezingBatchNorm, nn.BatchNorm1d):
    """For [N, C]."""


class IntegerConv2d(nn.Module):
    """Converted convolution: integer weight, step per channel, bias on the accumulator's grid.

    ``weight_int`` [O, I/g, kh, kw] int16, ``weight_step`` [O], ``bias_int`` [O] int32 in units of
    the input's step times the weight's.
    """

    weight_int: Tensor
    weight_step: Tensor
    bias_int: Tensor
    input_step: Tensor

    def __init__(
        self, source: nn.Module, weight: Tensor, step: Tensor, bias: Tensor, input_step: Tensor
    ):
        super().__init__()
        self.conv = (
            (source.stride, source.padding, source.dilation, source.groups)
            if isinstance(source, nn.Conv2d)
            else None
        )
        self.nominal = (
            getattr(source, "weight_quantizer", None) and source.weight_quantizer.level_set
        )
        self.register_buffer("weight_int", weight.to(torch.int16))
        self.register_buffer("weight_step", step)
        self.register_buffer("bias_int", bias)
        self.register_buffer("input_step", input_step)

    def dequantized(self) -> tuple[Tensor, Tensor]:
        """Weight and bias in float32, as DequantizeLinear gives them."""
        shape = (-1,) + (1,) * (self.weight_int.dim() - 1)
        weight = self.weight_int.float() * self.weight_step.reshape(shape)
        return weight, self.bias_int.float() * (self.input_step * self.weight_step)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (or multiply) with the dequantized weight."""
        weight, bias = self.dequantized()
        if self.conv is None:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, *self.conv)


class IntegerLinear(IntegerConv2d):
    """Converted dense layer, weight [O, I]."""
