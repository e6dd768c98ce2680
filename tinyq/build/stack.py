"""Worst-case stack of a function, from the compiler's call graph and the disassembly.

GCC's ``-fcallgraph-info=su`` writes one ``.ci`` file an object, with every function's frame and
every call. Library routines have none; their frames and calls are read from the disassembly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tinyq.build.elf import Instruction

_NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "((?:[^"\\]|\\.)*)"')
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')
_BYTES = re.compile(r"(\d+) bytes \((\w+)")
_INDIRECT = "__indirect_call"
_TARGET = re.compile(r"<([^>+]+)>")
_SUB_SP = re.compile(r"^sp(?:, sp)?, #(\d+)")
_CALLS = ("bl", "b", "b.n", "b.w", "cbz", "cbnz")


class UnboundedStackError(ValueError):
    """No bound exists: recursion, a call through a pointer, or a frame of variable size."""


@dataclass
class CallGraph:
    """Frames in bytes and callees, by function; titles of static functions hold their file."""

    frames: dict[str, int] = field(default_factory=dict)
    calls: dict[str, set[str]] = field(default_factory=dict)
    dynamic: set[str] = field(default_factory=set)

    def worst_case(self, function: str) -> int:
        """Bytes on the deepest call path from ``function``, its own frame included.

        Raises :class:`UnboundedStackError`, naming the reason.
        """
        return self._depth(function, (), {})

    def _depth(self, function: str, path: tuple[str, ...], known: dict[str, int]) -> int:
        if function in known:
            return known[function]
        if function in path:
            raise UnboundedStackError(f"'{function}' is recursive")
        if function == _INDIRECT:
            raise UnboundedStackError(f"'{path[-1]}' calls through a pointer")
        if function in self.dynamic:
            raise UnboundedStackError(f"the frame of '{function}' has no fixed size")
        if function not in self.frames:
            raise UnboundedStackError(f"the frame of '{function}' is not known")
        below = [
            self._depth(callee, (*path, function), known)
            for callee in sorted(self.calls.get(function, ()))
        ]
        known[function] = self.frames[function] + max(below, default=0)
        return known[function]


def read_callgraph(ci_files: Iterable[Path], functions: dict[str, list[Instruction]]) -> CallGraph:
    """Join the compiler's graphs; what they do not define comes from ``functions``."""
    graph = CallGraph()
    for path in sorted(ci_files):
        _read_ci(path.read_text(encoding="utf-8"), graph)
    waiting = {callee for callees in graph.calls.values() for callee in callees}
    while waiting:
        name = waiting.pop()
        if name in graph.frames or name == _INDIRECT:
            continue
        body = functions.get(name)
        if body is None:
            continue
        graph.frames[name], graph.calls[name] = _from_code(name, body)
        waiting |= graph.calls[name]
    return graph


def _read_ci(text: str, graph: CallGraph) -> None:
    for line in text.splitlines():
        if node := _NODE.match(line):
            if size := _BYTES.search(node[2]):
                graph.frames[node[1]] = int(size[1])
                graph.calls.setdefault(node[1], set())
                if size[2] == "dynamic" and "bounded" not in node[2]:
                    graph.dynamic.add(node[1])
        elif edge := _EDGE.match(line):
            graph.calls.setdefault(edge[1], set()).add(edge[2])


def _from_code(name: str, body: list[Instruction]) -> tuple[int, set[str]]:
    """Frame and callees of a library routine: the sum of all that it pushes is a safe bound."""
    frame = 0
    calls: set[str] = set()
    for instruction in body:
        mnemonic, operands = instruction.mnemonic, instruction.operands
        base = mnemonic.split(".")[0]
        if base == "push" or (base == "stmdb" and operands.startswith("sp!")):
            frame += 4 * _register_count(operands)
        elif base == "vpush":
            frame += 8 * _register_count(operands)
        elif base == "str" and re.search(r"\[sp, #-(\d+)\]!", operands):
            frame += int(operands.rsplit("#-", 1)[1].split("]")[0])
        elif base in ("sub", "subw") and (size := _SUB_SP.match(operands)):
            frame += int(size[1])
        elif base == "blx":
            calls.add(_INDIRECT)
        elif base == "bl" or (base.startswith("b") and base not in ("bx", "bic", "bfi", "bfc")):
            target = _TARGET.search(operands)
            if target and target[1] != name and "+" not in operands.split("<")[-1]:
                calls.add(target[1])
    return frame, calls


def _register_count(operands: str) -> int:
    inside = operands[operands.index("{") + 1 : operands.index("}")]
    count = 0
    for part in inside.split(","):
        first, _, last = part.strip().partition("-")
        count += int(last[1:]) - int(first[1:]) + 1 if last else 1
    return count
