"""A heatmap laid over its picture in colour."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onnxplain.opencv import cv2

Colormap = Literal["inferno", "magma", "plasma", "viridis", "turbo", "jet"]


def overlay(
    image: NDArray[np.uint8],
    heatmap: NDArray[np.float32],
    colormap: Colormap = "inferno",
    alpha: float = 0.8,
) -> NDArray[np.uint8]:
    """Blend a heatmap's colours into a picture, the more the hotter.

    A colour's weight is its heat times `alpha`, so where there is no heat the picture stays as it is. The
    default colour map is perceptually uniform: equal steps of heat look like equal steps, in print and to
    colour-blind readers too. `jet` isn't: it shows edges where there are none.

    Parameters
    ----------
    image
        RGB, uint8 [H, W, 3].
    heatmap
        float32 [H, W] in [0, 1].
    colormap
        Name of the colour map.
    alpha
        Weight of the colour at full heat, in [0, 1].

    Returns
    -------
    ndarray
        RGB, uint8 [H, W, 3].

    Raises
    ------
    ValueError
        The colour map is unknown, or alpha isn't in [0, 1].
    """
    if colormap not in get_args(Colormap):
        raise ValueError(f"unknown colour map {colormap!r}; there are {', '.join(get_args(Colormap))}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}")
    levels = np.asarray(cv2.convertScaleAbs(heatmap, alpha=255), np.uint8)
    colours = colours_of(levels, colormap)
    weight = heatmap * np.float32(alpha)
    return cv2.blendLinear(image, colours, 1 - weight, weight).astype(np.uint8, copy=False)


def colours_of(levels: NDArray[np.uint8], colormap: Colormap = "inferno") -> NDArray[np.uint8]:
    """Return the colours, RGB [H, W, 3], of levels of heat from 0 to 255, [H, W]."""
    return np.asarray(cv2.applyColorMap(levels, _table(colormap)), np.uint8)


@cache
def _table(colormap: Colormap) -> NDArray[np.uint8]:
    """Return the colours of all levels, RGB [256, 1, 3]: with a table OpenCV takes half the time."""
    code = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    levels = np.arange(256, dtype=np.uint8)[:, None]
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(levels, code), cv2.COLOR_BGR2RGB), np.uint8)
