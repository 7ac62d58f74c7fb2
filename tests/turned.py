"""A picture turned as EXIF's eight orientations say, by their definition."""

from __future__ import annotations


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
