"""How far a call is: a bar on the terminal, with the time that remains, and errors on lines above it."""

from __future__ import annotations

import sys
from threading import Lock
from types import TracebackType
from typing import Self

import click

from onnxplain.cli._text import CLEAR_LINE, printable

_STEPS = 1000
"""Of each part: a bar counts whole numbers."""


class Progress:
    """A bar for work that threads do in parts of one size. Where stderr is no terminal, there is none.

    Parameters
    ----------
    label
        What is done.
    parts
        How many parts there are.
    hidden
        There is no bar: the work is short.
    """

    def __init__(self, label: str, parts: int, *, hidden: bool = False) -> None:
        self._label, self._parts, self._done = label, parts, 0
        self._on_terminal = sys.stderr.isatty()
        self._lock = Lock()
        hidden = hidden or not self._on_terminal or not parts
        self._bar = None if hidden else click.progressbar(length=parts * _STEPS, file=sys.stderr)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.label = self._labelled()
            self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.__exit__(kind, error, traceback)

    def part(self) -> Part:
        """Return a part of the work."""
        return Part(self)

    def say_error(self, line: str) -> None:
        """Print an error; the bar goes on below it."""
        with self._lock:
            click.echo(f"{CLEAR_LINE * self._on_terminal}Error: {printable(line)}", err=True)

    def advance(self, steps: int, *, parts: int = 0, of: int = 0) -> None:
        """Move the bar, by so many steps of a part; count parts as done, or as of no concern."""
        if not self._bar:
            return
        with self._lock:
            self._done += parts
            self._parts -= of
            self._bar.length = self._parts * _STEPS
            self._bar.label = self._labelled()
            self._bar.update(steps)
            self._bar.render_progress()

    def _labelled(self) -> str:
        return self._label if self._parts == 1 else f"{self._label} {self._done} of {self._parts}"


class Part:
    """A part of the work, such as a picture."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._steps = progress, 0

    def reach(self, fraction: float) -> None:
        """Say how much of it is done; it never goes back."""
        steps = int(min(fraction, 1) * _STEPS)
        if steps > self._steps:
            self._progress.advance(steps - self._steps)
            self._steps = steps

    def finish(self) -> None:
        """Say that it is done."""
        self._progress.advance(_STEPS - self._steps, parts=1)

    def drop(self) -> None:
        """Say that there is nothing to do, so that the time that remains is estimated without it."""
        self._progress.advance(-self._steps, of=1)
