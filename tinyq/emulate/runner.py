"""The protocol that every emulator follows."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinyq.build import Artifact
from tinyq.build.process import Completed, run
from tinyq.emulate.trace import RunTrace, read_outputs, samples_file
from tinyq.errors import error

Samples = Sequence[NDArray[np.generic]]
Ticks = Callable[[NDArray[np.int64]], NDArray[np.int64]]
DEFAULT_TIMEOUT = 1800.0


class Emulator(Protocol):
    """Something that runs an artifact over samples."""

    name: str

    def run(
        self, artifact: Artifact, samples: Samples, *, timeout: float = DEFAULT_TIMEOUT
    ) -> RunTrace:
        """Run every sample; raises TQ403, TQ404 or TQ502."""
        ...


def run_files(
    emulator: str,
    command: Sequence[str],
    artifact: Artifact,
    samples: Samples,
    *,
    timeout: float,
    ticks: Ticks | None,
) -> RunTrace:
    """Run ``command`` in a fresh folder holding ``samples.bin``, and read ``outputs.bin``.

    Raises TQ404 with the last lines of output when the program fails, does not end in time, or ends
    without its closing line.
    """
    contents = samples_file(artifact.network, samples)
    with tempfile.TemporaryDirectory(prefix="tinyq-") as name:
        folder = Path(name)
        (folder / "samples.bin").write_bytes(contents)
        start = time.monotonic()
        done = run(command, folder, timeout)
        elapsed = time.monotonic() - start
        _require_pass(emulator, done, timeout)
        try:
            contents = (folder / "outputs.bin").read_bytes()
            return read_outputs(contents, artifact, emulator, elapsed, ticks)
        except (OSError, ValueError) as problem:
            raise error("TQ404", f"{emulator} left no usable outputs: {problem}") from problem


def find_program(variable: str, name: str, remedy: str = "") -> str:
    """Path of an emulator named by an environment variable or on the PATH.

    Raises TQ403, with ``remedy`` in place of the code's own where one is given.
    """
    asked = os.environ.get(variable) or name
    found = shutil.which(asked)
    if found is None:
        raise error("TQ403", f"'{asked}' is not on the PATH", remedy)
    return found


def _require_pass(emulator: str, done: Completed, timeout: float) -> None:
    problem = _problem(done, timeout)
    if problem:
        raise error("TQ404", f"{emulator}: {problem}")


def _problem(done: Completed, timeout: float) -> str:
    tail = done.tail() or "(it printed nothing)"
    if done.status is None:
        return f"not finished after {timeout:g} s; its last output:\n{tail}"
    lines = done.output.strip().splitlines()
    if done.status != 0 or not lines or lines[-1] != "PASS":
        return f"ended with status {done.status}; its last output:\n{tail}"
    return ""
