"""Exact comparison of integer tensors: equal means equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyq.ir import AnyArray


@dataclass(frozen=True)
class FirstDifference:
    """Where two runs first part: tensor, sample, flat element, and the two values."""

    tensor: str
    sample: int
    element: int
    expected: int
    got: int


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same samples.

    ``expected`` and ``got`` name the runs. ``histogram`` counts differences got - expected by size,
    without the equal elements, ascending.
    """

    expected: str
    got: str
    compared: int
    different: int
    samples_different: int
    max_difference: int
    histogram: tuple[tuple[int, int], ...]
    first: FirstDifference | None

    @property
    def equal(self) -> bool:
        """Whether every element is equal, and there was at least one."""
        return self.different == 0 and self.compared > 0


def compare(
    expected: tuple[str, Sequence[AnyArray]],
    got: tuple[str, Sequence[AnyArray]],
    names: Sequence[str],
) -> Comparison:
    """Compare two runs: a name and one array [n, ...] a tensor each. Shapes may differ in rank."""
    compared = different = largest = 0
    histogram: Counter[int] = Counter()
    samples: set[int] = set()
    first: FirstDifference | None = None
    for name, a, b in zip(names, expected[1], got[1], strict=True):
        left, right = (_rows(x) for x in (a, b))
        if left.shape != right.shape:
            raise ValueError(f"'{name}': {left.shape} against {right.shape}")
        delta = right - left
        compared += delta.size
        where = np.argwhere(delta)
        different += len(where)
        if not len(where):
            continue
        values, counts = np.unique(delta[delta != 0], return_counts=True)
        histogram.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        largest = max(largest, int(np.abs(delta).max()))
        samples.update(where[:, 0].tolist())
        if first is None:
            s, e = (int(k) for k in where[0])
            first = FirstDifference(name, s, e, int(left[s, e]), int(right[s, e]))
    return Comparison(
        expected[0], got[0], compared, different, len(samples), largest,
        tuple(sorted(histogram.items())), first,
    )  # fmt: skip


def _rows(array: AnyArray) -> npt.NDArray[np.int64]:
    """[n, elements] of [n, ...], also for n = 0."""
    elements = int(np.prod(array.shape[1:], dtype=np.int64))
    return array.reshape(len(array), elements).astype(np.int64)
