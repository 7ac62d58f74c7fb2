"""Does a heatmap show where the thing is? Metrics against boxes, and the files that boxes come in."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from onnxplain.boxes import Box
from onnxplain.errors import BoxesError

_COLUMNS = ("file", "x0", "y0", "x1", "y1")


class Region(NamedTuple):
    """A box as people draw it, in pixels of the picture and fractions of them: x0 to x1, and y0 to y1."""

    x0: float
    y0: float
    x1: float
    y1: float


class Annotation(NamedTuple):
    """A box, the picture's file as the boxes' file names it, and the class, if it names one."""

    file: str
    region: Region
    label: str | int | None


def pointing_game(heatmap: NDArray[np.float32], regions: Sequence[Region], *, tolerance: float = 0) -> float:
    """Say whether a heatmap's hottest pixel lies in a box; more is better.

    The pointing game (Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016) is the
    share of the pictures in which it does. The paper lets it lie 15 pixels beside the object.

    Parameters
    ----------
    heatmap
        [H, W], on the whole picture. Of several hottest pixels the first counts; where all is 0, none does.
    regions
        The boxes.
    tolerance
        How many pixels from a box still count.

    Returns
    -------
    float
        0 or 1.
    """
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    if not heatmap[row, column] > 0:
        return 0.0
    y, x = row + 0.5, column + 0.5
    away = [math.hypot(max(one.x0 - x, 0, x - one.x1), max(one.y0 - y, 0, y - one.y1)) for one in regions]
    return float(min(away) <= tolerance)


def energy_in_boxes(heatmap: NDArray[np.float32], regions: Sequence[Region]) -> float:
    r"""Return the share of the heat that lies in the boxes; more is better.

    The energy-based pointing game (Wang et al., "Score-CAM", CVPR Workshops 2020, section 4.3):

    .. math:: \sum_{(x, y) \in \mathrm{boxes}} L_{xy} \Big/ \sum_{(x, y)} L_{xy}

    Parameters
    ----------
    heatmap
        L, [H, W], on the whole picture; 0 where all of it is.
    regions
        The boxes: a pixel is inside if its centre is, and counts once.
    """
    total = float(heatmap.sum(dtype=np.float64))
    y, x = (np.arange(side) + 0.5 for side in heatmap.shape)
    inside = np.zeros(heatmap.shape, np.bool_)
    for x0, y0, x1, y1 in regions:
        inside |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return float(heatmap[inside].sum(dtype=np.float64)) / total if total > 0 else 0.0


def box_overlap(found: Sequence[Box], regions: Sequence[Region]) -> float:
    """Return how well a heatmap's box fits the nearest of the boxes, by intersection over union.

    As the CAM paper localises (Zhou et al., CVPR 2016, section 3.2): the heatmap's box is that of its largest
    connected region above 20 % of its maximum.

    Parameters
    ----------
    found
        `Explanation.boxes(0.2)`, the largest region's first; 0 without any.
    regions
        The boxes; the one that fits best counts.
    """
    if not found:
        return 0.0
    return max(intersection_over_union(Region(*found[0]), one) for one in regions)


def intersection_over_union(a: Region, b: Region) -> float:
    """Return the area that two boxes share over the area that they cover."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    shared = max(width, 0) * max(height, 0)
    return shared / (_size(a) + _size(b) - shared)


