"""Text for the terminal: tables, sizes, and names that can't disturb it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CLEAR_LINE = "\r\x1b[K"
"""Written to a terminal, takes away what stands in the line: a progress bar, say."""


def printable(text: str) -> str:
    """Return `text` on one line, with control characters (which file names and labels may hold) escaped."""
    joined = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in joined)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return aligned columns under their headers; the columns numbered in `right` are right-aligned."""
    lines = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values, one pair a line, the values aligned."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {printable(value)}".rstrip() for name, value in pairs)


def file_size(count: int) -> str:
    """Return a number of bytes as people read it."""
    if count < 1000:
        return f"{count} bytes"
    size, units = count / 1000, ["kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.{1 if size < 100 else 0}f} {units[0]}"


def folding(tokens: Mapping[str, Any] | None) -> str:
    """Return how a layer's tokens become maps, as a remark; nothing for feature maps."""
    if tokens is None:
        return ""
    if tokens.get("layout") == "NHWC":
        return ", from channels last"
    prefix = tokens.get("prefix", 0)
    return f", folded from tokens{f', the first {prefix} dropped' if prefix else ''}"
