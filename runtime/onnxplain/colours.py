"""From the numbers of a picture, of any depth, to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import ImageError
from onnxplain.opencv import cv2

RGB = NDArray[np.uint8]

_AT_ONCE = 1 << 18
"""Pixels that are converted at once."""


def to_rgb(pixels: NDArray[Any], name: str, white: float | None = None, premultiplied: bool = False) -> RGB:
    """Return pixels in grey, RGB or RGBA as RGB, uint8 [H, W, 3]; alpha is laid over white.

    Parameters
    ----------
    pixels
        [H, W] or [H, W, 1, 3 or 4]; uint8, uint16, or floats in [0, 1].
    name
        What an error calls them.
    white
        The number that stands for white; by default the largest of the dtype, of floats 1.
    premultiplied
        Whether the colours are multiplied by alpha already.

    Raises
    ------
    ImageError
        They are no picture.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"{name} has shape {list(pixels.shape)}; a picture is [H, W] or [H, W, 3 or 4], channels last"
        )
    if pixels.size == 0:
        raise ImageError(f"{name} has no pixels: its shape is {list(pixels.shape)}")
    white = white_of(pixels, name) if white is None else white
    if pixels.dtype == np.uint8 and pixels.shape[2] < 4 and white == 255:
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def convert(part: NDArray[Any]) -> RGB:
        levels = to_levels(part, white)
        return over_white(levels[..., :3], levels[..., 3:] if part.shape[2] == 4 else None, premultiplied)

    return in_parts(pixels, convert)


def in_parts(pixels: NDArray[Any], convert: Callable[[NDArray[Any]], RGB]) -> RGB:
    """Convert [H, W, channels] to [H, W, 3], some rows at a time: what is in floats stays small."""
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    rows = max(1, _AT_ONCE // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        rgb[top : top + rows] = convert(pixels[top : top + rows])
    return rgb


def to_levels(numbers: NDArray[Any], white: float) -> NDArray[np.float32]:
    """Return numbers from 0 to `white` as floats from 0 to 255."""
    levels = numbers.astype(np.float32)
    levels *= np.float32(255 / white)
    return levels


def over_white(
    colour: NDArray[np.float32], alpha: NDArray[np.float32] | None, premultiplied: bool = False
) -> RGB:
    """Lay colours [H, W, 1 or 3] over white, where there is an alpha [H, W, 1], all from 0 to 255; round."""
    if alpha is not None:
        colour = colour if premultiplied else colour * alpha / np.float32(255)
        colour = colour + np.float32(255) - alpha
    rounded = colour + np.float32(0.5)
    np.clip(rounded, 0, 255, out=rounded)
    return np.broadcast_to(rounded.astype(np.uint8), (*rounded.shape[:2], 3))


def turn(rgb: RGB, orientation: int) -> RGB:
    """Turn a picture upright: EXIF numbers the eight ways in which its first row and column may lie."""
    turned = cv2.transpose(rgb) if orientation >= 5 else rgb
    if orientation in _FLIPS:
        turned = cv2.flip(turned, _FLIPS[orientation])
    return np.asarray(turned, np.uint8)


_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
"""cv2.flip's codes, after a transposition from 5 on: 1 is left to right, 0 upside down, -1 both."""


def white_of(pixels: NDArray[Any], name: str) -> float:
    """Check the dtype and the values, and return the number that stands for white."""
    if pixels.dtype in (np.uint8, np.uint16):
        return int(np.iinfo(pixels.dtype).max)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ImageError(f"{name} has dtype {pixels.dtype}; a picture is uint8, uint16, or floats in [0, 1]")
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise ImageError(f"{name} has pixels that are NaN or infinite")
    if low < 0 or high > 1:
        raise ImageError(
            f"{name} has floats from {low:g} to {high:g}; floats must be in [0, 1] (or pass uint8, 0 to 255)"
        )
    return 1
