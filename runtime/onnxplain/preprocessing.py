"""From a picture to the network's input, as torchvision's evaluation transform does it on PIL pictures.

The resize is Pillow's (a separable filter that widens as the picture shrinks, rounded to whole levels after
each direction), but only the pixels that the crop keeps are computed. OpenCV's own INTER_AREA differs from it
by up to 3.8/255 (mean over a picture), enough to change predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onnxplain.manifest import Preprocessing
from onnxplain.opencv import cv2
from onnxplain.products import SMALL_PRODUCT

_OUTPUTS = 4
"""Outputs of a product of matrices: with more, it has more zeros; with fewer, there are more products."""
_AT_ONCE = 4_000_000
"""Multiplications after which the next columns are taken, so that what they work on stays in the cache."""


@dataclass(frozen=True)
class View:
    """The part of a picture that the network saw, in pixels of the picture (not always whole ones).

    It reaches beyond the picture where a small picture was padded.
    """

    top: float
    left: float
    height: float
    width: float


def preprocess(
    image: NDArray[np.uint8], spec: Preprocessing, size: tuple[int, int] | None = None
) -> tuple[NDArray[np.float32], View]:
    """Resize, crop, scale and normalise a picture.

    Parameters
    ----------
    image
        RGB, uint8 [H, W, 3].
    spec
        The manifest's preprocessing.
    size
        Height and width of the whole picture, where `image` is a reduction of it.

    Returns
    -------
    tensor
        float32 [channels, height, width].
    view
        Where in the picture the tensor lies.
    """
    size = size or (image.shape[0], image.shape[1])
    resized = _resized_size(size, spec)
    top, left = _crop_offset(resized[0], spec.height), _crop_offset(resized[1], spec.width)
    planes = _resize_and_crop(
        image, size, resized, (top, left), (spec.height, spec.width), spec.interpolation
    )
    if spec.color == "BGR":
        planes = planes[::-1]
    elif spec.color == "L":
        grey = cv2.cvtColor(np.ascontiguousarray(planes.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
        planes = np.asarray(grey, np.uint8)[None]
    tensor = planes.astype(np.float32, order="C")
    tensor /= 255
    tensor -= np.array(spec.mean, np.float32)[:, None, None]
    tensor /= np.array(spec.std, np.float32)[:, None, None]
    return tensor, view_of(size, spec)


def view_of(size: tuple[int, ...], spec: Preprocessing) -> View:
    """Return the part that the network sees of pictures of a height and width."""
    resized = _resized_size(size, spec)
    y, x = size[0] / resized[0], size[1] / resized[1]
    top, left = _crop_offset(resized[0], spec.height), _crop_offset(resized[1], spec.width)
    return View(top * y, left * x, spec.height * y, spec.width * x)


def enough_pixels(spec: Preprocessing) -> int | None:
    """Return how many pixels a reduced picture's shorter side must have; None where no reduction will do.

    A reduction that leaves 5.5 times the size after the resize moves the tensor's pixels by less than 0.2/255
    in the mean over a photograph; four times, by up to 0.3; three times, by up to 0.5.
    """
    if spec.interpolation == "nearest":
        return None
    resize = (spec.height, spec.width) if spec.resize is None else spec.resize
    return round(5.5 * (resize if isinstance(resize, int) else max(resize)))


def _resized_size(size: tuple[int, ...], spec: Preprocessing) -> tuple[int, int]:
    """Return the height and width of the whole picture after the resize."""
    if spec.resize is None:
        return spec.height, spec.width
    if isinstance(spec.resize, tuple):
        return spec.resize
    height, width = size
    longer = int(spec.resize * max(size) / min(size))
    return (spec.resize, longer) if height <= width else (longer, spec.resize)


def _crop_offset(size: int, crop: int) -> int:
    """Return where a centre crop begins: below 0 where the picture is the smaller, and is padded."""
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)


def _resize_and_crop(
    image: NDArray[np.uint8],
    whole: tuple[int, int],
    size: tuple[int, int],
    offset: tuple[int, int],
    crop: tuple[int, int],
    interpolation: str,
) -> NDArray[np.uint8]:
    """Return the crop [3, height, width] of the picture at `size`, black where it reaches beyond it."""
    rows, columns = (
        range(max(0, start), min(length, start + extent))
        for start, length, extent in zip(offset, size, crop, strict=True)
    )
    if interpolation == "nearest":
        y = _nearest(image.shape[0], size[0], rows)
        x = _nearest(image.shape[1], size[1], columns)
        inside = image[y[:, None], x].transpose(2, 0, 1)
    else:
        # Of an odd side, the last pixel of a reduction is half outside.
        y_scale, x_scale = (
            length / round(length / pixels) / resized
            for length, pixels, resized in zip(whole, image.shape, size, strict=False)
        )
        down = _windows(image.shape[0], y_scale, rows, interpolation)
        across = _windows(image.shape[1], x_scale, columns, interpolation)
        # Across, then down, as Pillow does. The picture is turned so that both work on whole rows; the second
        # time in single bytes, so that of each row all red comes first.
        seen = image[down.seen, across.seen]
        turned = _filter_rows(_transpose(seen).reshape(seen.shape[1], -1), across)
        filtered = _filter_rows(_transpose(turned).reshape(len(seen), -1), down)
        inside = filtered.reshape(len(rows), 3, len(columns)).transpose(1, 0, 2)
    if inside.shape[1:] == crop:
        return inside
    padded = np.zeros((3, *crop), np.uint8)
    y0, x0 = rows.start - offset[0], columns.start - offset[1]
    padded[:, y0 : y0 + len(rows), x0 : x0 + len(columns)] = inside
    return padded


def _nearest(length: int, resized: int, outputs: range) -> NDArray[np.intp]:
    """Return the input index nearest to the centre of each output."""
    return ((np.array(outputs) + 0.5) * (length / resized)).astype(np.intp)


@dataclass(frozen=True)
class _Kernel:
    """A resampling filter, and how far it reaches to each side, in input pixels when enlarging."""

    weights: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    reach: float


@dataclass(frozen=True)
class _Taps:
    """For each output, the first input that counts and the weights [outputs, taps] from there on."""

    first: NDArray[np.intp]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class _Windows:
    """A resize as products of small matrices: a window slides over the inputs, and gives a few outputs each.

    Parameters
    ----------
    seen
        The part of the picture's side that counts.
    step
        From one window to the next, in inputs.
    weights
        [windows, outputs, inputs], 0 for outputs that there are not.
    outputs
        Where each output of the resize is among those of all windows.
    """

    seen: slice
    step: int
    weights: NDArray[np.float32]
    outputs: NDArray[np.intp]


def _taps(length: int, scale: float, outputs: range, kernel: _Kernel) -> _Taps:
    """Return Pillow's weights for some outputs of a resize of `length` pixels, `scale` to an output."""
    stretch = max(scale, 1.0)
    centres = (np.array(outputs) + 0.5) * scale
    first = np.maximum(centres - kernel.reach * stretch + 0.5, 0).astype(np.intp)
    inputs = first[:, None] + np.arange(int(2 * kernel.reach * stretch) + 2)
    weights = kernel.weights((inputs + 0.5 - centres[:, None]) / stretch) * (inputs < length)
    return _Taps(first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def _filter_rows(rows: NDArray[np.uint8], windows: _Windows) -> NDArray[np.uint8]:
    """Return for each output the weighted sum of the rows [inputs, columns] that count, rounded."""
    weights = windows.weights
    overshoots = weights.min() < 0
    inputs = windows.step * (len(weights) - 1) + weights.shape[2]
    rows = rows[:inputs]
    filtered = np.empty((len(windows.outputs), rows.shape[1]), np.uint8)
    columns = max(1, min(_AT_ONCE // weights.size, SMALL_PRODUCT // weights[0].size))
    for left in range(0, rows.shape[1], columns):
        part = rows[:, left : left + columns]
        levels = np.empty((inputs, part.shape[1]), np.float32)
        levels[: len(part)], levels[len(part) :] = part, 0  # what lies beyond has no weight
        down, right = levels.strides
        # What sliding_window_view returns, in a tenth of its time.
        seen = np.ndarray(
            (*weights.shape[::2], part.shape[1]),
            np.float32,
            levels,
            strides=(windows.step * down, down, right),
        )
        sums = weights @ seen
        sums += 0.5
        if overshoots:
            np.clip(sums, 0, 255, out=sums)
        rounded = sums.astype(np.uint8).reshape(-1, part.shape[1])
        np.take(rounded, windows.outputs, axis=0, out=filtered[:, left : left + columns], mode="clip")
    return filtered


@lru_cache(maxsize=16)  # the pictures of a stream have few sizes
def _windows(length: int, scale: float, outputs: range, interpolation: str) -> _Windows:
    """Return the windows that compute some outputs of a resize of `length` pixels, `scale` to an output."""
    taps = _taps(length, scale, outputs, _KERNELS[interpolation])
    reach = taps.weights.shape[1]
    seen = slice(int(taps.first[0]), min(length, int(taps.first[-1]) + reach))
    step = max(1, int(_OUTPUTS * scale))
    window, start = np.divmod(taps.first - seen.start, step)
    place = np.arange(len(window)) - np.searchsorted(window, window)  # of an output in its window
    weights = np.zeros((window[-1] + 1, place.max() + 1, step - 1 + reach), np.float32)
    weights[window[:, None], place[:, None], start[:, None] + np.arange(reach)] = taps.weights
    return _Windows(seen, step, weights, window * weights.shape[1] + place)


def _transpose(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.transpose(image), np.uint8)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(x), 0)
    return weights


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic convolution kernel with a = -0.5, Pillow's."""
    a = -0.5
    x = np.abs(x)
    near: NDArray[np.float64] = ((a + 2) * x - (a + 3)) * x * x + 1
    far: NDArray[np.float64] = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS = {"bilinear": _Kernel(_triangle, 1.0), "bicubic": _Kernel(_cubic, 2.0)}
