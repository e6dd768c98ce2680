"""Names and texts that are safe to put into C."""

from __future__ import annotations

import re

from tinyq.errors import error

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_KEYWORDS = frozenset(
    """
    alignas alignof and asm auto bool break case catch char class const constexpr continue
    default delete do double else enum explicit export extern false float for friend goto if
    inline int long main mutable namespace new not or private protected public register
    restrict return short signed sizeof static struct switch template this throw true try
    typedef typename union unsigned using virtual void volatile while xor
    """.split()  # noqa: SIM905 (a list of sixty strings reads worse)
)


def check_name(name: str) -> str:
    """``name`` if it can be the prefix of C symbols; TinyqError TQ702 otherwise."""
    if not _IDENTIFIER.match(name) or name in _KEYWORDS:
        raise error("TQ702", f"'{name}' cannot be the name of a C library")
    if name.lower().startswith("tinyq_") or name.lower() == "tinyq":
        raise error("TQ702", f"'{name}' would collide with the names of tinyq's own symbols")
    return name


def comment_text(text: str) -> str:
    """``text`` without anything that ends or opens a comment, ASCII only, on one line."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/").replace("??", "? ?")


def string_literal(text: str) -> str:
    """``text`` as a C string literal."""
    quoted = comment_text(text).replace('"', "'")
    return f'"{quoted}"'
