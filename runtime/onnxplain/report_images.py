"""The small pictures of a report: photographs and heatmaps, and where they are kept."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.explanation import Explanation
from onnxplain.files import write_atomically
from onnxplain.images import Picture
from onnxplain.opencv import cv2
from onnxplain.outputs import OutputFolder
from onnxplain.overlay import Colormap, colours_of

LONGEST = 320
"""Pixels of a thumbnail's longer side, at most."""

_PIXELS_A_CELL = 10
_SHORTEST = 50  # so that rounding leaves a heatmap's shape as the picture's
_QUALITY = 80
_LOSSLESS = (
    101  # alpha is lossless at any quality: with colours of so few kinds, all of it is faster and smaller
)


def thumbnail(picture: Picture) -> bytes:
    """Return a picture in small, as WebP."""
    height, width = _small(picture.size)
    small = cv2.resize(picture.pixels, (width, height), interpolation=cv2.INTER_AREA)
    return _webp(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), _QUALITY)


def coloured_heat(explanation: Explanation, colormap: Colormap = "inferno") -> bytes:
    """Return a heatmap in colour, as WebP: the hotter, the less transparent.

    It is as large as the thumbnail, or smaller where the map has few cells: a browser interpolates as well.
    Laid over the thumbnail at an opacity, it is what `onnxplain.overlay.overlay` makes with that as alpha.
    """
    view, size = explanation.view, explanation.picture.size
    cells = max(max(cam.shape[0] / view.height, cam.shape[1] / view.width) for cam in explanation.cams)
    longest = max(size) * max(_PIXELS_A_CELL * cells, _SHORTEST / min(size))
    heat = explanation.heatmap_at(_small(size, min(LONGEST, longest)))
    return _coloured(np.asarray(cv2.convertScaleAbs(heat, alpha=255), np.uint8), colormap)


def ramp(colormap: Colormap = "inferno") -> bytes:
    """Return the colours of heat from 0 to 1, as a heatmap has them."""
    return _coloured(np.arange(0, 256, 2, dtype=np.uint8)[None], colormap)


def embedded(image: bytes) -> str:
    """Return a URL that holds an image."""
    return f"data:image/webp;base64,{base64.b64encode(image).decode('ascii')}"


def kept(image: bytes, folder: OutputFolder, name: str) -> str:
    """Keep an image as a file in a folder of an output folder, named after its content.

    Return its path from the output folder, where the page lies.
    """
    path = f"{name}/{hashlib.sha256(image).hexdigest()[:32]}.webp"
    file = folder.add(path)
    if not file.exists():
        write_atomically(file, image)
    return path


def _small(size: tuple[int, int], longest: float = LONGEST) -> tuple[int, int]:
    scale = min(1.0, longest / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def _coloured(levels: NDArray[np.uint8], colormap: Colormap) -> bytes:
    return _webp(np.dstack([colours_of(levels, colormap)[..., ::-1], levels]), _LOSSLESS)


def _webp(bgr: NDArray[Any], quality: int) -> bytes:
    encoded: bytes = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
    return encoded
