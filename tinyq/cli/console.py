"""Where output goes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from tinyq.errors import Diagnostic, TinyqError, error

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress

P = ParamSpec("P")
R = TypeVar("R")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors; the status says it all.")
]

INTERRUPTED = 130
PIPE_WIDTH = 160
PROGRESS_DELAY = 1.0
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})


def console(*, stderr: bool = False) -> Console:
    """A rich console; wide where the output is no terminal, so that tables are not squeezed."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    # Names of a model's nodes are text: brackets and colons in them mean nothing here.
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def show(result: RenderableType) -> None:
    """Print a table or text to stdout."""
    console().print(result)


def show_json(result: Any) -> None:
    """Print one JSON object to stdout."""
    typer.echo(json.dumps(result, indent=1, default=str))


def save_file(contents: bytes, path: Path) -> None:
    """Write a file whole or not at all; raises TQ703."""
    staging = path.with_name(f".{path.name}.part")
    try:
        staging.write_bytes(contents)
        staging.replace(path)
    except OSError as problem:
        raise error("TQ703", problem.strerror or str(problem), file=str(path)) from None
    finally:
        staging.unlink(missing_ok=True)


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """A verb whose user errors become one table and the exit status of the catalogue.

    A mistake of tinyq itself is one, too (TQ999), after its traceback.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.get("as_json"))
        try:
            result = function(*args, **kwargs)
            sys.stdout.flush()
            return result
        except TinyqError as problem:
            _fail(problem, as_json)
        except KeyboardInterrupt:
            typer.echo("Interrupted: nothing was written.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read the output (head, less) has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as problem:
            if problem.errno not in _NO_ROOM:
                _defect(problem, as_json)
            where = str(problem.filename or "")
            _fail(error("TQ703", problem.strerror or str(problem), file=where), as_json)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as problem:
            _defect(problem, as_json)

    return run


def _defect(problem: Exception, as_json: bool) -> NoReturn:
    traceback.print_exc()
    _fail(error("TQ999", f"{type(problem).__name__}: {problem}"), as_json)


def _fail(problem: TinyqError, as_json: bool) -> NoReturn:
    if as_json:
        show_json({"errors": [diagnostic_json(d) for d in problem.diagnostics]})
    else:
        show_diagnostics(problem.diagnostics)
    raise typer.Exit(problem.exit_status)


def diagnostic_json(diagnostic: Diagnostic) -> dict[str, str]:
    """One diagnostic as a JSON object."""
    return {
        "code": diagnostic.code,
        "title": diagnostic.info.title,
        "file": diagnostic.file,
        "node": diagnostic.node,
        "operator": diagnostic.operator,
        "found": diagnostic.found,
        "remedy": diagnostic.remedy or diagnostic.info.remedy,
    }


def show_diagnostics(diagnostics: Sequence[Diagnostic]) -> None:
    """All diagnostics in one table on stderr; a single one without nodes as plain lines."""
    from rich.text import Text

    err = console(stderr=True)
    if len(diagnostics) == 1 and not diagnostics[0].node:
        err.print(_plain(diagnostics[0]))
    else:
        err.print(_table(diagnostics))
    codes = ", ".join(dict.fromkeys(d.code for d in diagnostics))
    err.print(Text(f"`tinyq explain {diagnostics[0].code}` says more ({codes})", "dim"))


def _plain(diagnostic: Diagnostic) -> Any:
    from rich.text import Text

    entry = diagnostic_json(diagnostic)
    where = f"{entry['file']}: " if entry["file"] else ""
    head = (f"{entry['code']} {entry['title']}: ", "bold red")
    return Text.assemble(head, f"{where}{entry['found']}\n", entry["remedy"])


def _table(diagnostics: Sequence[Diagnostic]) -> Any:
    from rich import box
    from rich.table import Table

    file = next((d.file for d in diagnostics if d.file), "")
    places = "1 problem" if len(diagnostics) == 1 else f"{len(diagnostics)} problems"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{places} {file}".strip())
    for name in ("code", "node", "operator", "found", "what to do"):
        table.add_column(name, overflow="fold", style="bold red" if name == "code" else "")
    for d in diagnostics:
        table.add_row(d.code, d.node, d.operator, d.found, d.remedy or d.info.remedy)
    return table


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that draws bars with the time left on stderr.

    They appear after a second, on a terminal only, and vanish at the end.
    """
    if quiet or not sys.stderr.isatty():
        yield _nothing
        return
    bars = _bars()
    tasks: dict[str, Any] = {}

    def tell(what: str, done: int, total: int) -> None:
        # A step that is not divided gets a moving bar.
        known = total if total > 1 else None
        if what not in tasks:
            for other in tasks.values():
                bars.stop_task(other)
                bars.update(other, visible=False)
            tasks[what] = bars.add_task(what, total=known)
        finished = total <= 1 and done >= total
        bars.update(tasks[what], completed=done, total=1 if finished else known)

    timer = threading.Timer(PROGRESS_DELAY, bars.start)
    timer.daemon = True
    timer.start()
    try:
        yield tell
    finally:
        timer.cancel()
        timer.join()
        bars.stop()


def _nothing(what: str, done: int, total: int) -> None:
    del what, done, total


def _bars() -> RichProgress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    )
