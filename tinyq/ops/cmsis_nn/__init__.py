"""Kernels that call CMSIS-NN: one file an operator, registered behind tinyq's own kernels."""

from __future__ import annotations

from tinyq.ops.base import Kernel
from tinyq.ops.cmsis_nn.add import CmsisAdd
from tinyq.ops.cmsis_nn.average_pool2d import CmsisAveragePool2d
from tinyq.ops.cmsis_nn.conv2d import CmsisConv2d, CmsisDepthwise
from tinyq.ops.cmsis_nn.dense import CmsisDense
from tinyq.ops.cmsis_nn.max_pool2d import CmsisMaxPool2d
from tinyq.ops.cmsis_nn.mul import CmsisMul
from tinyq.ops.cmsis_nn.pad import CmsisPad
from tinyq.ops.cmsis_nn.softmax import CmsisSoftmax
from tinyq.ops.cmsis_nn.transpose import CmsisTranspose

KERNELS: dict[str, tuple[Kernel, ...]] = {
    "add": (CmsisAdd(),),
    "average_pool2d": (CmsisAveragePool2d(),),
    "conv2d": (CmsisConv2d(), CmsisDepthwise()),
    "dense": (CmsisDense(),),
    "max_pool2d": (CmsisMaxPool2d(),),
    "mul": (CmsisMul(),),
    "pad": (CmsisPad(),),
    "softmax": (CmsisSoftmax(),),
    "transpose": (CmsisTranspose(),),
}
"""By operator."""

__all__ = ["KERNELS"]
