"""Signals that end a program, as an exception that lets it put away what isn't finished."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ended(KeyboardInterrupt):
    """The system wants the program to end: it ends as by Ctrl-C, with another exit code."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


def interruption_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interruption that an error is, or came after: what is cut short may fail at its end."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code of a program that was interrupted, as shells have it."""
    return 128 + (error.signal if isinstance(error, Ended) else signal.SIGINT)


def closing_line(error: KeyboardInterrupt) -> str:
    """Return the line that a program ends with, and what its command noted on the error."""
    what = f"Ended by {error.signal.name}" if isinstance(error, Ended) else "Interrupted"
    notes = getattr(error, "__notes__", [])
    return f"{what}: {' '.join(notes)}" if notes else f"{what}."


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise `Ended` in the main thread where the system wants the program to end, once.

    Signals that are ignored stay so: `nohup` has SIGHUP ignored.
    """
    is_main = threading.current_thread() is threading.main_thread()
    taken = [number for number in _SIGNALS if is_main and signal.getsignal(number) is signal.SIG_DFL]
    terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def end(number: int, frame: FrameType | None) -> None:
        for one in taken:
            signal.signal(one, signal.SIG_IGN)  # it may come twice, to the process and to its group
        if signal.Signals(number).name == "SIGHUP":  # the terminal is gone: writing to it fails
            for stream in terminals:
                with open(os.devnull, "w") as nothing:  # noqa: PTH123 (os.devnull is no file)
                    os.dup2(nothing.fileno(), stream.fileno())
        raise Ended(number)

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)
