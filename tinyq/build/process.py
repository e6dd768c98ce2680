"""The one place that starts other programs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Completed:
    """What a program left: its exit status and its output (standard error follows output).

    ``status`` is ``None`` when the program was ended because its time was over.
    """

    status: int | None
    output: str

    def tail(self, lines: int = 12) -> str:
        """The last ``lines`` lines of the output."""
        return "\n".join(self.output.strip().splitlines()[-lines:])


def run(command: Sequence[str | Path], cwd: Path, timeout: float) -> Completed:
    """Run ``command`` in ``cwd`` for at most ``timeout`` seconds.

    Raises :class:`OSError` when the program cannot be started.
    """
    text = [str(part) for part in command]
    with subprocess.Popen(
        text,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            return Completed(None, output)
        except BaseException:
            process.kill()
            raise
    return Completed(process.returncode, output)
