"""Cycles of a core that issues in order, several instructions at once where they pair.

The core's model (`[pipeline]` in targets/cores) gives each kind of instruction its units, latency
and rules of pairing. A function's basic blocks are issued through it one by one: a block that
branches to itself until it settles, any other from an empty pipeline. Memory answers at once (TCM,
or a cache that hits); a branch is predicted to go where it goes more often.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tinyq.build.disassembly import BRANCHES, Instruction
from tinyq.target.types import Pipeline, PipelineKind

_CONDITIONS = "eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|hs|lo"
_PREDICATED = re.compile(
    rf"^(mov|mvn|add|sub|rsb|and|orr|orn|eor|bic|cmp|strb?|strh|ldrs?[bh]?|mul|mla|ls[lr]|asr)"
    rf"({_CONDITIONS})$"
)
_SETS_FLAGS = re.compile(
    r"^((add|sub|rsb|neg|mov|mvn|and|orr|orn|eor|bic|ls[lr]|asr|ror|adc|sbc|mul)s|cmp|cmn|tst|teq)"
)
_READS_FLAGS = re.compile(rf"^(b({_CONDITIONS})$|adc|sbc|sel$|cs(el|inc|inv|neg))")
_CONDITIONAL = re.compile(rf"^(b({_CONDITIONS})|cbn?z)$")
_NO_RESULT = re.compile(r"^(str|stm|push|pld|cmp|cmn|tst|teq|cb|vst|vcmp|vpt|svc|bkpt)")
_TWO_RESULTS = re.compile(r"^(ldrd|[us]mull|[us]mlal|umaal|smls?ld)")
_ACCUMULATES = re.compile(r"^(ml[as]|sml[as]|smml[as]|usada8|[us]mlal|umaal)")
_UPDATES = re.compile(r"^(bf[ic]|movt|vmla|vmls|v\w*ava|vaddva|v(max|min)a?v|vq?dmla)")
_IN_PLACE = re.compile(r"^(add|sub|and|orr|eor|bic|adc|sbc|mul|ls[lr]|asr|ror)")
_SHIFTED = re.compile(r", (lsl|lsr|asr|ror|rrx)\b")
_REGISTER = re.compile(r"\b(r\d+|sb|sl|fp|ip|sp|lr|q\d+|s\d+|d\d+)\b")
_RANGE = re.compile(r"\br(\d+)-r(\d+)\b")
_TARGET = re.compile(r"^(?:[a-z0-9]+, )?([0-9a-f]+) <")
_ROUNDS, _SETTLED = 12, 4
_LONG_AGO = -9

_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("none", r"^(nop|it[te]*)$"),
        ("branch", rf"^(b|bl|bx|blx|b({_CONDITIONS})|cbn?z|le|letp|wls\w*|dls\w*)$"),
        ("divide", r"^[us]div"),
        ("multiply", r"^(mul|mla|mls|sm[lmu]|um[ula])"),
        ("load_many", r"^(ldm|pop|ldrd|tb[bh])"),
        ("store_many", r"^(stm|push|strd)"),
        ("load_narrow", r"^ldrs?[bh]"),
        ("load", r"^(ldr|pld)"),
        ("store", r"^str"),
        ("saturate", r"^([us]sat|u?q)"),
        ("extend", r"^([us]xt[bh]|[us]h?(add|sub)(8|16)|[us]h?(asx|sax)|sel$)"),
        ("field", r"^([us]bfx|pkh|[us]xta)"),
        ("reverse", r"^(rev|rbit)"),
        ("first", r"^(clz|bf[ic]|usad)"),
        ("shift", r"^(ls[lr]|asr|ror|rrx)"),
        ("system", r"^(mrs|msr|dsb|dmb|isb|svc|bkpt|cps|hint)"),
        ("vector_memory", r"^v(ldr|str|ld[24]|st[24])"),
        ("vector_multiply", r"^v(mul|mla|mls|q?r?d?mul|rmul|fma|qdml|qrdml|cmul)"),
        ("vector", r"^v"),
    )
)


@dataclass(frozen=True)
class Operation:
    """What an instruction asks of the pipeline.

    ``reads`` are registers with the cycles by which each may come late; ``writes`` those with the
    cycles until each is there; ``busy`` is how many cycles nothing else is issued.
    """

    kind: PipelineKind
    reads: tuple[tuple[str, int], ...]
    writes: tuple[tuple[str, int], ...]
    busy: int = 1


def pipeline_cycles(
    body: Sequence[Instruction], counts: Sequence[int], pipeline: Pipeline
) -> float:
    """Cycles of a function whose instructions were executed ``counts`` times."""
    total = 0.0
    for first, last in _blocks(body, counts):
        block, times = body[first:last], counts[first]
        if times:
            total += times * block_cycles(block, pipeline)
            following = counts[last] if last < len(counts) else 0
            total += _branch_cycles(block[-1], times, min(times, following), pipeline)
    return total


def block_cycles(block: Sequence[Instruction], pipeline: Pipeline) -> float:
    """Cycles of one pass through a basic block, one of many where it branches to itself."""
    operations = [operation(one, pipeline) for one in block]
    issue = _Issue(pipeline)
    if _target(block[-1]) != block[0].address:
        issue.run(operations)
        return issue.cycle + 1
    at = []
    for _ in range(_ROUNDS):
        issue.run(operations)
        at.append(issue.cycle)
    return (at[-1] - at[_SETTLED - 1]) / (_ROUNDS - _SETTLED)


def _branch_cycles(last: Instruction, times: int, stays: int, pipeline: Pipeline) -> float:
    name = _base(last.mnemonic)
    if _CONDITIONAL.match(name):
        goes = times - stays
        return goes * pipeline.taken + min(goes, stays) * pipeline.mispredicted
    jumps = name in ("b", "bx", "bl", "blx") or "pc" in last.operands
    return times * pipeline.taken if jumps else 0.0


def _blocks(body: Sequence[Instruction], counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    targets = {_target(one) for one in body}
    first = 0
    for at in range(1, len(body) + 1):
        ends = at == len(body) or counts[at] != counts[at - 1] or _leaves(body[at - 1])
        if ends or body[at].address in targets:
            yield first, at
            first = at


def _leaves(one: Instruction) -> bool:
    name = _base(one.mnemonic)
    return _kind_name(name) == "branch" or (
        name.startswith(("pop", "ldm")) and "pc" in one.operands
    )


def _target(one: Instruction) -> int | None:
    name = _base(one.mnemonic)
    found = _TARGET.match(one.operands)
    return int(found[1], 16) if found and (name in BRANCHES or name in ("le", "letp")) else None


class _Issue:
    """The cycle that is being filled, and when registers and units are free."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.cycle, self.slots, self.closed = 0, 0, False
        self.width = pipeline.width
        self.ready: dict[str, int] = {}
        self.free = {name: [0] * number for name, number in pipeline.units}

    def run(self, operations: Sequence[Operation]) -> None:
        for one in operations:
            self._issue(one)

    def _issue(self, one: Operation) -> None:
        at = max([self.cycle, *(self.ready.get(r, _LONG_AGO) - late for r, late in one.reads)])
        if at == self.cycle and self.slots and not self._pairs(one):
            at += 1
        at = max([at, *(min(self.free[unit]) for unit in one.kind.units)])
        if at > self.cycle:
            self.cycle, self.slots, self.closed = at, 0, False
        for unit in one.kind.units:
            instances = self.free[unit]
            instances[instances.index(min(instances))] = at + one.kind.occupies
        for register, latency in one.writes:
            self.ready[register] = at + latency
        self.slots += 1
        self.closed = self.closed or one.kind.alone
        self.cycle = at + one.busy - 1

    def _pairs(self, one: Operation) -> bool:
        return self.slots < self.width and not (self.closed or one.kind.alone or one.kind.first)


