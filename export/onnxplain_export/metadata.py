"""What an `.onnx` file's metadata say of its pictures and classes.

The keys are those of the ONNX standard for images, which Windows ML and Custom Vision write, those of
ultralytics, and the usual names for a list of classes. A file may be hostile: what can't be read is left out,
and said.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxplain_export.evidence import Evidence

_LABELS = ("names", "labels", "classes", "class_names", "class_labels", "id2label")
_LONGEST = 10_000_000

_COLORS = {"gray8": "L", "rgb8": "RGB", "rgba8": "RGB", "bgr8": "BGR", "bgra8": "BGR"}
# Mean and standard deviation, of pixels in [0, 1], that bring these to the range.
_RANGES = {
    "nominalrange_0_255": (0.0, 1 / 255),
    "normalized_0_1": (0.0, 1.0),
    "normalized_1_1": (0.5, 0.5),
    "nominalrange_16_235": (-16 / 219, 1 / 219),
}


@dataclass(frozen=True)
class Labels:
    """The classes' names, and where they were found."""

    names: tuple[str, ...]
    source: str


def said_of_pictures(metadata: Mapping[str, str], channels: int) -> list[Evidence]:
    """Return what the metadata say of how pictures become inputs."""
    found = []
    lower = {key.lower(): (key, value) for key, value in metadata.items()}
    key, value = lower.get("image.bitmappixelformat", ("", ""))
    color = _COLORS.get(value.strip().lower())
    if color is not None and (color == "L") == (channels == 1):
        found.append(Evidence({"color": color}, f"the file's metadata ({key}: {value})", is_stated=True))
    key, value = lower.get("image.nominalpixelrange", ("", ""))
    if value.strip().lower() in _RANGES:
        mean, std = _RANGES[value.strip().lower()]
        values = {"mean": (mean,) * channels, "std": (std,) * channels}
        found.append(Evidence(values, f"the file's metadata ({key}: {value})", is_stated=True))
    return [*found, *_of_ultralytics(metadata, channels)]


def size_said(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the height and width that ultralytics writes, for files that leave them open."""
    sides = _literal(metadata.get("imgsz", ""))
    if isinstance(sides, int) and not isinstance(sides, bool):
        sides = [sides, sides]
    if isinstance(sides, Sequence) and len(sides) == 2 and all(type(side) is int for side in sides):
        return sides[0], sides[1]
    return None


def labels_said(metadata: Mapping[str, str], num_classes: int) -> tuple[Labels | None, str | None]:
    """Return the classes' names, and a remark where the metadata have names that can't be theirs."""
    remark = None
    lower = {key.lower(): key for key in metadata}
    for key in (lower[name] for name in _LABELS if name in lower):
        names = _names(metadata[key])
        if names is not None and len(names) == num_classes:
            return Labels(names, f"the file's metadata ({key})"), None
        held = "no list of names" if names is None else f"{len(names)} names"
        remark = f"the file's metadata have {held} under {key!r}, and there are {num_classes} classes"
    return None, remark


def _of_ultralytics(metadata: Mapping[str, str], channels: int) -> list[Evidence]:
    """Return ultralytics' own transform of a classifier: the shorter side, the centre, in [0, 1]."""
    if metadata.get("author") != "Ultralytics" or metadata.get("task") != "classify":
        return []
    size = size_said(metadata)
    values: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    if size is not None:
        values |= {"resize": min(size), "crop": "center"}
    return [Evidence(values, "ultralytics' own transform, whose file this is", is_stated=True)]


def _names(text: str) -> tuple[str, ...] | None:
    """Read names by index: a list or an object, in JSON or as Python writes it; or lines; or with commas."""
    found = _literal(text)
    if isinstance(found, Mapping):
        try:
            by_index = {int(index): name for index, name in found.items()}
        except (TypeError, ValueError):
            return None
        found = [by_index.get(index) for index in range(len(by_index))]
    if isinstance(found, (list, tuple)):
        return tuple(found) if found and all(isinstance(name, str) for name in found) else None
    if found is not None:
        return None
    separator = "\n" if "\n" in text.strip() else ","
    names = [name.strip() for name in text.strip().split(separator)]
    return tuple(names) if all(names) else None


def _literal(text: str) -> Any:
    """Return what a text in JSON or in Python's notation stands for; None where it is neither."""
    if len(text) > _LONGEST:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None
