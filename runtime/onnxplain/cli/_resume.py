"""What `explain` notes of each picture that is done, so that `explain --resume` needn't do it again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from onnxplain import __version__
from onnxplain.boxes import Box
from onnxplain.cli._explained import Asked, Explained, Finding
from onnxplain.cli._pictures import Picture
from onnxplain.cli._report import IMAGES
from onnxplain.errors import OutputError
from onnxplain.files import stamp

if TYPE_CHECKING:
    from onnxplain import Explainer
    from onnxplain.outputs import Note, OutputFolder

_Kind = TypeVar("_Kind")

_IMAGE = re.compile(rf"data:image/webp;base64,[A-Za-z0-9+/]+=*|{IMAGES}/[0-9a-f]{{32}}\.webp")


def settings_of(explainer: Explainer, asked: Asked) -> dict[str, Any]:
    """Return all that what is noted depends on, but for the picture itself, as JSON gives it back."""
    settings = {
        "onnxplain": __version__,
        "model": [str(asked.model), *stamp(asked.model)],
        "providers": explainer.providers,
        "method": asked.methods,
        "classes": asked.top or asked.targets,
        **asked.options,
        "size": asked.size,
        "colormap": asked.colormap,
        "overlays": asked.overlays,
    }
    return dict(json.loads(json.dumps(settings)))


def check_settings(folder: OutputFolder) -> None:
    """Check that an earlier call was asked the same.

    Raises
    ------
    OutputError
        It was not.
    """
    before = folder.earlier_settings
    for name, value in folder.settings.items():
        if before is not None and before.get(name) != value:
            change = (
                "" if name == "model" else f": {json.dumps(before.get(name))} then, {json.dumps(value)} now"
            )
            raise OutputError(
                f"{folder.path} was made with another {name.replace('_', ' ')}{change}; "
                "leave --resume out to replace what is there, or name another folder"
            )


def note_of(done: Explained) -> Note:
    """Return what is noted of a picture that is done."""
    return {
        "path": str(done.picture.path),
        "stem": done.picture.stem.as_posix(),
        "stamp": done.stamp,
        "size": done.size,
        "seen": done.seen,
        "thumbnail": done.thumbnail,
        "findings": [asdict(one) for one in done.findings],
    }


def done_before(folder: OutputFolder, pictures: Sequence[Picture], asked: Asked) -> list[Explained]:
    """Return the pictures that an earlier call has done, and of which all that it made is there.

    One that has another file since, or whose outputs would have other names now, is none of them.
    """
    wanted = {(str(one.path), one.stem.as_posix()): one for one in pictures}
    found = {}
    for note in folder.earlier_notes:
        picture = wanted.get((str(note.get("path")), str(note.get("stem"))))
        done = picture and _read(note, picture)
        if done and _is_whole(done, folder, asked):
            found[done.picture.stem] = done
    return [found[one.stem] for one in pictures if one.stem in found]


def files_of(done: Explained) -> set[str]:
    """Return the outputs that a picture has."""
    named = {one.overlay for one in done.findings} | {one.heat for one in done.findings} | {done.thumbnail}
    return {name for name in named if name is not None and not name.startswith("data:")}


def _is_whole(done: Explained, folder: OutputFolder, asked: Asked) -> bool:
    files = files_of(done)
    images = [done.thumbnail, *(one.heat for one in done.findings)]
    return (
        done.stamp == stamp(done.picture.path)
        and all((one.overlay is not None) == asked.overlays for one in done.findings)
        and (asked.thumbnails is None or None not in images)
        and files <= folder.earlier_files
        and all((folder.path / name).is_file() for name in files)
    )


def _read(note: Note, picture: Picture) -> Explained | None:
    """Read a note; None where it is none of ours: a folder may come from anywhere."""
    try:
        stamp, size = _pair(note["stamp"]), _pair(note["size"])
        findings = [_read_finding(one) for one in note["findings"]]
        thumbnail, seen = _image(note["thumbnail"]), _box(note["seen"])
        return Explained(picture, stamp, size, seen, thumbnail, findings) if findings else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _read_finding(fields: Mapping[str, Any]) -> Finding:
    return Finding(
        _of(int, fields["rank"]),
        _of(int, fields["index"]),
        _or_none(str, fields["label"]),
        _number(fields["logit"]),
        None if fields["probability"] is None else _number(fields["probability"]),
        _of(str, fields["method"]),
        _of(str, fields["layer"]),
        None if fields["peak"] is None else _pair(fields["peak"]),
        [_box(box) for box in fields["boxes"]],
        _or_none(str, fields["overlay"]),
        _image(fields["heat"]),
    )


def _of(kind: type[_Kind], value: object) -> _Kind:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _or_none(kind: type[_Kind], value: object) -> _Kind | None:
    return None if value is None else _of(kind, value)


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _pair(values: Sequence[object]) -> tuple[int, int]:
    first, second = (_of(int, value) for value in values)
    return first, second


def _box(sides: Sequence[object]) -> Box:
    return Box(*(_of(int, side) for side in sides))


def _image(url: object) -> str | None:
    if url is not None and not _IMAGE.fullmatch(_of(str, url)):
        raise ValueError
    return None if url is None else str(url)
