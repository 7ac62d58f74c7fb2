"""The data: handwritten digits at a known place in photographs, among fragments of other digits.

Each scene is an RGB picture of 96 x 96 pixels with exactly one whole digit. Its background is a crop of a
photograph; around it lie fragments of other digits, drawn with the same pen. A fragment is never taller or
wider than `LARGEST_FRAGMENT` pixels and a whole digit is always taller, so that each scene has one answer.

Digits and photographs are divided before any scene is made: no digit and no stretch of photograph of one
split is ever seen in another. Scene `i` of a split depends on `(seed, split, i)` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images

from onnxplain.opencv import cv2

Split = Literal["train", "validation", "test"]
Mask = NDArray[np.float32]
Corners = tuple[int, int, int, int]

SIZE = 96
SMALLEST_DIGIT = 32
LARGEST_DIGIT = 72
LARGEST_FRAGMENT = 27

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SPLIT_SEED = 20240
_HELD_OUT_DIGITS = {"validation": 200, "test": 400}
# Columns of china.jpg and of flower.jpg; each split has something busy and something calm.
_COLUMNS: dict[Split, tuple[slice, slice]] = {
    "train": (slice(0, 400), slice(240, 640)),
    "validation": (slice(400, 510), slice(0, 110)),
    "test": (slice(510, 640), slice(110, 240)),
}
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Scenes:
    """Scenes and the truth about them.

    Attributes
    ----------
    images
        uint8 [scenes, 96, 96, 3], RGB.
    labels
        int64 [scenes], the digit, 0 to 9.
    boxes
        int64 [scenes, 4], the digit's ``(x0, y0, x1, y1)`` in pixels; x1 and y1 lie just outside of it.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """Handwritten digits: images float32 [digits, 8, 8] in [0, 1], labels int64 [digits]."""

    images: Mask
    labels: NDArray[np.int64]


def make_scenes(split: Split, count: int, *, start: int = 0, seed: int = 0) -> Scenes:
    """Make the scenes `start` to `start + count` of a split.

    Parameters
    ----------
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    count
        How many scenes.
    start
        Number of the first one: scenes 0 to 20 are the same as 0 to 10 followed by 10 to 20.
    seed
        Another seed gives other scenes of the same digits.
    """
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    boxes = np.empty((count, 4), np.int64)
    for row in range(count):
        rng = np.random.default_rng([seed, _SPLITS.index(split), start + row])
        images[row], labels[row], boxes[row] = _scene(split, rng)
    return Scenes(images, labels, boxes)


@cache
def digits(split: Split) -> Digits:
    """Return the handwritten digits of a split: 1197 to train, 200 to validate, 400 to test."""
    data = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(data.target))
    ends = np.cumsum([_HELD_OUT_DIGITS["validation"], _HELD_OUT_DIGITS["test"]])
    validation, test, train = np.split(order, ends)
    chosen = {"train": train, "validation": validation, "test": test}[split]
    return Digits((data.images[chosen] / 16).astype(np.float32), data.target[chosen].astype(np.int64))


@cache
def photographs(split: Split) -> tuple[NDArray[np.uint8], ...]:
    """Return the stretches of scikit-learn's two sample photographs that a split's backgrounds come from."""
    return tuple(
        np.ascontiguousarray(photograph[:, columns])
        for photograph, columns in zip(load_sample_images().images, _COLUMNS[split], strict=True)
    )


def _scene(split: Split, rng: np.random.Generator) -> tuple[NDArray[np.uint8], int, Corners]:
    pool = digits(split)
    canvas = _background(split, rng)
    chosen = rng.integers(len(pool.labels))
    pen = rng.uniform(size=3).astype(np.float32)

    stroke = _whole(pool.images[chosen], rng)
    height, width = stroke.shape
    x, y = _corner(stroke, rng)
    box = (x, y, x + width, y + height)
    _paint(canvas, stroke, x, y, pen, rng)

    taken = [box]
    for _ in range(rng.integers(2, 6)):
        fragment = _fragment(pool.images[rng.integers(len(pool.labels))], rng)
        place = _free_corner(fragment, taken, rng)
        if place is None:
            continue
        x, y = place
        taken.append((x, y, x + fragment.shape[1], y + fragment.shape[0]))
        _paint(canvas, fragment, x, y, pen, rng)
    return np.rint(canvas * 255).astype(np.uint8), int(pool.labels[chosen]), box


