"""Worst-case stack of a function, from the compiler's call graph and the disassembly.

GCC's ``-fcallgraph-info=su`` writes one ``.ci`` file an object, with every function's frame and
every call. Library routines have none; their frames and calls are read from the disassembly.
Clang writes frames alone (``-fstack-size-section``); all calls are read from the disassembly then.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tinyq.build.disassembly import BRANCHES, Instruction

_NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "((?:[^"\\]|\\.)*)"')
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')
_BYTES = re.compile(r"(\d+) bytes \((\w+)")
_INDIRECT = "__indirect_call"
_TARGET = re.compile(r"<([^>+]+)>")
_SUB_SP = re.compile(r"^sp(?:, sp)?, #(\d+)")
_PUSH_BY_STORE = re.compile(r"\[sp, #-(\d+)\]!")
_NO_ALIASES: Mapping[str, int] = MappingProxyType({})
_PADDING = ("nop", "nop.w", "udf")
_LEAVING = ("b", "bx", "pop", "ldmia", "add", "addw")


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


def read_callgraph(
    ci_files: Iterable[Path],
    functions: dict[str, list[Instruction]],
    aliases: Mapping[str, int] = _NO_ALIASES,
) -> CallGraph:
    """Join the compiler's graphs; what they do not define comes from ``functions``.

    ``aliases`` gives the addresses of further names of those functions: the disassembly shows one
    name where several symbols have the same address.
    """
    graph = CallGraph()
    for path in sorted(ci_files):
        _read_ci(path.read_text(encoding="utf-8"), graph)
    titles = {_symbol(name): name for name in graph.frames}
    for name in graph.frames:
        # Inline assembly may push and call too, of which the compiler knows nothing.
        frame, calls = frame_and_calls(_symbol(name), functions.get(_symbol(name), []))
        graph.frames[name] = max(graph.frames[name], frame)
        unknown = calls - {_symbol(callee) for callee in graph.calls[name]}
        graph.calls[name] |= {titles.get(callee, callee) for callee in unknown}
    _follow(graph, functions, aliases)
    return graph


def graph_of_code(
    frames: Mapping[int, int],
    functions: Mapping[str, list[Instruction]],
    aliases: Mapping[str, int] = _NO_ALIASES,
) -> CallGraph:
    """The graph of the disassembly; ``frames`` are the sizes that the compiler wrote, by address.

    ``aliases`` as in :func:`read_callgraph`.
    """
    graph = CallGraph(calls={"": {*functions, *aliases}})
    _follow(graph, functions, aliases)
    starts = {name: body[0].address for name, body in functions.items() if body}
    for name in graph.frames:
        address = starts.get(name, aliases.get(name, 0)) & ~1
        graph.frames[name] = max(graph.frames[name], frames.get(address, 0))
    return graph


def _follow(
    graph: CallGraph,
    functions: Mapping[str, list[Instruction]],
    aliases: Mapping[str, int],
) -> None:
    """Add everything that is called and not described yet, from the disassembly."""
    names = {body[0].address: name for name, body in functions.items() if body}
    behind = _next_labels(functions)
    waiting = {callee for callees in graph.calls.values() for callee in callees}
    while waiting:
        name = waiting.pop()
        if name in graph.frames or name == _INDIRECT:
            continue
        # Of two static functions with the same code the compiler describes one.
        symbol = name.rsplit(":", 1)[-1]
        label = symbol if symbol in functions else names.get(aliases.get(symbol, -1) & ~1, "")
        if not functions.get(label):
            continue
        graph.frames[name], graph.calls[name] = frame_and_calls(label, functions[label])
        if not _leaves(functions[label]):
            graph.calls[name] |= behind.get(label, set())
        waiting |= graph.calls[name]


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


def _next_labels(functions: Mapping[str, list[Instruction]]) -> dict[str, set[str]]:
    ordered = sorted((body[0].address, name) for name, body in functions.items() if body)
    return {low[1]: {high[1]} for low, high in itertools.pairwise(ordered)}


def _leaves(body: list[Instruction]) -> bool:
    """Whether control cannot run past the last instruction, into the label behind."""
    last = next((i for i in reversed(body) if i.mnemonic not in _PADDING), None)
    if last is None:
        return False
    base = last.mnemonic.split(".")[0]
    return base in ("bx", "b") or (base in ("pop", "ldmia", "ldr") and "pc" in last.operands)


def _symbol(title: str) -> str:
    return title.rsplit(":", 1)[-1]


def frame_and_calls(name: str, body: list[Instruction]) -> tuple[int, set[str]]:
    """Frame and callees of a library routine: the sum of all that it pushes is a safe bound.

    Left out is what is popped again at once, as inline assembly does around a call: the last push,
    by its own registers, and then the code goes on.
    """
    frame = passing = 0
    last = ""
    calls: set[str] = set()
    for instruction, after in itertools.pairwise([*body, Instruction(0, "", "")]):
        mnemonic, operands = instruction.mnemonic, instruction.operands
        base = mnemonic.split(".")[0]
        if base == "push" or (base == "stmdb" and operands.startswith("sp!")):
            frame += 4 * _register_count(operands)
            last = operands
        elif (base == "pop" or (base == "ldmia" and operands.startswith("sp!"))) and (
            operands == last and after.mnemonic.split(".")[0] not in ("", *_LEAVING)
        ):
            passing = max(passing, frame)
            frame -= 4 * _register_count(operands)
            last = ""
        elif base == "vpush":
            frame += 8 * _register_count(operands)
        elif moved := _PUSH_BY_STORE.search(operands):
            frame += int(moved[1])
        elif base in ("sub", "subw") and (size := _SUB_SP.match(operands)):
            frame += int(size[1])
        elif base == "blx":
            calls.add(_INDIRECT)
        elif base == "bl" or base in BRANCHES:
            target = _TARGET.search(operands)
            if target and target[1] != name and "+" not in operands.split("<")[-1]:
                calls.add(target[1])
    return max(frame, passing), calls


def _register_count(operands: str) -> int:
    inside = operands[operands.index("{") + 1 : operands.index("}")]
    count = 0
    for part in inside.split(","):
        first, _, last = part.strip().partition("-")
        count += int(last[1:]) - int(first[1:]) + 1 if last else 1
    return count
