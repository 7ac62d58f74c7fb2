"""Which pictures a call names, and what the files made of them are called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from onnxplain.cli._text import printable
from onnxplain.errors import ImageError
from onnxplain.files import is_same_file
from onnxplain.outputs import written_by

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Picture:
    """A picture to explain, and the start of the names of the files made of it, relative to their folder."""

    path: Path
    stem: Path


def find_pictures(paths: Sequence[Path], output: Path) -> list[Picture]:
    """Return the pictures that `paths` name.

    A file is taken whatever its extension. A folder is searched with the folders in it, in sorted order, for
    files with one of `EXTENSIONS`; hidden files are left out. So are folders with our outputs, which is said,
    but of `output`, where those of this call go. No two pictures have the same stem, on file systems that
    ignore case too.

    Raises
    ------
    ImageError
        A folder has no pictures, or our outputs.
    """
    taken: set[str] = set()
    pictures = []
    for path in paths:
        if author := written_by(path):
            raise ImageError(f"{path} has the outputs of `onnxplain {author}`, and no pictures to explain")
        found = list(_search(path, output)) if path.is_dir() else [(path, Path(path.name))]
        if not found:
            raise ImageError(f"no pictures in {path}: it has no files with {', '.join(sorted(EXTENSIONS))}")
        pictures += [Picture(file, _free(_stem(name), taken)) for file, name in found]
    return pictures


def overlay_name(stem: Path, index: int, label: str | None) -> Path:
    """Return the name of an overlay: the picture's, the class's index, and its label where it has another."""
    words = re.sub(r"[^\w]+", "-", label or "").strip("-")
    suffix = "" if words in ("", str(index)) else f"-{_cut(words, 60)}"
    return stem.with_name(f"{stem.name}.{index}{suffix}.png")


def _search(folder: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    for root, folders, names in os.walk(folder):
        here = Path(root)
        if author := written_by(here):
            if not is_same_file(here, output):
                click.echo(f"Left out: {printable(str(here))}, the outputs of `onnxplain {author}`", err=True)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith("."):
                yield here / name, (here / name).relative_to(folder)


def _stem(name: Path) -> Path:
    return name.with_name(_cut(name.stem, 120) or "picture")


def _cut(text: str, size: int) -> str:
    """Return the start of `text` that takes at most `size` bytes."""
    return text.encode("utf-8", "ignore")[:size].decode("utf-8", "ignore")


def _free(stem: Path, taken: set[str]) -> Path:
    """Return `stem`, numbered if it is taken, and take it."""
    free, number = stem, 1
    while str(free).casefold() in taken:
        number += 1
        free = stem.with_name(f"{stem.name}-{number}")
    taken.add(str(free).casefold())
    return free