def _background(split: Split, rng: np.random.Generator) -> Mask:
    """Crop a photograph, mirror it or not, and change its exposure."""
    photograph = photographs(split)[rng.integers(2)]
    side = rng.integers(64, min(130, *photograph.shape[:2]) + 1)
    y, x = (rng.integers(0, length - side + 1) for length in photograph.shape[:2])
    crop = photograph[y : y + side, x : x + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    resized = cv2.resize(np.ascontiguousarray(crop), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.clip(resized.astype(np.float32) / 255 * rng.uniform(0.6, 1.1), 0, 1)


def _draw(digit: Mask, size: float, rng: np.random.Generator) -> Mask:
    """Draw a digit, or a part of one, with smooth strokes; return its opacity, cut to where there is ink.

    `size` is how many pixels the eight cells of a digit's height become. The strokes are turned by up to 12
    degrees, slanted and stretched a little.
    """
    cell = size / 8
    angle, slant = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[rng.uniform(1.05, 1.4), slant], [0, 1]]) * cell
    side = int(cell * (max(digit.shape) * 1.6 + 3))
    centre = (np.array(digit.shape[::-1]) - 1) / 2
    affine = np.column_stack([linear, np.full(2, (side - 1) / 2) - linear @ centre])
    grey = cv2.warpAffine(digit, affine, (side, side), flags=cv2.INTER_CUBIC)
    ramp = np.clip((grey - 0.15) / 0.6, 0, 1)
    ink: Mask = ramp * ramp * (3 - 2 * ramp)
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _whole(digit: Mask, rng: np.random.Generator) -> Mask:
    """Draw a whole digit, taller than any fragment and no wider than `LARGEST_DIGIT`."""
    while True:
        stroke = _draw(digit, rng.uniform(38, 60), rng)
        if stroke.shape[0] >= SMALLEST_DIGIT and max(stroke.shape) <= LARGEST_DIGIT:
            return stroke


def _fragment(digit: Mask, rng: np.random.Generator) -> Mask:
    """Draw a part of a digit: 3 or 4 of its 8 rows and columns, with ink on at least a third of them."""
    while True:
        rows, columns = rng.integers(3, 5, size=2)
        y, x = rng.integers(0, 9 - rows), rng.integers(0, 9 - columns)
        part = digit[y : y + rows, x : x + columns]
        if part.mean() < 1 / 3:
            continue
        stroke = _draw(part, rng.uniform(32, 52), rng)
        if max(stroke.shape) <= LARGEST_FRAGMENT:
            return stroke


def _corner(stroke: Mask, rng: np.random.Generator) -> tuple[int, int]:
    height, width = stroke.shape
    return int(rng.integers(2, SIZE - 1 - width)), int(rng.integers(2, SIZE - 1 - height))


def _free_corner(stroke: Mask, taken: list[Corners], rng: np.random.Generator) -> tuple[int, int] | None:
    """Look for a place that touches nothing drawn so far; None after twenty failures."""
    height, width = stroke.shape
    for _ in range(20):
        x, y = _corner(stroke, rng)
        if all(
            x + width + 2 <= x0 or x1 + 2 <= x or y + height + 2 <= y0 or y1 + 2 <= y
            for x0, y0, x1, y1 in taken
        ):
            return x, y
    return None


def _paint(canvas: Mask, stroke: Mask, x: int, y: int, pen: Mask, rng: np.random.Generator) -> None:
    """Paint a stroke in a colour near the pen's that stands out from what lies below it."""
    height, width = stroke.shape
    below = canvas[y : y + height, x : x + width]
    dark = float((below @ _LUMINANCE).mean())
    colour = np.clip(pen + rng.uniform(-0.1, 0.1, size=3), 0, 1).astype(np.float32)
    contrast = rng.uniform(0.4, 0.65)
    bright = float(colour @ _LUMINANCE)
    if abs(bright - dark) < contrast:
        # Mix with white or with black, whichever is farther from the background, until the contrast is there.
        end = 1.0 if dark < 0.5 else 0.0
        aim = dark + contrast if dark < 0.5 else dark - contrast
        share = (aim - bright) / (end - bright) if end != bright else 0.0
        colour = colour + np.float32(np.clip(share, 0, 1)) * (np.float32(end) - colour)
    opacity = stroke[..., None] * np.float32(rng.uniform(0.85, 1))
    below += opacity * (colour - below)
