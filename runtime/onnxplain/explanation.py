"""What an explainer says about one picture and one class."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.boxes import Box, find_boxes
from onnxplain.errors import ImageError
from onnxplain.files import write_atomically
from onnxplain.heatmap import heatmap, minmax
from onnxplain.images import Picture
from onnxplain.opencv import cv2
from onnxplain.overlay import Colormap, overlay
from onnxplain.preprocessing import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BOX_GRID = 1024
_NOTEBOOK_SIDE = 1024
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
        Name of the method, of `onnxplain.maps.METHODS` or `onnxplain.image_methods.IMAGE_METHODS`.
    layers
        Names of the target layers.
    cams
        One raw map a layer, float32 [h, w].
    picture
        The picture, whole or reduced.
    view
        The part of the picture that the network saw.
    peaks
        What counts as 1 in the heatmap, for each layer; None for the largest cell of each map.
    augmented
        With augmentation smoothing, the maps of the picture mirrored, brighter and darker, as they lie on it.
    rank
        The class's place among all classes by their logits, from 1, the likeliest; None where it isn't known.
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
    peaks: tuple[float, ...] | None = field(default=None, repr=False)
    augmented: tuple[tuple[NDArray[np.floating[Any]], ...], ...] = field(default=(), repr=False)
    rank: int | None = None

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

        A layer's raw map has the method's own scale; the mean of several, or of several augmentations, is in
        [0, 1], as a heatmap is.
        """
        if len(self.cams) == 1 and not self.augmented:
            return self.cams[0]
        finest = max(self.cams, key=lambda cam: cam.size)
        return self._heat((finest.shape[0], finest.shape[1]), None)

    @cached_property
    def heatmap(self) -> NDArray[np.float32]:
        """The map on the picture, float32 [H, W] in [0, 1]; 0 where the network saw nothing.

        Computed when first asked for: for a picture of 12 megapixels it takes 48 MB.
        """
        return self._heat(self.picture.size, self.view)

    def heatmap_at(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return the heatmap of the picture at another size, a thumbnail's say, float32 [height, width]."""
        down, right = (new / old for new, old in zip(size, self.picture.size, strict=True))
        view = self.view
        return self._heat(
            size, View(view.top * down, view.left * right, view.height * down, view.width * right)
        )

    def _heat(self, size: tuple[int, int], view: View | None) -> NDArray[np.float32]:
        """Return the heatmap at a size, the mean over augmentations where there are some."""
        heats = [heatmap(cams, size, view, self.peaks) for cams in (self.cams, *self.augmented)]
        if len(heats) == 1:
            return heats[0]
        mean: NDArray[np.float32] = np.stack(heats).mean(axis=0)
        return mean if self.peaks else minmax(mean)

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
        step, heat = self._on_grid
        return [
            Box(x0 * step, y0 * step, min(x1 * step, width), min(y1 * step, height))
            for x0, y0, x1, y1 in find_boxes(heat, threshold)
        ]

    def peak(self) -> tuple[int, int] | None:
        """Return the hottest pixel of the picture, (x, y), as fine as `boxes`; None where nothing is hot."""
        height, width = self.picture.size
        step, heat = self._on_grid
        row, column = np.unravel_index(int(heat.argmax()), heat.shape)
        if heat[row, column] <= 0:
            return None
        return (
            min(int(column) * step + step // 2, width - 1),
            min(int(row) * step + step // 2, height - 1),
        )

    @cached_property
    def _on_grid(self) -> tuple[int, NDArray[np.float32]]:
        """How many pixels of the picture's sides a cell takes, and the heat of the cells."""
        height, width = self.picture.size
        step = -(-max(height, width) // _BOX_GRID)
        if step == 1:
            return 1, self.heatmap
        view = View(*(side / step for side in astuple(self.view)))
        return step, self._heat((-(-height // step), -(-width // step)), view)

    def figure(self, colormap: Colormap = "inferno", alpha: float = 0.8) -> Figure:
        """Return a figure: the picture, the heatmap with a colour bar, the overlay with its largest box.

        Where the raw map has cells below 0, as those of `cam`, `xgradcam`, `hirescam`, `gradcam_signed` and
        `integrated_gradients`, it is drawn too, in colours centred at 0. For several classes or methods of
        one picture there is `onnxplain.figure.side_by_side`.

        Parameters
        ----------
        colormap, alpha
            As in `overlay`.

        Returns
        -------
        matplotlib.figure.Figure
            ``explanation.figure().savefig("why.pdf")`` writes it; a notebook shows it.

        Raises
        ------
        MissingDependencyError
            matplotlib isn't installed: it comes with the extra ``figure``.
        """
        from onnxplain.figure import draw

        return draw(self, colormap, alpha)

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows: the overlay as a PNG, at most 1024 pixels long."""
        shown = self.overlay()
        height, width = shown.shape[:2]
        scale = _NOTEBOOK_SIDE / max(height, width)
        if scale < 1:  # a notebook keeps what it shows, and a photograph is tens of megabytes
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            shown = np.asarray(cv2.resize(shown, size, interpolation=cv2.INTER_AREA), np.uint8)
        return cv2.imencode(".png", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))[1].tobytes()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the overlay above the class, its probability, method and layer."""
        name, score = map(escape, class_and_score(self))
        title = f"<b>{name}</b> {score}, {escape(self.method)}, {escape(self.layer)}"
        data = b64encode(self._repr_png_()).decode()
        return (
            '<figure style="margin: 0; display: inline-block">'
            f'<img src="data:image/png;base64,{data}" alt="{name}" style="max-width: 100%">'
            f"<figcaption>{title}</figcaption></figure>"
        )

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


def class_and_score(explanation: Explanation) -> tuple[str, str]:
    """Return what a title calls the class, and its probability, or its logit where there is none."""
    name = f"class {explanation.index}" if explanation.label is None else explanation.label
    if explanation.probability is None:
        return name, f"logit {explanation.logit:.3g}"
    return name, f"{explanation.probability:.1%}"


def on_common_scale(explanations: Sequence[Explanation]) -> list[Explanation]:
    """Return explanations of one picture whose heatmaps can be compared: what is 1 is the same in all."""
    peaks = tuple(
        max(float(cam.max(initial=0)) for cam in cams)
        for cams in zip(*(cams for one in explanations for cams in (one.cams, *one.augmented)), strict=True)
    )
    return [replace(one, peaks=peaks) for one in explanations]
