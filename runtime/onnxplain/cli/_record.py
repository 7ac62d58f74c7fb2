"""The record of what was explained, a row for each picture, class and method; and its table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxplain.cli._explained import Asked, Explained, Finding
from onnxplain.cli._text import table
from onnxplain.files import append_line, write_atomically

if TYPE_CHECKING:
    from onnxplain.outputs import OutputFolder

RECORD = "explanations.jsonl"

Row = dict[str, Any]


class Record:
    """`explanations.jsonl`, to which rows are written as pictures are done.

    While there is none, rows on those that can't be are held back: a call that does nothing leaves nothing.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        self._held: list[Row] = []
        self._is_open = False

    def write(self, rows: Iterable[Row]) -> None:
        """Write all rows anew: those on pictures that are done, and on those that can't be."""
        write_atomically(self._folder.add(RECORD), "".join(f"{_line(row)}\n" for row in rows).encode())
        self._is_open = True

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows on a picture, all at once."""
        self._held += rows
        if any(row["error"] is None for row in rows) and not self._is_open:
            self.write(())
        if self._is_open:
            append_line(self._folder.path / RECORD, "\n".join(map(_line, self._held)))
            self._held.clear()


def rows_of(done: Explained, asked: Asked) -> list[Row]:
    """Return a picture's rows, the first method's first; boxes are in its pixels, the largest first."""
    return [_row(done.picture.path, one, None, asked) for one in done.findings]


def row_of_error(path: Path, error: str, asked: Asked) -> Row:
    """Return the row on a picture that can't be explained: it has the same keys."""
    return _row(path, None, error, asked)


def _row(path: Path, one: Finding | None, error: str | None, asked: Asked) -> Row:
    peak = one and one.peak
    return {
        "path": str(path),
        "model": str(asked.model),
        "rank": one and one.rank,
        "class": one and one.index,
        "label": one and one.label,
        "probability": one and one.probability,
        "logit": one and one.logit,
        "method": one and one.method,
        "layer": one and one.layer,
        "peak_x": peak and peak[0],
        "peak_y": peak and peak[1],
        "boxes": one and one.boxes,
        "overlay": one and one.overlay,
        "options": asked.options_on_record,
        "error": error,
    }


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False)


def summary(pictures: Iterable[Explained], asked: Asked) -> str:
    """Return the table of all classes of all pictures."""
    several = len(asked.methods) > 1
    headers = [
        "PICTURE",
        *(["METHOD"] if several else []),
        "CLASS",
        "PROBABILITY",
        *(["OVERLAY"] if asked.overlays else []),
    ]
    rows = [
        [
            str(done.picture.path),
            *([one.method] if several else []),
            one.name,
            one.percentage,
            *([str(asked.folder.path / one.overlay)] if one.overlay else []),
        ]
        for done in pictures
        for one in done.findings
    ]
    class_ = headers.index("CLASS")
    return table(
        headers,
        rows,
        right=[class_ + 1],
        paths=[0],
        texts=[class_],
        optional=class_ + 2 if asked.overlays else None,
    )
