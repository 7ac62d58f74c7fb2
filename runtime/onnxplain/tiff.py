"""TIFF files: their tags say what the samples mean, and who reads them.

OpenCV reads the usual kinds. It misreads others without a word: samples apart in planes, grey with alpha,
compressions that it doesn't know. Those are read by tifffile, which comes with the extra ``tiff``.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.colours import RGB, in_parts, over_white, to_levels, to_rgb, turn, white_of
from onnxplain.decoding import decode, foreign_errors, image_errors, in_rgb_order
from onnxplain.errors import ImageError, MissingDependencyError
from onnxplain.extras import require
from onnxplain.opencv import cv2
from onnxplain.tags import orientation_of, read_tags

# What the colour of a pixel is (PhotometricInterpretation), and of how many samples.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_SAMPLES = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_MISSING = -1
_UNSIGNED, _FLOAT = 1, 3
_BITS = {_UNSIGNED: (*range(1, 17), 32), _FLOAT: (16, 32, 64)}
# What a sample beyond the colour is (ExtraSamples): something else, alpha that the colours are multiplied by
# already, alpha.
_ASSOCIATED, _UNASSOCIATED = 1, 2
_UNCOMPRESSED, _JPEG = 1, 7
_CCITT = {2, 3, 4}
_LOSSLESS = {_UNCOMPRESSED, 5, 8, 32773, 32946}  # LZW, Deflate, PackBits, Deflate's older number
_GREY = {(_WHITE_IS_ZERO, 1), (_BLACK_IS_ZERO, 1)}
_COLOURED = {(_RGB, 3), (_RGB, 4), (_PALETTE, 1), (_CMYK, 4), (_YCBCR, 3)}
# What libtiff makes RGB of, by bits: colours and how many samples they have, and compressions.
_CONVERTED = {
    1: (_GREY, _LOSSLESS | _CCITT),
    4: ({(_PALETTE, 1)}, _LOSSLESS),
    8: (_GREY | _COLOURED, _LOSSLESS | {_JPEG}),
}
_MOST_PIXELS = 1 << 30  # as OpenCV has it


@dataclass(frozen=True)
class _Tags:
    """The tags that say how a picture looks."""

    width: int
    height: int
    bits: tuple[int, ...]
    compression: int
    photometric: int
    samples: int
    planes: int
    ink_set: int
    extra: tuple[int, ...]
    format: int
    tiled: bool
    orientation: int

    @classmethod
    def of(cls, tags: dict[int, tuple[int, ...]]) -> _Tags:
        """Return them, with TIFF's defaults for those that are missing."""

        def number(tag: int, default: int) -> int:
            return tags.get(tag, (default,))[0]

        return cls(
            width=number(256, 0),
            height=number(257, 0),
            bits=tags.get(258, (1,)),
            compression=number(259, _UNCOMPRESSED),
            photometric=number(262, _MISSING),
            samples=number(277, 1),
            planes=number(284, 1),
            ink_set=number(332, 1),
            extra=tags.get(338, ()),
            format=number(339, _UNSIGNED),
            tiled=322 in tags,
            orientation=orientation_of(tags),
        )

    @property
    def colours(self) -> int:
        """How many samples are a pixel's colour."""
        return _SAMPLES[self.photometric]

    @property
    def alpha(self) -> tuple[int, int] | None:
        """Which sample is alpha, and of what kind; None if none is."""
        for number, kind in enumerate(self.extra, self.colours):
            if kind in (_ASSOCIATED, _UNASSOCIATED):
                return number, kind
        # OpenCV and others don't say what the fourth is, and libtiff and Pillow take it for alpha.
        return (3, _UNASSOCIATED) if (self.photometric, self.samples, self.extra) == (_RGB, 4, ()) else None


def is_tiff(data: bytes) -> bool:
    """Whether it begins as TIFF or BigTIFF files do."""
    return data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def read_tiff(data: bytes, name: str) -> RGB:
    """Return the first picture of a TIFF file, upright, as RGB, uint8 [H, W, 3].

    Raises
    ------
    ImageError
        It is damaged, of a kind that isn't read, or of one that needs the extra ``tiff``.
    """
    tags = _Tags.of(read_tags(data))
    if tags.photometric == _MISSING or 0 in (tags.width, tags.height):
        raise ImageError(f"{name} is damaged: it doesn't say what its samples are")
    if tags.width * tags.height > _MOST_PIXELS:
        raise ImageError(f"{name} is too large to decode safely: over 2**30 pixels")
    oddity = _oddity(tags)
    if oddity:
        raise ImageError(f"{name} is a TIFF {oddity}, which isn't read; save it as 8-bit RGB")
    with image_errors(name):
        if _libtiff_makes_rgb(tags):
            pixels = in_rgb_order(decode(data, name, cv2.IMREAD_UNCHANGED))
            if pixels.ndim == 3 and tags.alpha is None:
                pixels = pixels[..., :3]
            # Where a tag says that there is alpha, libtiff has multiplied by it.
            return to_rgb(pixels, name, premultiplied=bool(tags.extra))
        if _opencv_reads_samples(tags):
            samples = np.atleast_3d(in_rgb_order(decode(data, name, cv2.IMREAD_UNCHANGED)))
            return _to_rgb(samples, None, tags, name)
        samples, palette = _read_samples(data, name, tags)
        return turn(_to_rgb(samples, palette, tags, name), tags.orientation)


