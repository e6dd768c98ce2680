"""Finds CMSIS-NN where the user has it, and what of it a network needs.

Accepted: a source tree, an unpacked CMSIS-Pack (both have Include and Source), or an installed
library with its headers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tinyq.codegen.program import Library
from tinyq.errors import error

VARIABLE = "CMSIS_NN_DIR"
CORE_VARIABLE = "CMSIS_CORE_DIR"
SINGLE_ROUNDING = "CMSIS_NN_USE_SINGLE_ROUNDING"
_HEADER = "arm_nnfunctions.h"
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINED = re.compile(
    r"^(?!static\b)[A-Za-z_][\w \t\*]*?\b(arm_\w+)\s*\([^;{]*?\)\s*\{", re.MULTILINE
)
_CONSTANT = re.compile(r"^const\s+\w+\s+(\w+)\s*\[", re.MULTILINE)
_WORD = re.compile(r"\b[A-Za-z_]\w*\b")
_RELEASE = re.compile(r'<release\s+version="([0-9][^"]*)"')
_REVISION = re.compile(r"\$Revision:\s*V?\.?\s*([0-9][\w.]*)")
_BINARIES = ("lib/libcmsis-nn.a", "lib/libcmsis_nn.a", "libcmsis-nn.a", "libcmsis_nn.a")


@dataclass(frozen=True)
class CmsisNn:
    """A copy of CMSIS-NN: its root, the folders of headers and the version, as the library says."""

    root: Path
    includes: tuple[str, ...]
    version: str
    binary: str = ""

    @cached_property
    def _files(self) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
        """Names that each source file defines, and all words in it."""
        found = {}
        for path in sorted(self.root.glob("Source/*/*.c")):
            text = _COMMENT.sub(" ", path.read_text(encoding="utf-8", errors="replace"))
            defined = {*_DEFINED.findall(text), *_CONSTANT.findall(text)}
            name = path.relative_to(self.root).as_posix()
            found[name] = (frozenset(defined), frozenset(_WORD.findall(text)))
        return found

    def sources(self, functions: Iterable[str]) -> tuple[str, ...]:
        """Files with ``functions`` and all that they call in turn, sorted; for every core alike.

        Raises TQ408 for a function that the library does not have.
        """
        homes = {name: file for file, (names, _) in self._files.items() for name in names}
        pending, found = list(functions), set()
        missing = sorted(set(pending) - set(homes))
        if missing:
            raise error(
                "TQ408", f"version {self.version} has no {', '.join(missing)}", file=str(self.root)
            )
        while pending:
            file = homes[pending.pop()]
            if file not in found:
                found.add(file)
                pending.extend(self._files[file][1] & set(homes))
        return tuple(sorted(found))

    def library(self, functions: Iterable[str], rounding: str) -> Library:
        """What the build files need for ``functions``, with a library that rounds that way."""
        defines = (SINGLE_ROUNDING,) if rounding == "once" else ()
        sources = () if self.binary else self.sources(functions)
        return Library("cmsis-nn", self.version, sources, self.includes, defines, self.binary)


def find_cmsis_nn(folder: Path | str | None = None) -> CmsisNn:
    """CMSIS-NN in ``folder``, by default in ``CMSIS_NN_DIR``; raises TQ407 when there is none."""
    given = str(folder or os.environ.get(VARIABLE) or "")
    if not given:
        raise error("TQ407", f"neither --cmsis-nn nor {VARIABLE} names a folder")
    root = Path(given)
    for inside in (root, root / "CMSIS" / "NN", root / "CMSIS-NN"):
        for include in ("Include", "include", "include/cmsis-nn"):
            if (inside / include / _HEADER).is_file():
                return _describe(inside.resolve(), include)
    raise error("TQ407", f"there is no Include/{_HEADER} in it", file=given)


def core_headers() -> Path | None:
    """Folder of the core's headers (``cmsis_compiler.h``) where ``CMSIS_CORE_DIR`` names one."""
    given = os.environ.get(CORE_VARIABLE)
    if not given:
        return None
    for inside in (
        Path(given),
        Path(given) / "Include",
        Path(given) / "CMSIS" / "Core" / "Include",
    ):
        if (inside / "cmsis_compiler.h").is_file():
            return inside.resolve()
    raise error("TQ407", f"{CORE_VARIABLE} has no cmsis_compiler.h in it", file=given)


def _describe(root: Path, include: str) -> CmsisNn:
    if any(root.glob("Source/*/*.c")):
        return CmsisNn(root, (include,), _version(root, include))
    for binary in _BINARIES:
        if (root / binary).is_file():
            return CmsisNn(root, (include,), _version(root, include), binary)
    raise error("TQ407", "it has headers, but neither Source nor lib/libcmsis-nn.a", file=str(root))


def _version(root: Path, include: str) -> str:
    """The release of the pack's description, else the revision of the public header."""
    for path in sorted(root.glob("*.pdsc")):
        found = _RELEASE.search(path.read_text(encoding="utf-8", errors="replace"))
        if found and found[1] != "0.0.0":
            return found[1]
    text = (root / include / _HEADER).read_text(encoding="utf-8", errors="replace")
    revision = _REVISION.search(text)
    return f"header {revision[1]}" if revision else "unknown"
