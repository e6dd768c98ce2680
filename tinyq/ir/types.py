"""Types of tensors: element type, shape and quantization parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[np.generic]


class DType(Enum):
    """Element types. The value is the name used in the text form and in C."""

    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    BOOL = "bool"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy type of the same elements."""
        return np.dtype(self.value)

    @property
    def bytes(self) -> int:
        """Size of one element in bytes."""
        return int(self.numpy.itemsize)

    @property
    def is_integer(self) -> bool:
        """True for everything but float32 and bool."""
        return self not in (DType.FLOAT32, DType.BOOL)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type."""
        info = np.iinfo(self.value)
        return int(info.min), int(info.max)

    @classmethod
    def of(cls, array: AnyArray) -> DType:
        """Element type of a numpy array; ValueError when it has no equivalent here."""
        return cls(str(array.dtype))


@dataclass(frozen=True)
class QuantParams:
    """Affine quantization: real = scale * (integer - zero_point).

    One scale and zero point for the tensor, or one for every index of ``axis``. Scales are float32
    values held as Python floats, exactly.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.zero_points) or not self.scales:
            raise ValueError("one zero point a scale, and at least one of each")
        if self.axis is None and len(self.scales) != 1:
            raise ValueError("several scales need an axis")

    @classmethod
    def per_tensor(cls, scale: float, zero_point: int) -> QuantParams:
        """Parameters of a tensor with one scale."""
        return cls((float(scale),), (int(zero_point),))

    @property
    def is_per_tensor(self) -> bool:
        """True when one scale holds for the whole tensor."""
        return len(self.scales) == 1

    @property
    def scale(self) -> float:
        """The one scale; ValueError when there are several."""
        if not self.is_per_tensor:
            raise ValueError("the tensor is quantized per channel")
        return self.scales[0]

    @property
    def zero_point(self) -> int:
        """The one zero point; ValueError when there are several."""
        if not self.is_per_tensor:
            raise ValueError("the tensor is quantized per channel")
        return self.zero_points[0]

    def scale_array(self) -> npt.NDArray[np.float32]:
        """Scales as float32 [1] or [channels]."""
        return np.asarray(self.scales, np.float32)

    def __str__(self) -> str:
        if self.is_per_tensor:
            return f"scale={self.scale:.9g}, zero_point={self.zero_point}"
        low, high = min(self.scales), max(self.scales)
        return f"scales[{len(self.scales)}]={low:.4g}..{high:.4g}, axis={self.axis}"


@dataclass(frozen=True)
class TensorType:
    """Shape, element type and, where known, quantization of a tensor. Equal by value."""

    shape: tuple[int, ...]
    dtype: DType
    quant: QuantParams | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding."""
        return self.elements * self.dtype.bytes

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        """The same elements and quantization in another shape."""
        return TensorType(shape, self.dtype, self.quant)

    def __str__(self) -> str:
        dims = "x".join(map(str, self.shape)) or "scalar"
        quant = f" ({self.quant})" if self.quant else ""
        return f"{self.dtype.value}[{dims}]{quant}"
