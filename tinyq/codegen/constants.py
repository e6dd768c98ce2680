"""The constants of a network: names, sharing of equal arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from tinyq.codegen.arrays import initialiser
from tinyq.codegen.names import comment_text
from tinyq.ir import AnyArray, Value
from tinyq.ops.base import PackedConstant, c_type
from tinyq.select import Layer, Schedule

_SCALARS = frozenset(f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64))


@dataclass
class DataArray:
    """One array of ``<name>_data.c``; ``elements`` counts structs as one."""

    name: str
    c_type: str
    array: AnyArray
    alignment: int
    comment: str

    @property
    def is_struct(self) -> bool:
        """Whether the last axis holds the members of a struct."""
        return self.c_type not in _SCALARS

    @property
    def elements(self) -> int:
        """Length of the C array."""
        size = int(self.array.size)
        return size // self.array.shape[-1] if self.is_struct else size

    @property
    def initialiser(self) -> str:
        """Text between the braces."""
        return initialiser(self.array, self.is_struct)


class ConstantPool:
    """Every constant of a network; equal arrays of one type are stored once."""

    def __init__(self, name: str) -> None:
        self._prefix = name
        self._by_content: dict[tuple[str, bytes], DataArray] = {}
        self.arrays: list[DataArray] = []
        self.bytes = 0

    def add(self, symbol: str, constant: PackedConstant, comment: str) -> str:
        """Name of the C array that holds ``constant``."""
        array = np.ascontiguousarray(constant.array)
        key = (constant.c_type, hashlib.sha256(array.tobytes()).digest())
        found = self._by_content.get(key)
        if found is None:
            found = DataArray(
                f"{self._prefix}_{symbol}", constant.c_type, array, constant.alignment, comment
            )
            self._by_content[key] = found
            self.arrays.append(found)
            self.bytes += int(array.nbytes)
        found.alignment = max(found.alignment, constant.alignment)
        return found.name

    def add_layer(self, layer: Layer) -> tuple[str, ...]:
        """Names of the arrays that a layer's function takes, in order."""
        return tuple(
            self.add(
                f"layer_{layer.index}_{c.suffix}", c, comment_text(f"{layer.node.name}: {c.suffix}")
            )
            for c in layer.call.constants
        )


def constant_outputs(schedule: Schedule, pool: ConstantPool) -> dict[Value, str]:
    """Arrays of the graph outputs that are known at compile time."""
    return {
        value: pool.add(
            f"output_{number}",
            PackedConstant("value", value.array, c_type(value)),
            comment_text(value.name),
        )
        for number, value in enumerate(schedule.graph.outputs)
        if value.is_constant
    }
