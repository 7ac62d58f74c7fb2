"""Decoding by OpenCV; whatever goes wrong with one picture is that picture's error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import ImageError
from onnxplain.opencv import cv2


def decode(data: bytes, name: str, flags: int) -> NDArray[Any]:
    """Return a picture's pixels as OpenCV decodes them, in its order of channels, not turned.

    Parameters
    ----------
    data
        The encoded picture.
    name
        What an error calls it.
    flags
        Of cv2.imdecode.

    Raises
    ------
    ImageError
        The bytes are no picture.
    """
    if flags != cv2.IMREAD_UNCHANGED:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # UNCHANGED, which is every flag, ignores it too
    with image_errors(name):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.size == 0:
        raise ImageError(f"{name} is damaged, or is not a picture that OpenCV reads")
    return np.asarray(pixels)


def in_rgb_order(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return OpenCV's BGR or BGRA as RGB or RGBA, and grey as it is."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 4:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA))
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


@contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Let what fails for the sake of one picture, called `name`, be an ImageError: the others go on.

    Raises
    ------
    ImageError
        There is not enough memory, or OpenCV fails.
    """
    try:
        yield
    except MemoryError:
        raise ImageError(f"{name} is too large: it needs more memory than there is") from None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise ImageError(f"{name} is too large: it needs more memory than there is") from None
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ImageError(f"{name} is too large to decode safely: over 2**30 pixels") from None
        raise ImageError(f"{name} is damaged, or is not a picture that OpenCV reads") from None


@contextmanager
def foreign_errors(name: str) -> Iterator[None]:
    """Let whatever is raised by code that isn't ours, for the sake of one picture, be an ImageError.

    Pillow, tifffile, the decoders below them and the files that a caller hands over raise exceptions of a
    dozen kinds, and don't say which.

    Raises
    ------
    ImageError
        It raised something; the first line says what.
    """
    with image_errors(name):
        try:
            yield
        except (MemoryError, ImageError):
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ImageError(f"can't read {name}: {reason}") from None
