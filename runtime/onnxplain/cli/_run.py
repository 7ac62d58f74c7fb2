"""The pictures of one call of `explain`: explained side by side, and on record as they are done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

import click

from onnxplain.cli._explained import Asked, Explained, explain_picture
from onnxplain.cli._pictures import Picture
from onnxplain.cli._record import RECORD, Record, row_of_error, rows_of
from onnxplain.cli._report import PAGE, write_report
from onnxplain.cli._resume import files_of, note_of
from onnxplain.cli._text import CLEAR_LINE, printable
from onnxplain.errors import ImageError
from onnxplain.pipeline import in_order

if TYPE_CHECKING:
    from onnxplain import Explainer


class Run:
    """Pictures that are explained as they were asked for, and what became of them.

    Parameters
    ----------
    pictures
        All of them.
    before
        Those that an earlier call has done.
    report
        Whether there is to be a page.
    """

    def __init__(
        self, asked: Asked, pictures: Sequence[Picture], before: Sequence[Explained], *, report: bool
    ) -> None:
        self.problems: list[str] = []
        self._asked, self._pictures, self._report = asked, pictures, report
        self._done = {one.picture.stem: one for one in before}
        self._notes = {stem: note_of(one) for stem, one in self._done.items()}
        self._record = Record(asked.folder)

    @property
    def done(self) -> list[Explained]:
        """The pictures that are done, in their order."""
        return [self._done[one.stem] for one in self._pictures if one.stem in self._done]

    def explain(self, explainer: Explainer) -> None:
        """Explain the pictures that aren't done; whatever comes between, what is done stays, and says so."""
        folder = self._asked.folder
        if self._done:
            folder.keep(self._files(), self._notes.values())
            self._record.begin(row for one in self.done for row in rows_of(one, self._asked))
        try:
            self._explain(explainer, [one for one in self._pictures if one.stem not in self._done])
        finally:
            if self._done and self._report:
                write_report(self.done, self._asked, self.problems, len(self._pictures))
            folder.keep(self._files(), self._notes.values())  # no overlay of a picture that isn't done

    def _explain(self, explainer: Explainer, pictures: Sequence[Picture]) -> None:
        on_terminal, several = sys.stderr.isatty(), len(pictures) > 1
        stopped = Event()
        explain = partial(
            explain_picture, explainer, self._asked, progress=on_terminal and not several, stopped=stopped
        )
        with (
            closing(in_order(explain, pictures, stopped)) as calls,
            click.progressbar(calls, len(pictures), "Explaining", file=sys.stderr)
            if on_terminal and several
            else nullcontext(calls) as bar,  # click imports what draws bars when it makes one
        ):
            for picture, call in zip(pictures, bar, strict=True):
                try:
                    self._keep(call.result())
                except ImageError as error:
                    self.problems.append(str(error))
                    click.echo(f"{CLEAR_LINE * on_terminal}Error: {printable(self.problems[-1])}", err=True)
                    self._record.add([row_of_error(picture.path, str(error), self._asked)])

    def _keep(self, one: Explained) -> None:
        self._record.add(rows_of(one, self._asked))
        self._asked.folder.note(note := note_of(one))
        self._done[one.picture.stem], self._notes[one.picture.stem] = one, note

    def _files(self) -> set[str]:
        """Return the outputs that the pictures which are done have."""
        files = {RECORD, *([PAGE] if self._report else [])}
        return files.union(*(files_of(one) for one in self._done.values()))
