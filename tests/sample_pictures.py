"""A picture that shows how it is turned, and how it is encoded and turned."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from tiff_files import ORIENTATION

# No two pixels of it are alike, whichever way it is turned.
PIXELS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8),
    (60, 40),
    interpolation=cv2.INTER_CUBIC,
)
RGBA = Image.fromarray(PIXELS)
RGB = RGBA.convert("RGB")


def encode(image, kind, orientation=None, **options):
    """Return a picture in a format, with the orientation that Pillow writes in its way."""
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(pixels, orientation):
    """Return stored pixels [H, W, ...] upright.

    The table is that of EXIF's tag 274: on which side of the visual picture the 0th row lies, and the 0th
    column.
    """
    row, column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    if row in ("left", "right"):
        pixels = pixels.swapaxes(0, 1)
    if "bottom" in (row, column):
        pixels = pixels[::-1]
    if "right" in (row, column):
        pixels = pixels[:, ::-1]
    return pixels
