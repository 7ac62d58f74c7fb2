"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from hashlib import file_digest
from itertools import chain, count
from pathlib import Path
from uuid import uuid4

from onnxplain.errors import OnnxplainError, OutputError

if sys.platform != "win32":
    import fcntl

_ASIDE, _LOCK = ".onnxplain-", "lock"
_DRAFT = re.compile(r"\.onnxplain-[0-9a-f]{32}")


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside the file, then move it into place.

    Raises
    ------
    OSError
        The folder doesn't exist, or isn't writable.
    """
    path = Path(path)
    aside = path.parent / f"{_ASIDE}{uuid4().hex}"
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, all of it at once; the last line there may have been cut off."""
    with path.open("ab+") as file:
        whole = file.seek(0, os.SEEK_END) == 0
        if not whole:
            file.seek(-1, os.SEEK_END)
            whole = file.read(1) == b"\n"
        file.write(f"{'' if whole else chr(10)}{line}\n".encode())


def remove_drafts(folder: Path) -> None:
    """Remove what `write_atomically` leaves in a folder where the process is killed."""
    for path in folder.glob(f"{_ASIDE}*"):
        if _DRAFT.fullmatch(path.name):
            path.unlink(missing_ok=True)


def stamp(path: Path) -> tuple[int, int]:
    """Return a file's size and the time of its last change, in ns: another file in its place has others."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return found.st_size, found.st_mtime_ns


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes: the same on all machines."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def check_apart(output: Path, inputs: Iterable[Path | None]) -> None:
    """Check that a file to be written is none of those that are read, whatever links and names lead to them.

    Raises
    ------
    OutputError
        It is one.
    """
    for path in inputs:
        if path is not None and is_same_file(output, path):
            raise OutputError(
                f"{output} is read here, and would be replaced; "
                f"write to another file, such as {_free_name(output)}"
            )


def is_same_file(one: Path, other: Path) -> bool:
    """Say whether two paths lead to one file or folder; no where one of them leads nowhere."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def _free_name(path: Path) -> Path:
    """Return the name of an explainer of a file, which no file has yet."""
    numbers = chain([""], (f"-{number}" for number in count(2)))
    names = (path.with_name(f"{path.stem}.explainer{number}{path.suffix}") for number in numbers)
    return next(name for name in names if not name.exists())


@contextmanager
def folder_aside(destination: Path) -> Iterator[Path]:
    """Give an empty folder beside a destination, for its draft; nothing of it is left at the end.

    What processes left there that were killed is removed first.

    Raises
    ------
    OSError
        The folder can't be made.
    """
    import shutil  # with its archives, which other commands don't need

    remove_leftovers(destination)
    aside = destination.with_name(f"{_aside(destination)}{uuid4().hex[:8]}")
    try:  # from before it is there: a signal may come at any moment
        aside.mkdir(0o700)
        with _held(aside):
            draft = aside / "draft"
            draft.mkdir()
            yield draft
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(destination: Path) -> None:
    """Remove what `folder_aside` left beside a destination as its process was killed."""
    import shutil

    for aside in destination.parent.glob(f"{escape(_aside(destination))}*"):
        with suppress(OSError):  # it is held, is none of ours, or has just gone
            _take(aside / _LOCK)
            shutil.rmtree(aside)


def _aside(destination: Path) -> str:
    """Return how the names of folders beside a destination begin."""
    return f"{_ASIDE}{destination.name[:40]}-"


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder as long as this process lives, by a file in it that is open and locked."""
    path = folder / _LOCK
    if sys.platform == "win32":  # no one removes a file there that is open
        with path.open("wb"):
            yield
    else:
        with path.with_suffix(".new").open("wb") as lock:
            with suppress(OSError):  # a file system without locks: there no one takes the folder for left
                fcntl.flock(lock, fcntl.LOCK_EX)
            Path(lock.name).rename(path)  # it is locked when it is first seen
            yield


def _take(lock: Path) -> None:
    """Check that no process holds a folder by its lock; raise an OSError where one does."""
    if sys.platform == "win32":
        lock.unlink()
    else:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def folder_moved_into_place(destination: Path) -> Iterator[Path]:
    """Give an empty folder aside, and move it to its destination, in place of a folder that is there.

    If the block raises, all is as before.

    Yields
    ------
    Path
        Where to write the files.

    Raises
    ------
    OnnxplainError
        The folder that the destination is to stand in doesn't exist, or the destination can't be replaced.
    OSError
        It can't be written to.
    """
    destination = destination.resolve()
    parent = destination.parent
    if not parent.is_dir():
        raise OnnxplainError(f"there is no folder {parent} to put {destination.name} in; make it")
    if Path.cwd().is_relative_to(destination):
        raise OnnxplainError(
            f"{destination} is to be replaced, but it is or holds the current folder; name another folder"
        )
    if os.path.ismount(destination):
        raise OnnxplainError(f"{destination} is a mount point, which can't be replaced; name a folder in it")
    with folder_aside(destination) as aside:
        draft, old = aside / "new", aside / "old"
        draft.mkdir()
        yield draft
        try:
            if destination.exists():
                destination.rename(old)
            draft.rename(destination)
        except BaseException:
            if old.exists() and not destination.exists():
                old.rename(destination)
            raise
