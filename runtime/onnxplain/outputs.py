"""Folders of outputs, which list what is in them: so nothing else is replaced, and no output is an input.

A folder's list is the file `.onnxplain.jsonl` in it. Its first line says which command writes to the folder,
and what it was asked. The others name the files that it wrote, each before it is written, and whatever the
command wants to find in a later call.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from threading import Lock
from typing import Any

from onnxplain import __version__
from onnxplain.errors import OutputError
from onnxplain.files import append_line, is_same_file, remove_drafts, write_atomically

LIST = ".onnxplain.jsonl"

Note = Mapping[str, Any]
"""What a command writes down for a later call, as JSON."""


class OutputFolder:
    """A folder that a command writes to. Threads may share one.

    As the first output is added, those of earlier calls are removed, unless they are to stay; until then
    everything is as it was.

    Parameters
    ----------
    path
        The folder: a new one, an empty one (but for hidden files), or one that the command wrote to before.
    command
        The command's name.

    Raises
    ------
    OutputError
        The folder has other files, or another command's.
    """

    settings: Mapping[str, Any]
    """What the command is asked now, as JSON."""
    earlier_settings: Mapping[str, Any] | None = None
    """What it was asked when it wrote here before; None if it never did."""
    earlier_files: frozenset[str] = frozenset()
    """What it wrote."""
    earlier_notes: Sequence[Note] = ()
    """What it wrote down."""
    removed = 0
    """How many files of earlier calls were removed."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.settings = path, {}
        self._command = command
        self._lock = Lock()
        self._is_open = False
        self._stay: set[str] = set()
        self._notes: list[Note] = []
        author = written_by(path)
        if author is None:
            _check_free(path)
        elif author != command:
            raise OutputError(f"{path} has the outputs of `onnxplain {author}`; name another folder")
        else:
            head, *rest = _lines(path)
            self.earlier_settings = head["settings"]
            self.earlier_files = frozenset(_listed(path, rest))
            self.earlier_notes = [line["note"] for line in rest if isinstance(line.get("note"), dict)]
        self._files = set(self.earlier_files)

    def keep(self, files: Iterable[str], notes: Iterable[Note] = ()) -> None:
        """Say what stays, of what this and earlier calls wrote: other files and notes are removed."""
        with self._lock:
            self._stay, self._notes = self._files & set(files), list(notes)
            if self._is_open:
                self._tidy()

    def add(self, name: str) -> Path:
        """List a file as an output; return its path, to which it may then be written.

        Parameters
        ----------
        name
            Its path from the folder, with ``/`` between the parts; the folders in it are made.

        Raises
        ------
        OutputError
            There is such a file, and no earlier call wrote it.
        """
        path = self.path / name
        with self._lock:
            self._open()
            if name not in self._files:
                if os.path.lexists(path):
                    raise OutputError(
                        f"{path} is in the way: no earlier call wrote it; move it, or name another folder"
                    )
                self._append({"file": name})
                self._files.add(name)
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def note(self, entry: Note) -> None:
        """Write something down for a later call."""
        with self._lock:
            self._open()
            self._append({"note": entry})

    def _open(self) -> None:
        if not self._is_open:
            self.path.mkdir(parents=True, exist_ok=True)
            self.removed = self._tidy()
            self._is_open = True

    def _tidy(self) -> int:
        """Remove the files that don't stay, and folders that are empty then, and write the list anew.

        Return how many files there were.
        """
        paths = [self.path / name for name in self._files - self._stay]
        gone = [path for path in paths if path.is_symlink() or path.is_file()]
        for path in gone:
            path.unlink()
        folders = {parent for name in self._files for parent in PurePath(name).parents}
        for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
            remove_drafts(self.path / folder)
            if folder.parts:
                with contextlib.suppress(OSError):  # something else is in it
                    (self.path / folder).rmdir()
        self._files = set(self._stay)
        head = {"onnxplain": __version__, "command": self._command, "settings": self.settings}
        lines = [head, *({"file": name} for name in sorted(self._files))]
        lines += [{"note": note} for note in self._notes]
        write_atomically(self.path / LIST, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
        return len(gone)

    def _append(self, line: Mapping[str, Any]) -> None:
        append_line(self.path / LIST, json.dumps(line))


def check_outside(folder: Path, inputs: Iterable[Path | None]) -> None:
    """Check that nothing that is read lies in the folder of the outputs, whatever links lead there.

    Raises
    ------
    OutputError
        Something does.
    """
    for path in inputs:
        if path is None or not path.exists():  # a name is no path, and what is missing is told elsewhere
            continue
        place = path.resolve()
        if any(is_same_file(one, folder) for one in (place, *place.parents)):
            raise OutputError(f"{path} is in {folder}, where the outputs go; name another folder for them")


def written_by(folder: Path) -> str | None:
    """Return the command whose outputs a folder holds; None where there are none."""
    head = next(_lines(folder), {})
    command, settings = head.get("command"), head.get("settings")
    return command if isinstance(command, str) and isinstance(settings, dict) else None


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a folder's list, but for the one that an interruption cut off."""
    try:
        with (folder / LIST).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, RecursionError):
                    found = json.loads(line)
                    if isinstance(found, dict):
                        yield found
    except OSError:  # there is none
        return


def _listed(folder: Path, lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the files that a list names, those that are in its folder: a list may come from anywhere."""
    names = [line["file"] for line in lines if isinstance(line.get("file"), str) and "\0" not in line["file"]]
    home = folder.resolve()
    inside = {
        parent: (folder / parent).resolve().is_relative_to(home)
        for parent in {PurePath(name).parent for name in names}
    }
    for name in names:
        path = PurePath(name)
        if inside[path.parent] and path.name not in ("", "..", LIST):
            yield name


def _check_free(folder: Path) -> None:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:  # it is to be made
        return
    foreign = sorted(name for name in names if not name.startswith(".") or name == LIST)
    if foreign:
        raise OutputError(
            f"{folder} has other files ({foreign[0]}); "
            f"name a folder for the outputs alone, such as {folder / 'onnxplain'}"
        )
