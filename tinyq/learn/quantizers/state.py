"""Levels in state dicts: what a network was trained with, and that another has the same."""

from __future__ import annotations

from torch import Tensor

from tinyq.errors import TinyqError, error

# Count of training steps from which nothing moves any more, whatever ``freeze_step`` says.
FROZEN = 2**62


def is_frozen(steps: Tensor, freeze_step: int | None) -> bool:
    """Whether ``steps``, a count of training steps, has reached the end of all movement."""
    return int(steps) >= (FROZEN if freeze_step is None else freeze_step)


def other_levels(prefix: str, found: Tensor, own: Tensor) -> TinyqError:
    """Error for a state dict whose quantizer ``prefix`` has the levels ``found``, not ``own``."""

    def said(levels: Tensor) -> str:
        return f"{len(levels)} levels from {float(levels[0]):g} to {float(levels[-1]):g}"

    return error(
        "TQ656",
        f"the state has {said(found)}, this network {said(own)}",
        "Prepare the network with the QuantConfig with which the state was trained.",
        node=prefix.removesuffix("."),
    )