def read_boxes(path: Path) -> list[Annotation]:
    """Read boxes from a file: CSV, or JSON in COCO's format where its name ends in `.json`.

    A CSV file has the columns file, x0, y0, x1 and y1, in pixels, and may have class: a label, or an index.
    In COCO's format a class is the category's name.

    Raises
    ------
    BoxesError
        It can't be read, or is broken; the message says where.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise BoxesError(f"can't read {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    read = _read_coco if path.suffix.lower() == ".json" else _read_csv
    try:
        annotations = list(read(text))
    except BoxesError as error:
        raise BoxesError(f"{path}: {error}") from None
    if not annotations:
        raise BoxesError(f"{path} has no boxes")
    return annotations


def assign(annotations: Sequence[Annotation], pictures: Sequence[Path]) -> dict[int, list[Annotation]]:
    """Return the boxes of each picture that has any, by its number.

    A box's file is the picture whose path ends as the file's name does: ``b.jpg`` and ``a/b.jpg`` are both
    ``photos/a/b.jpg``. No file is opened.

    Raises
    ------
    BoxesError
        A box's file is none of the pictures, or several of them.
    """
    by_name: dict[str, list[int]] = {}
    for number, picture in enumerate(pictures):
        by_name.setdefault(picture.name, []).append(number)
    assigned: dict[int, list[Annotation]] = {}
    for one in annotations:
        parts = tuple(part for part in PurePosixPath(one.file.replace("\\", "/")).parts if part != ".")
        named = [
            number
            for number in by_name.get(parts[-1] if parts else "", [])
            if pictures[number].parts[-len(parts) :] == parts
        ]
        if len(named) != 1:
            problem = f"names {len(named)} of the pictures" if named else "is not among the pictures"
            raise BoxesError(f"there are boxes for {one.file}, which {problem}")
        assigned.setdefault(named[0], []).append(one)
    return assigned


def _read_csv(text: str) -> Iterator[Annotation]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        lacks = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
        if lacks:
            raise BoxesError(
                f"there is no column {lacks[0]}; the first line names file, x0, y0, x1 and y1, and may "
                "name class"
            )
        for row in rows:
            where = f"line {rows.line_num}"
            if None in row or None in row.values():
                raise BoxesError(f"{where} has not as many cells as there are columns")
            if not row["file"].strip():
                raise BoxesError(f"{where} names no file")
            label = (row.get("class") or "").strip()
            region = _region([row[name] for name in _COLUMNS[1:]], where)
            yield Annotation(row["file"].strip(), region, _class(label))
    except csv.Error as error:
        raise BoxesError(f"line {rows.line_num} is no CSV: {error}") from None


def _class(label: str) -> str | int | None:
    # Not isdigit: there are digits, such as superscripts, that int doesn't read.
    return int(label) if label.isdecimal() and len(label) < 10 else label or None


def _read_coco(text: str) -> Iterator[Annotation]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BoxesError(f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise BoxesError("COCO's format is an object with images and annotations")
    files = _names(content.get("images"), "images", "file_name")
    categories = _names(content.get("categories", []), "categories", "name")
    for number, one in enumerate(_objects(content.get("annotations"), "annotations")):
        where = f"annotations[{number}]"
        image, category, box = one.get("image_id"), one.get("category_id"), one.get("bbox")
        if not _is_id(image) or image not in files:
            raise BoxesError(f"{where}.image_id is none of the images")
        label = categories.get(category) if _is_id(category) else None
        if categories and label is None:
            raise BoxesError(f"{where}.category_id is none of the categories")
        if not isinstance(box, list) or len(box) != 4:
            raise BoxesError(f"{where}.bbox is x, y, width and height")
        x, y, width, height = (_number(value, where) for value in box)
        region = _region([x, y, x + width, y + height], where)
        yield Annotation(files[image], region, label)


def _names(values: Any, key: str, name: str) -> dict[int | str, str]:
    """Return the names of COCO's images or categories by their ids."""
    names: dict[int | str, str] = {}
    for number, one in enumerate(_objects(values, key)):
        if not _is_id(one.get("id")) or not isinstance(one.get(name), str) or not one[name]:
            raise BoxesError(f"{key}[{number}] has no id and {name}")
        names[one["id"]] = one[name]
    return names


def _objects(values: Any, key: str) -> list[Mapping[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise BoxesError(f"{key} is a list of objects")
    return values


def _is_id(value: object) -> TypeGuard[int | str]:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _region(values: Sequence[object], where: str) -> Region:
    region = Region(*(_number(value, where) for value in values))
    if not (region.x0 < region.x1 and region.y0 < region.y1):
        raise BoxesError(f"{where} is an empty box: x0 < x1 and y0 < y1 must hold")
    return region


def _number(value: object, where: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BoxesError(f"{where} has {str(value)[:40]!r} where a number belongs")
    return number


def _size(region: Region) -> float:
    return (region.x1 - region.x0) * (region.y1 - region.y0)
