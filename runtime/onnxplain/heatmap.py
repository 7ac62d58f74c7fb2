"""From raw maps to a heatmap in [0, 1] that lies on the picture: minmax(resize(ReLU(map)))."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.preprocessing import View
from onnxplain.products import product


def heatmap(
    maps: Sequence[NDArray[np.floating[Any]]],
    size: tuple[int, int],
    view: View | None = None,
    peaks: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Lay a layer's map, or the mean of several layers', over a picture.

    Each map goes through ReLU, is scaled to [0, 1] by its smallest and largest cell, and resized bilinearly
    (half-pixel centres, as OpenCV's INTER_LINEAR and ONNX's Resize have it); their mean is scaled to [0, 1]
    once more. For one map that is minmax(resize(ReLU(map))); for several, what grad-cam does.

    Parameters
    ----------
    maps
        One map [h, w] a layer; each may have its own size.
    size
        Height and width of the picture.
    view
        The part of the picture that the maps cover; all of it by default.
    peaks
        What counts as 1 in each map, in place of its own smallest and largest cell: then 0 is 0, and the
        heatmaps of several classes can be compared. Not smaller than the map's largest cell.

    Returns
    -------
    ndarray
        float32 [height, width] in [0, 1]; 0 outside the view. All 0 if the map is constant.
    """
    height, width = size
    view = view or View(0, 0, height, width)
    rows, columns = pixels_seen(view, size)
    inside = np.s_[rows.start : rows.stop, columns.start : columns.stop]
    placed = np.zeros(size, np.float32)
    if peaks is None:
        layers = [_resize(minmax(np.maximum(map_, 0)), view, rows, columns) for map_ in maps]
        minmax(sum(layers[1:], layers[0]), out=placed[inside])
    else:
        for map_, peak in zip(maps, peaks, strict=True):
            if peak > 0:
                share = np.maximum(map_, 0) / (peak * len(maps))
                placed[inside] += _resize(share.astype(np.float32), view, rows, columns)
    return placed


# A map of more cells along a side is resized from the two neighbours of each pixel: the weights of all cells
# would be zeros but for two in a row.
_FEW_CELLS = 64


@lru_cache(maxsize=16)  # the pictures of a stream have few sizes
def interpolation(cells: int, start: float, extent: float, pixels: range) -> NDArray[np.float32]:
    """Return the bilinear weights, float32 [pixels, cells], of a map's cells at the centres of some pixels.

    They are shared, and can't be written to.

    Parameters
    ----------
    cells
        How many the map has along a side.
    start, extent
        What the map covers of the picture's side.
    pixels
        Which of the picture's pixels.
    """
    weights = bilinear(_places(cells, start, extent, pixels), cells)
    weights.flags.writeable = False
    return weights


def bilinear(places: NDArray[np.float64], cells: int) -> NDArray[np.float32]:
    """Return the bilinear weights, float32 [places, cells], of cells at places among them, counted from 0."""
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(places[:, None] - np.arange(cells)), 0)
    return weights.astype(np.float32)


def _places(cells: int, start: float, extent: float, pixels: range) -> NDArray[np.float64]:
    """Return where the centres of pixels lie among the cells of a map that covers [start, start + extent)."""
    return np.clip((np.array(pixels) + 0.5 - start) / extent * cells - 0.5, 0, cells - 1)


def pixels_seen(view: View, size: tuple[int, int]) -> tuple[range, range]:
    """Return which rows and columns of a picture of a height and width lie in a view."""
    return _pixels_inside(view.top, view.height, size[0]), _pixels_inside(view.left, view.width, size[1])


def _pixels_inside(start: float, extent: float, length: int) -> range:
    """Return the pixels of a picture's side whose centres lie in [start, start + extent)."""
    # A centre that lies on an edge is within rounding of it, on either side.
    first = max(0, int(np.ceil(start - 0.5 - 1e-9)))
    last = min(length, int(np.ceil(start + extent - 0.5 - 1e-9)))
    return range(first, max(first, last))


def _resize(map_: NDArray[np.float32], view: View, rows: range, columns: range) -> NDArray[np.float32]:
    """Sample a map, stretched over the view, at pixel centres. One pass, wherever the view begins."""
    if max(map_.shape) > _FEW_CELLS:
        across = _between_rows(np.ascontiguousarray(map_.T), view.left, view.width, columns)
        return _between_rows(np.ascontiguousarray(across.T), view.top, view.height, rows)
    y = interpolation(map_.shape[0], view.top, view.height, rows)
    x = interpolation(map_.shape[1], view.left, view.width, columns)
    return np.asarray(product(y, product(map_, x.T)), np.float32)


def _between_rows(
    map_: NDArray[np.float32], start: float, extent: float, pixels: range
) -> NDArray[np.float32]:
    """Sample the rows of a map that covers [start, start + extent) at the centres of some pixels."""
    cells = len(map_)
    places = _places(cells, start, extent, pixels)
    first = np.minimum(places.astype(np.intp), max(0, cells - 2))
    share = (places - first).astype(np.float32)[:, None]
    sampled: NDArray[np.float32] = map_[first] * (1 - share)
    sampled += map_[np.minimum(first + 1, cells - 1)] * share
    return sampled


def minmax(values: NDArray[np.floating[Any]], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Scale to [0, 1], into `out` if it is given; all 0 where the values are all the same, or there are none.

    One more array of a picture's size costs as much as the resize: together they don't fit the cache.
    """
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    scaled = np.empty(values.shape, np.float32) if out is None else out
    if high > low:
        # Doubles may be too small for floats before they are divided.
        shifted = np.subtract(values, low, out=scaled if values.dtype == np.float32 else None)
        np.divide(shifted, high - low, out=scaled)
    else:
        scaled[...] = 0
    return scaled
