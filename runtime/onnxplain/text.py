"""Text that can't disturb the terminal it is shown on."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` on one line, with control characters (which file names and labels may hold) escaped."""
    joined = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in joined)
