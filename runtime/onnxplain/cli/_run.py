"""The pictures of one call of `explain`: explained side by side, and on record as they are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from onnxplain.cli._explained import Asked, Explained, explain_picture
from onnxplain.cli._pictures import Picture
from onnxplain.cli._progress import Part, Progress
from onnxplain.cli._record import RECORD, Record, Row, row_of_error, rows_of
from onnxplain.cli._report import PAGE, write_report
from onnxplain.cli._resume import files_of, note_of
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
    is_short
        Whether all is done in a moment, and needs no bar.
    """

    def __init__(
        self,
        asked: Asked,
        pictures: Sequence[Picture],
        before: Sequence[Explained],
        *,
        report: bool,
        is_short: bool,
    ) -> None:
        self._is_short = is_short
        self._errors: dict[Path, str] = {}
        self._asked, self._pictures, self._report = asked, pictures, report
        self._done = {one.picture.stem: one for one in before}
        self._record = Record(asked.folder)

    @property
    def done(self) -> list[Explained]:
        """The pictures that are done, in their order."""
        return [self._done[one.stem] for one in self._pictures if one.stem in self._done]

    @property
    def problems(self) -> list[str]:
        """Why the others can't be explained."""
        return list(self._errors.values())

    def explain(self, explainer: Explainer) -> None:
        """Explain the pictures that aren't done; whatever comes between, what is done stays, and says so."""
        if self._done:
            self._asked.folder.keep(self._files(), map(note_of, self.done))
            self._record.write(self._rows())
        try:
            self._explain(explainer, [one for one in self._pictures if one.stem not in self._done])
        finally:
            if self._done:
                self._record.write(self._rows())  # an interruption may have come in the midst of a picture
                if self._report:
                    write_report(self.done, self._asked, self.problems, len(self._pictures))
            self._asked.folder.keep(self._files(), map(note_of, self.done))

    def _explain(self, explainer: Explainer, pictures: Sequence[Picture]) -> None:
        stopped = Event()
        with Progress("Explaining", len(pictures), hidden=self._is_short) as progress:
            work = [(picture, progress.part()) for picture in pictures]

            def explain(one: tuple[Picture, Part]) -> Explained:
                return explain_picture(explainer, self._asked, *one, stopped)

            with closing(in_order(explain, work, stopped)) as calls:
                for (picture, part), call in zip(work, calls, strict=True):
                    try:
                        self._keep(call.result())
                        part.finish()
                    except ImageError as error:
                        progress.say_error(str(error))
                        self._errors[picture.stem] = str(error)
                        self._record.add([row_of_error(picture.path, str(error), self._asked)])
                        part.drop()

    def _keep(self, one: Explained) -> None:
        self._record.add(rows_of(one, self._asked))
        self._asked.folder.note(note_of(one))
        self._done[one.picture.stem] = one

    def _rows(self) -> Iterator[Row]:
        """Yield the rows on all pictures, in the order of these."""
        for picture in self._pictures:
            if picture.stem in self._done:
                yield from rows_of(self._done[picture.stem], self._asked)
            elif picture.stem in self._errors:
                yield row_of_error(picture.path, self._errors[picture.stem], self._asked)

    def _files(self) -> set[str]:
        """Return the outputs that the pictures which are done have."""
        files = {RECORD, *([PAGE] if self._report else [])} if self._done else set()
        return files.union(*(files_of(one) for one in self._done.values()))
