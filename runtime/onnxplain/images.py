"""Pictures as RGB arrays, from files, encoded bytes, arrays or Pillow's pictures.

Everything comes out as 8-bit RGB, the way the viewer of the file would see it: turned as it says, grey and
palette expanded, 16 bits scaled to 8, transparency laid over white.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxplain.colours import RGB, to_rgb, turn
from onnxplain.decoding import decode, foreign_errors, image_errors, in_rgb_order
from onnxplain.encoded import (
    exif_of_text,
    find_damage,
    has_unused_alpha,
    jpeg_size,
    orientation,
    orientation_of_exif,
    transparent_grey,
    whites,
)
from onnxplain.errors import ImageError
from onnxplain.opencv import cv2
from onnxplain.tiff import is_tiff, read_tiff


@runtime_checkable
class BinaryFile(Protocol):
    """A file opened for reading bytes, or what is read like one."""

    def read(self) -> bytes:
        """Return all that follows."""


@runtime_checkable
class PillowImage(Protocol):
    """A picture of Pillow, PIL.Image.Image; Pillow itself isn't needed here."""

    info: dict[Any, Any]

    @property
    def mode(self) -> str:
        """What its channels are."""

    def load(self) -> Any:
        """Decode it."""

    def convert(self, mode: str) -> Any:
        """Return it with other channels."""


Image = str | os.PathLike[str] | bytes | BinaryFile | PillowImage | NDArray[Any]
"""A path, an encoded picture, a binary file, a picture of Pillow, or an array: [H, W], [H, W, 1, 3 or 4]."""

_WHOLE = cv2.IMREAD_COLOR_RGB
_REDUCED = {
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
}
"""OpenCV's flags for reductions; RGB takes the grey out of them."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that may be decoded at a reduced scale.

    Parameters
    ----------
    pixels
        RGB, uint8 [h, w, 3]: all of the picture, or an even reduction of it.
    size
        Height and width of the picture.
    encoded
        Where it is reduced: its bytes, and what an error calls it.
    """

    pixels: RGB
    size: tuple[int, int]
    encoded: tuple[bytes, str] | None = None

    @cached_property
    def image(self) -> RGB:
        """The whole picture, RGB, uint8 [H, W, 3]; a reduced one is decoded when this is first asked for."""
        return self.pixels if self.encoded is None else decode_image(*self.encoded)


def read_picture(image: Image, enough: int | None = None) -> Picture:
    """Read a picture, a JPEG at a half, a quarter or an eighth of its size where that is enough.

    libjpeg then computes only so many pixels: 12 megapixels take half the time at 1/2, a third at 1/4.

    Parameters
    ----------
    image
        As in `read_image`.
    enough
        How many pixels the shorter side needs; all by default.

    Raises
    ------
    ImageError
        As in `read_image`.
    """
    if isinstance(image, (np.ndarray, PillowImage)):
        pixels = read_image(image)
        return Picture(pixels, pixels.shape[:2])
    encoded = _encoded(image)
    size = jpeg_size(encoded[0])
    for scale, flag in _REDUCED.items():
        if size and enough and min(size) >= enough * scale:
            _check_whole(*encoded)
            pixels = _decode_jpeg(*encoded, flag)
            return Picture(pixels, size[::-1] if orientation(encoded[0]) >= 5 else size, encoded)
    pixels = decode_image(*encoded)
    return Picture(pixels, pixels.shape[:2])


