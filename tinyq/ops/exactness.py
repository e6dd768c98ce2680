"""How exact a node's integers are: proved, corrected by a list, or known to differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tinyq.ir import Node
from tinyq.ops.base import LibraryUse
from tinyq.ops.curve import CurveAttrs
from tinyq.ops.rescale import RescaleAttrs
from tinyq.ops.softmax import WideSoftmaxAttrs
from tinyq.ops.wide_pair import WidePair
from tinyq.quant import Requant, WideRequant

PAIRS = 65536


@dataclass(frozen=True)
class Exactness:
    """What is known about one node over everything that its inputs can be.

    ``basis``: ``accumulators`` (every reachable one), ``pairs`` (all 65,536 pairs of operands) or
    ``construction`` (a table, a copy: nothing is rounded that the oracle did not round) or
    ``samples`` (nothing is proved, verification on samples decides). With int16 tensors ``codes``
    (all 65,536 inputs) or ``float32``: the oracle computes in float32, here the real result is
    rounded once, so that it may be off by one where that lies within float32's error of a half.
    ``reachable`` counts what was examined, ``mismatches`` those that differ without ``fixes`` and
    guard, ``max_abs`` by how much at most, ``differing`` those that differ with them. ``guarded``
    counts those near a step, which are left to the oracle's own rule.
    """

    basis: str
    reachable: int = 0
    channels: int = 0
    exact_channels: int = 0
    mismatches: int = 0
    max_abs: int = 0
    fixes: int = 0
    ambiguous: int = 0
    guarded: int = 0

    @property
    def differing(self) -> int:
        """Accumulators at which the result differs from the oracle's."""
        return self.mismatches if not self.fixes and not self.guarded else 0

    @property
    def exact(self) -> bool:
        """Whether nothing differs from the oracle once the fixes are applied."""
        return self.differing == 0


def exactness_with_library(node: Node, use: LibraryUse) -> Exactness:
    """The exactness of a node that a library's function computes, its own fixes not applied."""
    found = exactness_of(node)
    if not use.examined:
        return found
    return replace(
        found,
        reachable=use.examined,
        mismatches=use.differing,
        max_abs=use.largest,
        fixes=0,
        guarded=0,
    )


def exactness_of(node: Node) -> Exactness:
    """The exactness of a node of the integer stage, from its attributes."""
    attrs = node.attrs
    if isinstance(attrs, RescaleAttrs | CurveAttrs):
        fixes = len(getattr(attrs, "fixes", ()))
        off = attrs.mismatches + fixes
        return Exactness("codes", PAIRS, mismatches=off, max_abs=int(off > 0), fixes=fixes)
    if _is_rounded_once(attrs):
        return Exactness("float32")
    pairs = getattr(attrs, "fixes", None)
    if isinstance(pairs, tuple):
        size = max((abs(int(delta)) for *_, delta in pairs), default=0)
        return Exactness("pairs", PAIRS, 0, 0, len(pairs), size, len(pairs))
    found = list(_requants(attrs))
    if not found:
        return Exactness("construction" if getattr(attrs, "proved", True) else "samples")
    proofs = [requant.proof for requant in found]
    differing = [r.proof.mismatches for r in found if not r.exact]
    mismatches = sum(p.mismatches for p in proofs)
    fixes = sum(len(r.fixes) for r in found)
    return Exactness(
        "accumulators",
        sum(p.reachable for p in proofs),
        sum(p.channels for p in proofs),
        sum(p.exact_channels for p in proofs),
        sum(differing) if differing else mismatches,
        max(p.max_abs for p in proofs),
        0 if differing else fixes,
        int(getattr(attrs, "ambiguous", 0)),
        0 if differing else sum(p.guarded for p in proofs),
    )


def _is_rounded_once(attrs: Any) -> bool:
    means = [entry[-1] for entry in getattr(attrs, "requants", ()) if isinstance(entry, tuple)]
    known = [getattr(attrs, "requant", None), *means]
    wide = any(isinstance(requant, WideRequant) for requant in known)
    return wide or isinstance(attrs, WidePair | WideSoftmaxAttrs)


def _requants(attrs: Any) -> Iterator[Requant]:
    one = getattr(attrs, "requant", None)
    if isinstance(one, Requant):
        yield one
    for entry in getattr(attrs, "requants", ()):
        if isinstance(entry, tuple) and isinstance(entry[-1], Requant):
            yield entry[-1]
