"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from onnxplain.errors import OnnxplainError


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside the file, then move it into place.

    Raises
    ------
    OSError
        The folder doesn't exist, or isn't writable.
    """
    path = Path(path)
    aside = path.parent / f".onnxplain-{uuid4().hex}"
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


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
    with TemporaryDirectory(prefix=".onnxplain-", dir=parent) as aside:
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
