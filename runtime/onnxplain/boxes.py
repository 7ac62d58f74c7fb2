"""Boxes around the hot parts of a heatmap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxplain.opencv import cv2


class Box(NamedTuple):
    """A box in pixels: columns x0 to x1 and rows y0 to y1, the ends not included."""

    x0: int
    y0: int
    x1: int
    y1: int


def find_boxes(heatmap: NDArray[np.float32], threshold: float = 0.2) -> list[Box]:
    """Return the boxes of the connected regions that are hotter than a fraction of the maximum.

    The CAM paper localises an object so: the region above 20 % of the map's maximum, and the box of its
    largest connected component, which is the first box here.

    Parameters
    ----------
    heatmap
        float32 [H, W], at least 0.
    threshold
        Fraction of the maximum, in [0, 1).

    Returns
    -------
    list of Box
        The region with the most pixels first; empty for a blank heatmap.

    Raises
    ------
    ValueError
        The threshold isn't in [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and below 1, not {threshold}")
    hot = (heatmap > threshold * heatmap.max(initial=0)).astype(np.uint8)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(hot, connectivity=8)
    regions = sorted(statistics[1:].tolist(), key=lambda region: -region[cv2.CC_STAT_AREA])
    return [Box(x, y, x + width, y + height) for x, y, width, height, _ in regions]