def operation(one: Instruction, pipeline: Pipeline) -> Operation:
    """What the instruction reads, writes and occupies, by its disassembly."""
    name = _base(one.mnemonic)
    kind_name = _kind_name(name)
    if kind_name == "alu" and _SHIFTED.search(one.operands):
        kind_name = "shifted"
    kind = pipeline.kind(kind_name)
    text = _operands(one.operands)
    found = _Registers()
    if kind_name == "branch":
        found.read(_REGISTER.findall(text.split("<")[0]), -kind.early)
    elif name.startswith(("ldm", "stm", "push", "pop")):
        return _multiple(name, text, kind, pipeline)
    elif "[" in text:
        _memory(name, text, kind, found)
    else:
        _arithmetic(name, kind_name, text, kind, found)
    if _READS_FLAGS.match(name) or _PREDICATED.match(name):
        found.read(["flags"])
    if _SETS_FLAGS.match(name):
        found.write(["flags"], kind.latency)
    return Operation(kind, tuple(found.reads), tuple(found.writes), kind.busy)


@dataclass
class _Registers:
    reads: list[tuple[str, int]] = field(default_factory=list)
    writes: list[tuple[str, int]] = field(default_factory=list)

    def read(self, registers: Sequence[str], late: int = 0) -> None:
        self.reads += [(register, late) for register in registers]

    def write(self, registers: Sequence[str], latency: int) -> None:
        self.writes += [(register, latency) for register in registers]