def read_image(image: Image) -> RGB:
    """Return a picture as RGB, uint8 [H, W, 3].

    Parameters
    ----------
    image
        One of these:

        - a path;
        - the bytes of an encoded picture, in any format that OpenCV reads: JPEG, PNG, WebP, AVIF, TIFF, GIF,
          BMP, JPEG 2000 and others. TIFFs of unusual kinds need the extra ``tiff``;
        - a binary file, or what has a ``read`` like one, ``io.BytesIO`` say; it is read from its start;
        - a picture of Pillow. It is turned as the EXIF that it carries says, so that ``Image.open(path)`` is
          the same picture as ``path``; what ``ImageOps.exif_transpose`` has turned isn't turned again;
        - an array of uint8, uint16, or floats in [0, 1], in grey, RGB or RGBA.

    Raises
    ------
    ImageError
        There is no such file; it is no picture, a damaged one, or one of a kind that isn't read; it needs
        more memory than there is; or the array is no picture.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, "the array")
    if isinstance(image, PillowImage):
        return _from_pillow(image)
    return decode_image(*_encoded(image))


def kept(image: Image) -> Image:
    """Return what stays a picture when its owner goes on: fills an array again, or closes a file.

    What can't be read is an error only when the picture is.
    """
    try:
        if isinstance(image, np.ndarray):
            return image.copy()
        if isinstance(image, BinaryFile):
            return _read(image)
        if isinstance(image, PillowImage):
            return _from_pillow(image)
    except ImageError as error:
        return _Unreadable(error)
    return image


@dataclass(frozen=True)
class _Unreadable:
    """A file that could not be read."""

    error: ImageError

    def read(self) -> bytes:
        raise self.error


def decode_image(data: bytes, name: str) -> RGB:
    """Decode a picture to RGB, uint8 [H, W, 3]; `name` is what an error calls it.

    Raises
    ------
    ImageError
        As in `read_image`.
    """
    _check_whole(data, name)
    if jpeg_size(data):
        return _decode_jpeg(data, name, _WHOLE)
    if is_tiff(data):
        return read_tiff(data, name)
    white = whites(data)
    if len(white) > 1:
        raise ImageError(f"{name} has channels of several depths, which isn't read; save it as PNG")
    with image_errors(name):
        pixels = in_rgb_order(decode(data, name, cv2.IMREAD_UNCHANGED))
        if has_unused_alpha(data):
            pixels = pixels[..., :3]
        pixels = _with_alpha(pixels, transparent_grey(data))
        return turn(to_rgb(pixels, name, min(white, default=None)), orientation(data))


def _decode_jpeg(data: bytes, name: str, flags: int) -> RGB:
    """Decode a JPEG in grey or colour to RGB, whole or reduced, upright."""
    pixels = decode(data, name, flags)
    with image_errors(name):
        return turn(np.asarray(pixels, np.uint8), orientation(data))


def _check_whole(data: bytes, name: str) -> None:
    if not data:
        raise ImageError(f"{name} is empty, so it is not a picture")
    if data.startswith(b"P7"):  # of which OpenCV swaps the colours
        raise ImageError(f"{name} is a PAM file, which isn't read; save it as PNG")
    damage = find_damage(data)
    if damage:
        raise ImageError(f"{name} is {damage}")


def _encoded(image: str | os.PathLike[str] | bytes | BinaryFile) -> tuple[bytes, str]:
    """Return a picture's bytes, and what an error calls it."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image), "the encoded picture"
    if isinstance(image, (str, os.PathLike)):
        return read_file(Path(image)), os.fspath(image)
    if isinstance(image, BinaryFile):
        return _read(image), _name(image)
    raise ImageError(
        "a picture is a path, encoded bytes, a binary file, a picture of Pillow, or a numpy array, not "
        + type(image).__name__
    )


def read_file(path: Path) -> bytes:
    """Return a picture file's bytes.

    Raises
    ------
    ImageError
        There is no such file, or it can't be read.
    """
    try:
        with image_errors(os.fspath(path)):
            return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not a picture") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from None


def _read(file: BinaryFile) -> bytes:
    """Return the bytes of an open file, from its start where it can go back to it."""
    name = _name(file)
    with suppress(AttributeError, OSError, ValueError):
        file.seek(0)  # type: ignore[attr-defined]
    with foreign_errors(name):
        data = file.read()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(f"{name} returns {type(data).__name__}, not bytes; open it in binary mode")
    return bytes(data)


def _name(file: object) -> str:
    """Return what an error calls an open file."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name else "the file"


def _from_array(array: NDArray[Any], name: str) -> RGB:
    """Return an array as RGB, in memory of its own: its owner may fill it with the next frame."""
    if np.ma.is_masked(array):
        raise ImageError(f"{name} is masked in places, which have no colour; fill them: array.filled(255)")
    with image_errors(name):
        # Without what a subclass changes: a matrix has two dimensions whatever one does with it.
        plain = np.asarray(array, array.dtype.newbyteorder("="))
        rgb = to_rgb(plain, name)
        return rgb.copy() if np.may_share_memory(rgb, plain) else rgb


def _from_pillow(image: PillowImage) -> RGB:
    """Return a picture of Pillow as RGB, turned as the EXIF that it carries says."""
    name = getattr(image, "filename", None) or "the picture of Pillow"
    with foreign_errors(name):
        image.load()  # which turns a TIFF
        as_it_is = image.mode in ("L", "RGB", "RGBA") and "transparency" not in image.info
        if not as_it_is and not image.mode.startswith(("I", "F")):
            image = image.convert("RGB" if image.mode in _OPAQUE else "RGBA")
        pixels = np.asarray(image)
        exif = image.info.get("exif") or exif_of_text(image.info.get("Raw profile type exif", ""))
    rgb = _from_array(pixels, name)
    with image_errors(name):
        return turn(rgb, orientation_of_exif(exif))


_OPAQUE = ("CMYK", "YCbCr", "HSV", "LAB", "RGBX")
"""Pillow's modes without alpha that it doesn't convert to RGBA."""


def _with_alpha(grey: NDArray[Any], transparent: int | None) -> NDArray[Any]:
    """Turn a grey level that stands for transparency into alpha."""
    if transparent is None:
        return grey
    alpha = np.where(grey == transparent, 0, np.iinfo(grey.dtype).max).astype(grey.dtype)
    return np.dstack([grey, grey, grey, alpha])