def _oddity(tags: _Tags) -> str | None:
    """Return what is odd about it where it isn't read, as a part of a sentence; else None."""
    if tags.photometric not in _SAMPLES or (tags.photometric == _CMYK and tags.ink_set != 1):
        return f"of an unusual colour space (PhotometricInterpretation {tags.photometric})"
    if tags.bits[0] not in _BITS.get(tags.format, ()) or len(set(tags.bits)) > 1:
        return f"whose samples aren't unsigned or floats (SampleFormat {tags.format}, bits {list(tags.bits)})"
    if tags.samples < tags.colours + len(tags.extra) or set(tags.extra) - {0, _ASSOCIATED, _UNASSOCIATED}:
        return f"of {tags.samples} samples a pixel that aren't explained (ExtraSamples {list(tags.extra)})"
    usual = {_PALETTE: _BITS[_UNSIGNED][:16], _LAB: (8, 16)}.get(tags.photometric)
    if usual and (tags.format == _FLOAT or tags.bits[0] not in usual):
        return f"with a palette or in CIELab of {tags.bits[0]} bits"
    if tags.photometric == _YCBCR and not _libtiff_makes_rgb(tags):
        return "in YCbCr of an unusual kind"
    return None


def _libtiff_makes_rgb(tags: _Tags) -> bool:
    """Whether OpenCV reads it right, by libtiff's conversion of 8 bits or less to RGB with alpha."""
    kinds, compressions = _CONVERTED.get(tags.bits[0], (set(), set()))
    kind = (tags.photometric, tags.samples)
    # Tiles that aren't compressed it refuses, and others it doesn't turn right.
    whole = not tags.tiled or (tags.compression != _UNCOMPRESSED and tags.orientation == 1)
    return tags.format == _UNSIGNED and kind in kinds and tags.compression in compressions and whole


def _opencv_reads_samples(tags: _Tags) -> bool:
    """Whether OpenCV returns the samples as they lie in the file, upright."""
    return (
        (tags.format, tags.bits[0]) in ((_UNSIGNED, 16), (_FLOAT, 32))
        and (tags.photometric, tags.samples) in _GREY | {(_RGB, 3), (_RGB, 4)}
        and tags.planes == 1
        and tags.compression in _LOSSLESS
    )


def _read_samples(data: bytes, name: str, tags: _Tags) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the samples [H, W, samples] as tifffile reads them, and the palette [colours, 3], if any."""
    try:
        require("tiff")
    except MissingDependencyError as error:
        raise ImageError(f"{name} is a TIFF of a kind that OpenCV misreads, and {error}") from None
    from tifffile import TiffFile

    with foreign_errors(name), TiffFile(BytesIO(data)) as file:
        page = file.pages.first
        planes, depth, height, width, together = page.shaped
        layers = page.asarray(maxworkers=1).reshape(page.shaped)
        palette = page.colormap
    if depth != 1:
        raise ImageError(f"{name} has {depth} layers; a picture has one")
    samples = np.moveaxis(layers[:, 0], 0, 2).reshape(height, width, planes * together)
    if tags.photometric != _PALETTE:
        return samples, None
    if palette is None:
        raise ImageError(f"{name} is damaged: its palette is missing")
    return samples, palette.T


def _to_rgb(samples: NDArray[Any], palette: NDArray[Any] | None, tags: _Tags, name: str) -> RGB:
    """Return samples [H, W, samples] as RGB over white."""
    if samples.shape[2] != tags.samples:  # what is compressed says something else than the tags
        raise ImageError(f"{name} is damaged: its samples are not what its tags say")
    counting = [*range(tags.colours), *(tags.alpha[:1] if tags.alpha else ())]
    if counting != [*range(tags.samples)]:
        samples = samples[..., counting]
    white = white_of(samples, name) if tags.format == _FLOAT else 2.0 ** tags.bits[0] - 1
    premultiplied = tags.alpha is not None and tags.alpha[1] == _ASSOCIATED

    def convert(part: NDArray[Any]) -> RGB:
        colour = _colours(part[..., : tags.colours], palette, tags.photometric, white)
        alpha = to_levels(part[..., tags.colours :], white) if tags.alpha else None
        return over_white(colour, alpha, premultiplied)

    return in_parts(samples, convert)


def _colours(
    samples: NDArray[Any], palette: NDArray[Any] | None, photometric: int, white: float
) -> NDArray[np.float32]:
    """Return grey or RGB, from 0 to 255."""
    if palette is not None:
        # Some write a palette of 8 bits, where it should have 16.
        entries = to_levels(palette, 65535 if palette.max() > 255 else 255)
        return np.take(entries, samples[..., 0], axis=0, mode="clip")
    if photometric == _LAB:
        return _from_lab(samples)
    levels = to_levels(samples, white)
    if photometric in (_WHITE_IS_ZERO, _CMYK):
        levels = np.float32(255) - levels
    if photometric == _CMYK:
        levels = levels[..., :3] * levels[..., 3:] / np.float32(255)
    return levels


def _from_lab(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Return CIELab of 8 or 16 bits, white being D50, as sRGB from 0 to 255; a and b are signed."""
    size = samples.dtype.itemsize
    lightness = samples[..., 0] * np.float32(100 / (256**size - 1))
    a, b = np.moveaxis(samples[..., 1:].astype(f"i{size}"), -1, 0) / np.float32(256 ** (size - 1))
    y = (lightness + 16) / 116
    roots = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    relative = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29))
    linear = np.clip(relative @ _LINEAR_FROM_RELATIVE_XYZ.T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)


_LINEAR_FROM_RELATIVE_XYZ = np.float32(
    np.array(
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    * [0.96422, 1, 0.82521]
)
"""Linear sRGB from XYZ relative to the white D50, adapted to its own white, D65 (Bradford)."""
