"""Counts how often every instruction of a firmware runs, by a plugin of QEMU or in unicorn.

The plugin is a C file of tinyq, compiled on first use by this machine's compiler. Counts come in
phases, which begin where the program reaches given addresses: that is how layers are told apart
that share one function.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tinyq.build import Artifact
from tinyq.build.process import run
from tinyq.build.toolchain import host_toolchain
from tinyq.emulate.qemu import QemuRunner
from tinyq.emulate.runner import DEFAULT_TIMEOUT, Samples
from tinyq.emulate.trace import Counts
from tinyq.emulate.unicorn import count_in_unicorn
from tinyq.errors import TinyqError, error
from tinyq.resources import data_dir


def count_instructions(
    artifact: Artifact,
    samples: Samples,
    marks: Sequence[int],
    *,
    emulator: str = "qemu",
    timeout: float = DEFAULT_TIMEOUT,
) -> tuple[Counts, ...]:
    """Run ``artifact`` in ``emulator`` (qemu or unicorn); one table of counts a phase.

    The first phase begins at reset, every further one just before an instruction at one of
    ``marks`` runs; a mark is the start of a function. Raises TQ410 when the plugin cannot be
    compiled, and what the emulator raises.
    """
    if emulator == "unicorn":
        return count_in_unicorn(artifact, samples, marks, timeout=timeout)
    with tempfile.TemporaryDirectory(prefix="tinyq-count-") as name:
        folder = Path(name)
        plugin, found = _plugin(folder), folder / "counts.txt"
        arguments = ",".join([str(plugin), f"out={found}", *(f"mark={m:x}" for m in marks)])
        runner = QemuRunner(("-plugin", arguments))
        runner.run(artifact, samples, timeout=timeout)
        return _read(found)


def _plugin(folder: Path) -> Path:
    try:
        toolchain = host_toolchain()
    except TinyqError as problem:
        raise error("TQ410", problem.diagnostics[0].found) from problem
    source, plugin = data_dir("templates") / "emulate" / "qemu_count.c", folder / "count.so"
    command = [toolchain.compiler, "-O2", "-shared", "-fPIC", "-o", str(plugin), str(source)]
    done = run(command, folder, 120.0)
    if done.status != 0:
        raise error("TQ410", f"{toolchain.compiler} does not compile it:\n{done.tail()}")
    return plugin


def _read(path: Path) -> tuple[Counts, ...]:
    phases: list[Counts] = []
    for line in path.read_text(encoding="ascii").splitlines():
        phase, address, count = line.split()
        while len(phases) <= int(phase):
            phases.append({})
        phases[int(phase)][int(address, 16)] = int(count, 16)
    return tuple(phases)
