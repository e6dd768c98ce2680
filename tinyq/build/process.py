"""The one place that starts other programs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LAST_WORDS, _LAST_STEPS = 0.5, 30.0  # seconds


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


def run_until(
    command: Sequence[str | Path], cwd: Path, timeout: float, signs: Sequence[str]
) -> Completed:
    """As :func:`run`, with standard input kept open, for a program that may wait for commands.

    It is ended as well when a line of its output holds one of ``signs``, and all that it started
    with it; it then has half a second to say more. ``status`` is -1 in that case.
    """
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        lines: list[str] = []
        done, signed = threading.Event(), threading.Event()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if any(sign in line for sign in signs):
                    signed.set()
                    done.set()
            done.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            in_time = done.wait(timeout)
            if signed.is_set():
                reader.join(_LAST_WORDS)
            elif in_time:
                in_time = _ended(process)
        finally:
            _kill(process)
            reader.join(_LAST_WORDS)
    if not in_time:
        return Completed(None, "".join(lines))
    return Completed(-1 if signed.is_set() else process.returncode, "".join(lines))


def _ended(process: subprocess.Popen[str]) -> bool:
    """Whether a process that closed its output ends by itself."""
    try:
        process.wait(_LAST_STEPS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen[str]) -> None:
    """End ``process`` and the processes of its session, if it has not ended."""
    if process.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
