"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from uuid import uuid4

from onnxplain.errors import OnnxplainError, OutputError

_ASIDE = ".onnxplain-"
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
    from tempfile import TemporaryDirectory  # with shutil and its archives, which other commands don't need

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
    with TemporaryDirectory(prefix=_ASIDE, dir=parent) as aside:
        draft, old = Path(aside) / "new", Path(aside) / "old"
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