def _memory(name: str, text: str, kind: PipelineKind, found: _Registers) -> None:
    data, _, rest = text.partition("[")
    address, _, after = rest.partition("]")
    registers, base = _REGISTER.findall(data), _REGISTER.findall(address)
    found.read(base, -kind.early)
    if after.strip():
        found.read(_REGISTER.findall(after), -kind.early)
        found.write(base[:1], 0)  # the address unit's result, for the next address
    if _NO_RESULT.match(name):
        found.read(registers, kind.late)
    else:
        found.write(registers, kind.latency)


def _multiple(name: str, text: str, kind: PipelineKind, pipeline: Pipeline) -> Operation:
    before, _, listed = text.partition("{")
    base = _REGISTER.findall(before) or ["sp"]
    registers = _REGISTER.findall(listed)
    words = len(registers) + ("pc" in listed)
    found = _Registers()
    found.read(base, -kind.early)
    for k, register in enumerate(registers):
        if name.startswith(("ldm", "pop")):
            found.write([register], k // pipeline.words + kind.latency)
        else:
            found.read([register], k // pipeline.words + kind.late)
    if "!" in before or base == ["sp"]:
        found.write(base, 0)
    busy = -(-words // pipeline.words) + pipeline.multiple
    return Operation(kind, tuple(found.reads), tuple(found.writes), busy)


def _arithmetic(
    name: str, kind_name: str, text: str, kind: PipelineKind, found: _Registers
) -> None:
    registers = _REGISTER.findall(text)
    results = 0 if _NO_RESULT.match(name) else 2 if _TWO_RESULTS.match(name) else 1
    written, sources = registers[:results], registers[results:]
    found.write(written, kind.latency)
    if _ACCUMULATES.match(name):
        sums = written if results == 2 else sources[2:]
        found.read(sums, kind.late)
        sources = sources[:2]
    elif _UPDATES.match(name) or _PREDICATED.match(name):
        found.read(written, kind.late)
    elif _IN_PLACE.match(name) and text.count(",") == 1:
        found.read(written, -kind.early)
    if kind_name == "shifted":  # only the shifted operand is needed early
        found.read(sources[:-1])
        sources = sources[-1:]
    found.read(sources, -kind.early)


def _operands(text: str) -> str:
    """Without comments and with the registers of lists written out."""

    def written_out(found: re.Match[str]) -> str:
        return ", ".join(f"r{k}" for k in range(int(found[1]), int(found[2]) + 1))

    return _RANGE.sub(
        written_out, _numbered(text.split("@", maxsplit=1)[0].split(";", maxsplit=1)[0])
    )


def _numbered(text: str) -> str:
    for name, number in (("sb", "r9"), ("sl", "r10"), ("fp", "r11"), ("ip", "r12")):
        text = re.sub(rf"\b{name}\b", number, text)
    return text


def _base(mnemonic: str) -> str:
    """Without the suffixes of width and element type."""
    return mnemonic.split(".", maxsplit=1)[0]


def _kind_name(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.match(name)), "alu")


def kinds() -> tuple[str, ...]:
    """Kinds of instructions that a core's model may tell apart."""
    return (*(kind for kind, _ in _KINDS), "alu", "shifted")


def functions_by_block(
    functions: Mapping[str, Sequence[Instruction]], counts: Mapping[int, int], pipeline: Pipeline
) -> Iterator[tuple[str, int, int, int, float]]:
    """Function, address, executions, instructions and cycles a pass of every block that ran."""
    for name, body in functions.items():
        executed = [counts.get(one.address, 0) for one in body]
        for first, last in _blocks(body, executed):
            if executed[first]:
                cycles = block_cycles(body[first:last], pipeline)
                yield name, body[first].address, executed[first], last - first, cycles
