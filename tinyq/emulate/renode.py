"""Runs firmware in Renode, which has no files for it: samples in memory, results over the UART.

Renode is driven by a script of its monitor. It ends with status 0 whatever happened, so that the
verdict is read from what the firmware sent, and its output is searched for signs of failure. Each
time the firmware enters ``tinyq_mark`` a hook prints how many instructions have run, which is exact
there; calls of it stand where other emulators' firmware reads a timer.
"""

from __future__ import annotations

import binascii
import dataclasses
import re
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tinyq.build import Artifact
from tinyq.build.process import Completed, run_until
from tinyq.codegen.environment import render
from tinyq.emulate.renode_platform import SAMPLES, SAMPLES_ROOM, Platform, platform
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Samples, find_program
from tinyq.emulate.trace import RunTrace, read_outputs, samples_file
from tinyq.errors import TinyqError, error

PROGRAM = "renode"
VARIABLE = "RENODE"
INSTALL = "install Renode (https://renode.io), or set RENODE"
FAILED = "There was an error executing command"
SIGNS = (FAILED, "CPU abort", "CPU was halted")
"""What Renode prints when it cannot go on; it then waits for commands."""
_MARK = re.compile(r"tinyq-mark (\d+)")
_EXIT = re.compile(r"EXIT [0-9a-f]{8}")
_HEAD = struct.Struct("<4I")


