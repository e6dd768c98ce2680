"""Remedies: ways of executing a network in less memory, which compete by their price."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tinyq.select import Schedule


@dataclass(frozen=True, eq=False)
class Proposal:
    """A schedule that computes the same, perhaps in less memory, at some cost.

    ``what`` says how it differs (a clause), ``cost`` what it takes besides instructions.
    """

    schedule: Schedule
    what: str
    cost: str


class Remedy(Protocol):
    """One kind of remedy, for one network on one core.

    Kernels with less scratch are no remedy of this kind: they are exchanged in every proposal.
    """

    def proposals(self, whole: Schedule, limit: int) -> Iterable[Proposal]:
        """Schedules instead of ``whole``, for its goal, that may need no more than ``limit``."""
        ...
