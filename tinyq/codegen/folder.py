"""Writes a folder of generated files, all or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tinyq.codegen.program import GENERATOR, MANIFEST, Program
from tinyq.errors import error


def write_program(program: Program, folder: Path) -> None:
    """Put the program's files into ``folder``, as :func:`write_files` does."""
    write_files(program.files, folder)


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Put the files into ``folder``, replacing an empty folder or one that tinyq wrote.

    One of them is the manifest, which marks the folder as tinyq's.

    The files are written beside it first and moved at the end, so that a failure leaves nothing
    half-written. Raises TQ701 when the folder has other contents or cannot be written.
    """
    folder = folder.resolve()
    _check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as problem:
        raise error("TQ701", str(problem), file=str(folder)) from problem
    try:
        _write(files, staging / "new")
        if folder.exists():
            folder.rename(staging / "old")
        try:
            (staging / "new").rename(folder)
        except OSError:
            if (staging / "old").exists():
                (staging / "old").rename(folder)
            raise
    except OSError as problem:
        raise error("TQ701", str(problem), file=str(folder)) from problem
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise error("TQ701", "a file of that name exists", file=str(folder))
    if not any(folder.iterdir()) or _is_ours(folder):
        return
    raise error("TQ701", "the folder has contents that tinyq did not write", file=str(folder))


def _is_ours(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("generator") == GENERATOR
