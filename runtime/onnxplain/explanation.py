"""What an explainer says about one picture and one class."""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.boxes import Box, find_boxes
from onnxplain.errors import ImageError
from onnxplain.files import write_atomically
from onnxplain.heatmap import heatmap
from onnxplain.images import Picture
from onnxplain.opencv import cv2
from onnxplain.overlay import Colormap, overlay
from onnxplain.preprocessing import View

_BOX_GRID = 1024
# OpenCV's own choice, runs of differences to the left, takes a fifth longer for a photograph, and makes
# larger files of it.
_PNG = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG),
)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a network gives one class its score: which parts of the picture speak for it.

    Parameters
    ----------
    index
        The class.
    label
        Its label; None where the model has none.
    logit
        Its score.
    probability
        Softmax or sigmoid of the logits, as the model says; None where it says neither.
    method
        Name of the method, a key of `onnxplain.maps.METHODS`.
    layers
        Names of the target layers.
    cams
        One raw map a layer, float32 [h, w].
    picture
        The picture, whole or reduced.
    view
        The part of the picture that the network saw.
    """

    index: int
    label: str | None
    logit: float
    probability: float | None
    method: str
    layers: tuple[str, ...]
    cams: tuple[NDArray[np.floating[Any]], ...] = field(repr=False)
    picture: Picture = field(repr=False)
    view: View = field(repr=False)

    @property
    def image(self) -> NDArray[np.uint8]:
        """The picture, RGB, uint8 [H, W, 3]."""
        return self.picture.image

    @property
    def layer(self) -> str:
        """Name of the target layer; of several, joined by ``+``."""
        return "+".join(self.layers)

    @cached_property
    def cam(self) -> NDArray[np.floating[Any]]:
        """The raw map, float32 [h, w]. For several layers: the mean of their maps, at the finest one's size.

        A layer's raw map has the method's own scale; the mean of several is in [0, 1], as a heatmap is.
        """
        if len(self.cams) == 1:
            return self.cams[0]
        finest = max(self.cams, key=lambda cam: cam.size)
        return heatmap(self.cams, (finest.shape[0], finest.shape[1]))

    @cached_property
    def heatmap(self) -> NDArray[np.float32]:
        """The map on the picture, float32 [H, W] in [0, 1]; 0 where the network saw nothing.

        Computed when first asked for: for a picture of 12 megapixels it takes 48 MB.
        """
        return heatmap(self.cams, self.picture.size, self.view)

    def overlay(self, colormap: Colormap = "inferno", alpha: float = 0.8) -> NDArray[np.uint8]:
        """Return the picture with the heatmap in colour on it, RGB, uint8 [H, W, 3].

        Parameters
        ----------
        colormap
            ``inferno``, ``magma``, ``plasma``, ``viridis``, ``turbo`` or ``jet``.
        alpha
            Weight of the colour where the heat is 1; it shrinks to none where the heat is 0.
        """
        return overlay(self.image, self.heatmap, colormap, alpha)

    def boxes(self, threshold: float = 0.2) -> list[Box]:
        """Return the boxes, in pixels of the picture, of the regions hotter than `threshold`; largest first.

        In a picture longer than 1024 pixels, they are as fine as a grid of so many: a map has a few cells.

        Parameters
        ----------
        threshold
            Fraction of the hottest pixel's heat; the CAM paper's 20 % by default.
        """
        height, width = self.picture.size
        step = -(-max(height, width) // _BOX_GRID)
        if step == 1:
            return find_boxes(self.heatmap, threshold)
        view = View(*(side / step for side in astuple(self.view)))
        grid = heatmap(self.cams, (-(-height // step), -(-width // step)), view)
        return [
            Box(x0 * step, y0 * step, min(x1 * step, width), min(y1 * step, height))
            for x0, y0, x1, y1 in find_boxes(grid, threshold)
        ]

    def save(self, path: str | os.PathLike[str], colormap: Colormap = "inferno", alpha: float = 0.8) -> None:
        """Write the overlay to a picture file; its name says which format (.png, .jpg, .webp, ...).

        Raises
        ------
        ImageError
            The format is unknown, or the file can't be written.
        """
        path = Path(path)
        picture = cv2.cvtColor(self.overlay(colormap, alpha), cv2.COLOR_RGB2BGR)
        try:
            options = _PNG if path.suffix.lower() == ".png" else ()
            encoded = cv2.imencode(path.suffix, picture, options)[1].tobytes()
        except cv2.error:
            raise ImageError(
                f"can't write {path}: {path.suffix!r} is no picture format; use .png or .jpg"
            ) from None
        try:
            write_atomically(path, encoded)
        except OSError as error:
            raise ImageError(f"can't write {path}: {error.strerror}") from None
