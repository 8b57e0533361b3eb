"""Text that others chose, made fit to be shown: it can neither command a terminal nor begin a line of its own."""

from __future__ import annotations


def escaped(text: str) -> str:
    """Every character that is not printable (controls, line and paragraph separators, bidi marks) as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