class RenodeRunner:
    """Renode's platform of the artifact's board, or one with the board's memories and UART."""

    name = "renode"

    def run(
        self, artifact: Artifact, samples: Samples, *, timeout: float = DEFAULT_TIMEOUT
    ) -> RunTrace:
        """Run every sample, so many at a time as Renode's memory has room for.

        Raises TQ403, TQ404, TQ409 (a core that Renode has not) or TQ502.
        """
        if artifact.board is None or artifact.uart is None:
            raise ValueError("only firmware that reports over a UART runs in Renode")
        where = platform(artifact.board)
        program = require_renode()
        room = SAMPLES_ROOM - len(samples_memory(artifact, [array[:0] for array in samples]))
        step = max(1, room // max(1, artifact.network.sample_bytes))
        count = max(len(array) for array in samples)
        parts = [[a[k : k + step] for a in samples] for k in range(0, max(count, 1), step)]
        return _joined([_run(program, artifact, where, part, timeout) for part in parts])


def require_renode() -> str:
    """Path of Renode; raises TQ403."""
    return find_program(VARIABLE, PROGRAM, f"{INSTALL[:1].upper()}{INSTALL[1:]}.")


def samples_memory(artifact: Artifact, samples: Samples) -> bytes:
    """What lies at ``SAMPLES``: bytes and CRC-32 of ``samples.bin``, and the file; raises TQ502."""
    contents = samples_file(artifact.network, samples)
    return struct.pack("<2I", len(contents), zlib.crc32(contents)) + contents


def script(where: Platform) -> str:
    """The commands for Renode's monitor."""
    return render(
        "emulate/renode/run.resc.j2",
        uart=where.uart,
        samples_base=SAMPLES,
        vectors=where.board.flash.base,
    )


def _run(
    program: str, artifact: Artifact, where: Platform, samples: Samples, timeout: float
) -> RunTrace:
    memory = samples_memory(artifact, samples)
    with tempfile.TemporaryDirectory(prefix="tinyq-renode-") as name:
        folder = Path(name)
        (folder / "samples.bin").write_bytes(memory)
        (folder / "platform.repl").write_text(where.text(len(memory)), encoding="utf-8")
        (folder / "run.resc").write_text(script(where), encoding="utf-8")
        shutil.copyfile(artifact.executable, folder / "firmware.elf")
        command = [program, "--plain", "--disable-xwt", "--console", "run.resc"]
        start = time.monotonic()
        done = run_until(command, folder, timeout, SIGNS)
        elapsed = time.monotonic() - start
        sent = folder / "uart.txt"
        text = sent.read_bytes().decode("ascii", "replace") if sent.is_file() else ""
    contents = _received(done, text, timeout)
    try:
        marks = [int(found) for found in _MARK.findall(done.output)]
        counted = with_counts(contents, marks, profiled=artifact.profiled)
        return read_outputs(counted, artifact, RenodeRunner.name, elapsed, lambda ticks: ticks)
    except ValueError as problem:
        raise error("TQ404", f"renode: {problem}") from problem


def _received(done: Completed, text: str, timeout: float) -> bytes:
    """``outputs.bin``, when Renode did not fail and the firmware ended well; raises TQ404."""
    lines = text.splitlines()
    messages = [line for line in lines if line and not line.startswith(("=", "END ", "EXIT "))]
    said = "\n".join(messages[-4:]) or "(no message)"
    for sign in SIGNS:
        at = done.output.find(sign)
        if at >= 0:
            begin = done.output.rfind("\n", 0, at) + 1
            raise _failed(f"it cannot go on: {done.output[begin:].strip()[:1000]}")
    if done.status is None:
        raise _failed(f"not finished after {timeout:g} s; the firmware's last messages:\n{said}")
    ended = lines[-1] if lines and _EXIT.fullmatch(lines[-1]) else ""
    if not ended:
        tail = done.tail() or "(it printed nothing)"
        raise _failed(
            f"it ended with status {done.status} before the firmware did, whose last messages "
            f"were:\n{said}\nRenode's last output:\n{tail}"
        )
    if ended != "EXIT 00000000" or messages[-1:] != ["PASS"]:
        raise _failed(f"the firmware ended with an error:\n{said}")
    return outputs_of(lines)


def outputs_of(lines: Sequence[str]) -> bytes:
    """``outputs.bin`` from the lines that the firmware sent; raises TQ404 where any is missing."""
    try:
        contents = b"".join(binascii.unhexlify(x[1:]) for x in lines if x.startswith("="))
        (end,) = (line for line in lines if line.startswith("END "))
        size, sum32 = (int(word, 16) for word in end.split()[1:])
    except ValueError as problem:
        raise _failed(f"its UART did not carry whole lines: {problem}") from problem
    if (size, sum32) != (len(contents), zlib.crc32(contents)):
        raise _failed(
            f"its UART carried {len(contents)} bytes of results with CRC {zlib.crc32(contents):08x}"
            f", the firmware sent {size} with CRC {sum32:08x}"
        )
    return contents


def with_counts(contents: bytes, marks: Sequence[int], *, profiled: bool) -> bytes:
    """``outputs.bin`` with instructions in place of the ticks that its firmware could not read.

    ``marks`` are the numbers of instructions at each call of ``tinyq_mark``, in the order of
    ``templates/boot/harness.c``: before and after the empty call and, with layers, the empty hooks;
    for each sample before invoke, at every layer's two hooks, and after invoke. Raises
    :class:`ValueError` where their number is another.
    """
    made, rest = bytearray(), iter(marks)
    start: int | None = None
    at = 0
    try:
        while at < len(contents):
            tag, index, value, size = _HEAD.unpack_from(contents, at)
            kind, end = chr(tag & 0xFF), at + _HEAD.size + size
            if kind in "LOS" and start is None:
                start = next(rest)
            if kind == "C":
                value = _between(rest)
                index = _between(rest) if profiled else index
            elif kind == "L":
                value = _between(rest)
            elif kind == "S" and start is not None:
                value, start = next(rest) - start, None
            made += _HEAD.pack(tag, index, value, size) + contents[at + _HEAD.size : end]
            at = end
    except StopIteration:
        raise ValueError(f"{len(marks)} counts of instructions are too few") from None
    except struct.error as problem:
        raise ValueError(f"outputs.bin does not hold whole records: {problem}") from None
    left = len(list(rest))
    if left:
        raise ValueError(f"{len(marks)} counts of instructions are {left} too many")
    return bytes(made)


def _between(marks: Iterator[int]) -> int:
    first = next(marks)
    return next(marks) - first


def _joined(traces: Sequence[RunTrace]) -> RunTrace:
    """One trace of runs over parts of the samples."""
    if len(traces) == 1:
        return traces[0]
    first, layers = traces[0], traces[0].layers
    return dataclasses.replace(
        first,
        samples=sum(one.samples for one in traces),
        outputs=tuple(map(np.concatenate, zip(*(t.outputs for t in traces), strict=True))),
        elapsed=sum(one.elapsed for one in traces),
        instructions_per_inference=_chained([t.instructions_per_inference for t in traces]),
        stack_bytes=max((t.stack_bytes for t in traces if t.stack_bytes is not None), default=None),
        layers=layers
        and {n: np.concatenate([(t.layers or {})[n] for t in traces]) for n in layers},
        layer_instructions={
            name: tuple(count for t in traces for count in t.layer_instructions[name])
            for name in first.layer_instructions
        },
    )


def _chained(counts: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    if any(part is None for part in counts):
        return None
    return tuple(number for part in counts if part is not None for number in part)


def _failed(what: str) -> TinyqError:
    return error("TQ404", f"renode: {what}")
