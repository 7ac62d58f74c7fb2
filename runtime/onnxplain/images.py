"""Pictures as RGB arrays, from files, encoded bytes or arrays.

Everything comes out as 8-bit RGB, the way the viewer of the file would see it: turned as EXIF says, grey and
palette expanded, 16 bits scaled to 8, transparency laid over white.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.encoded import exif_orientation, find_damage, jpeg_size, transparent_grey
from onnxplain.errors import ImageError
from onnxplain.opencv import cv2

RGB = NDArray[np.uint8]
Image = str | os.PathLike[str] | bytes | NDArray[Any]
"""A path, an encoded picture, or an array: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


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
    encoded = None if isinstance(image, np.ndarray) or enough is None else _encoded(image)
    size = jpeg_size(encoded[0]) if encoded else None
    for scale, flag in _REDUCED.items():
        if encoded and enough and size and min(size) >= enough * scale:
            pixels, orientation = _decode(*encoded, flag)  # turned upright already
            return Picture(_to_rgb_order(pixels, None), size[::-1] if orientation >= 5 else size, encoded)
    pixels = decode_image(*encoded) if encoded else read_image(image)
    return Picture(pixels, pixels.shape[:2])


def read_image(image: Image) -> RGB:
    """Return a picture as RGB, uint8 [H, W, 3].

    Parameters
    ----------
    image
        A path; the bytes of an encoded picture (any format that OpenCV reads: JPEG, PNG, WebP, TIFF, GIF,
        BMP and others); or an array of uint8, uint16, or floats in [0, 1], in grey, RGB or RGBA.

    Raises
    ------
    ImageError
        There is no such file, it is no picture or a damaged one, or the array is no picture.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image.copy(), "the array")  # its owner may fill it with the next frame
    return decode_image(*_encoded(image))


def _encoded(image: str | os.PathLike[str] | bytes) -> tuple[bytes, str]:
    """Return a picture's bytes, and what an error calls it."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image), "the encoded picture"
    if isinstance(image, (str, os.PathLike)):
        return read_file(Path(image)), os.fspath(image)
    raise ImageError(f"a picture is a path, encoded bytes, or a numpy array, not {type(image).__name__}")


def decode_image(data: bytes, name: str) -> RGB:
    """Decode a picture to RGB, uint8 [H, W, 3]; `name` is what an error calls it.

    Raises
    ------
    ImageError
        The bytes are no picture, or not a whole one.
    """
    if jpeg_size(data):  # OpenCV decodes it to RGB, and turns it upright: no pass over the pixels of our own
        return np.asarray(_decode(data, name, cv2.IMREAD_COLOR_RGB)[0], np.uint8)
    pixels, orientation = _decode(data, name, cv2.IMREAD_UNCHANGED)
    pixels = _turn(_to_rgb_order(pixels, transparent_grey(data)), orientation)
    # libtiff hands out 8-bit colours that are multiplied by alpha already.
    premultiplied = data.startswith(_TIFF) and pixels.dtype == np.uint8
    return _from_array(pixels, name, premultiplied)


def _decode(data: bytes, name: str, flags: int) -> tuple[NDArray[Any], int]:
    """Return the pixels as OpenCV decodes them, and the orientation that EXIF states."""
    if not data:
        raise ImageError(f"{name} is empty, so it is not a picture")
    damage = find_damage(data)
    if damage:
        raise ImageError(f"{name} is {damage}")
    try:
        pixels, kinds, metadata = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), flags=flags)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ImageError(f"{name} is too large to decode safely: over 2**30 pixels") from None
        raise ImageError(f"{name} is damaged, or is not a picture") from None
    if pixels is None or pixels.size == 0:
        raise ImageError(f"{name} is damaged, or is not a picture")
    exif = dict(zip(kinds, metadata, strict=True)).get(cv2.IMAGE_METADATA_EXIF)
    return pixels, 1 if exif is None else exif_orientation(exif.tobytes())


def _to_rgb_order(pixels: NDArray[Any], transparent: int | None) -> NDArray[Any]:
    """Turn OpenCV's BGR into RGB, and a grey level that stands for transparency into alpha."""
    if pixels.ndim == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    if transparent is None:
        return pixels
    alpha = np.where(pixels == transparent, 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return np.dstack([pixels, pixels, pixels, alpha])


def read_file(path: Path) -> bytes:
    """Return a picture file's bytes.

    Raises
    ------
    ImageError
        There is no such file, or it can't be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not a picture") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from None


def _from_array(pixels: NDArray[Any], name: str, premultiplied: bool = False) -> RGB:
    """Check an array and turn it into RGB, uint8 [H, W, 3]."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"{name} has shape {list(pixels.shape)}; a picture is [H, W] or [H, W, 3 or 4], channels last"
        )
    if pixels.size == 0:
        raise ImageError(f"{name} has no pixels: its shape is {list(pixels.shape)}")
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    levels = _to_levels(pixels, name)
    if pixels.shape[2] == 4:
        alpha = levels[..., 3:]
        colour = levels[..., :3] if premultiplied else levels[..., :3] * alpha / 255
        levels = np.minimum(colour + 255 - alpha, 255, dtype=np.float32)  # over white
    levels = np.broadcast_to(levels, (*pixels.shape[:2], 3))
    return np.ascontiguousarray(levels + np.float32(0.5), np.uint8)


def _to_levels(pixels: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return pixels of any depth as floats from 0 to 255."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / np.float32(257)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ImageError(f"{name} has dtype {pixels.dtype}; a picture is uint8, uint16, or floats in [0, 1]")
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name} has pixels that are NaN or infinite")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise ImageError(
            f"{name} has floats from {low:g} to {high:g}; floats must be in [0, 1] (or pass uint8, 0 to 255)"
        )
    return pixels.astype(np.float32) * np.float32(255)


def _turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn a picture upright: EXIF numbers the eight ways in which its first row and column may lie."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
