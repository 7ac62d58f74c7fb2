"""Text for the terminal: tables, sizes, and names that can't disturb it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import combining, east_asian_width

from onnxplain.text import printable as printable

CLEAR_LINE = "\r\x1b[K"
"""Written to a terminal, takes away what stands in the line: a progress bar, say."""


_NARROWEST = 6
"""Columns that are left of a cell at least."""


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    *,
    paths: Sequence[int] = (),
    texts: Sequence[int] = (),
    optional: int | None = None,
) -> str:
    """Return aligned columns under their headers, no wider than the terminal; elsewhere all is whole.

    Parameters
    ----------
    headers, rows
        The cells.
    right
        Numbers of the columns that are right-aligned.
    paths, texts
        Those that may be cut where the table is too wide: paths at their start, texts at their end. Others
        are never cut.
    optional
        The last column's number, where that is left out before any is cut.
    """
    lines = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(columns_of, column)) for column in zip(*lines, strict=True)]
    screen = screen_width()
    if optional is not None and screen and _whole(widths) > screen:
        lines, widths = [line[:optional] for line in lines], widths[:optional]
    _narrow(widths, [*paths, *texts], screen)
    return "\n".join(
        "  ".join(
            _aligned(_cut(cell, width, at_start=column in paths), width, right=column in right)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values, one pair a line, the values aligned, and on a terminal wrapped."""
    indent = max(len(name) for name, _ in pairs) + 2
    screen = screen_width()
    lines = []
    for name, value in pairs:
        wrapped = _wrapped(printable(value), screen - indent) if screen else [printable(value)]
        starts = [name, *[""] * (len(wrapped) - 1)]
        lines += [f"{start:{indent}}{line}".rstrip() for start, line in zip(starts, wrapped, strict=True)]
    return "\n".join(lines)


def screen_width() -> int | None:
    """Return how many columns the terminal has that stdout is; None where it is a file or a pipe."""
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def columns_of(text: str) -> int:
    """Return how many columns a text takes on a terminal: some characters take two, some none."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text's words on lines of a width, where none is wider by itself."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and columns_of(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _whole(widths: Sequence[int]) -> int:
    """Return the width of a table."""
    return sum(widths) + 2 * (len(widths) - 1)


def _narrow(widths: list[int], columns: Sequence[int], screen: int | None) -> None:
    """Take columns' widths back, the widest first, until all have room."""
    while screen and columns and _whole(widths) > screen:
        widest = max(columns, key=lambda column: widths[column])
        if widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1


def _cut(text: str, width: int, *, at_start: bool) -> str:
    """Return so much of a text as there is room for, with an ellipsis in the place of the rest."""
    if columns_of(text) <= width:
        return text
    while columns_of(text) >= width:
        text = text[1:] if at_start else text[:-1]
    return f"…{text}" if at_start else f"{text.rstrip()}…"


def _aligned(text: str, width: int, *, right: bool) -> str:
    room = " " * (width - columns_of(text))
    return room + text if right else text + room


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
    ends = [("first", tokens.get("prefix", 0)), ("last", tokens.get("suffix", 0))]
    dropped = " and ".join(f"the {end} {count}" for end, count in ends if count)
    return f", folded from tokens{f', {dropped} dropped' if dropped else ''}"
