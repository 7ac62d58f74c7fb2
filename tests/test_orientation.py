"""Which way is up, in every format that says it, and wherever what says it is damaged."""

from __future__ import annotations

import io
import itertools
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from onnxplain.errors import ImageError
from onnxplain.images import decode_image, read_picture
from sample_pictures import PIXELS, RGB, RGBA, encode, turned
from tiff_files import ASCII, LONG, ORIENTATION, SHORT, exif

MAKE = 271


def pillow(data):
    """Return what Pillow makes of an opaque picture."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def assert_close(found, expected, most=2):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= most


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (RGB, "JPEG", {}),
        (RGB.convert("L"), "JPEG", {}),
        (RGBA.convert("CMYK"), "JPEG", {}),
        (RGB, "PNG", {}),
        (RGB.convert("L"), "PNG", {}),
        (RGBA, "PNG", {}),
        (RGB, "WEBP", {}),
        (RGBA, "WEBP", {"lossless": True, "exact": True}),
        (RGB, "TIFF", {}),
        (RGBA, "TIFF", {}),
        (RGBA.convert("LA"), "TIFF", {}),
        (RGB, "AVIF", {}),
        (RGBA, "AVIF", {"quality": 100}),
    ],
)
def test_every_format(image, kind, options, orientation):
    as_it_lies = decode_image(encode(image, kind, **options), "it")
    data = encode(image, kind, orientation, **options)
    found = decode_image(data, "it")
    assert_close(found, turned(as_it_lies, orientation), 0)
    assert found.flags.c_contiguous
    if image.mode == "RGB":
        assert_close(found, pillow(data))
    picture = read_picture(data, 4)
    assert picture.size == found.shape[:2]
    assert (picture.image == found).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compressed", [False, True])
def test_exif_that_a_png_keeps_as_text(compressed, orientation):
    digits = (b"Exif\0\0" + exif((ORIENTATION, SHORT, [orientation]))).hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(digits) // 2:8}\n{lines}\n", zip=compressed)
    data = encode(RGB, "PNG", pnginfo=text)
    assert_close(decode_image(data, "it"), turned(np.asarray(RGB), orientation), 0)
    assert_close(pillow(data), turned(np.asarray(RGB), orientation), 0)


@pytest.mark.parametrize("angle", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_properties_of_avif(angle, axis):
    """All that irot and imir can say together, against Pillow's libavif."""
    orientation = 5 if axis is not None and angle is not None else 4 if axis is not None else 6
    data = bytearray(encode(RGB, "AVIF", 1 if axis is None and angle is None else orientation))
    for name, value in ((b"irot", angle), (b"imir", axis)):
        assert (name in data) == (value is not None)
        if value is not None:
            data[data.index(name) + 4] = value
    data = bytes(data)
    as_it_lies = decode_image(encode(RGB, "AVIF"), "it")
    expected = as_it_lies if angle is None else np.rot90(as_it_lies, angle)
    if axis is not None:
        expected = expected[::-1] if axis == 0 else expected[:, ::-1]
    assert_close(decode_image(data, "it"), expected, 0)
    assert_close(decode_image(data, "it"), pillow(data))


def test_avif_is_not_turned_by_exif():
    """Where it says that the camera was turned, and irot that the picture isn't, the picture stays."""
    exif_6 = np.frombuffer(exif((ORIENTATION, SHORT, [6])), np.uint8)
    pixels = np.ascontiguousarray(PIXELS[..., 2::-1])
    data = cv2.imencodeWithMetadata(".avif", pixels, [cv2.IMAGE_METADATA_EXIF], [exif_6])[1]
    data = bytearray(data)
    data[data.index(b"irot") + 4] = 0  # libavif makes 3 of EXIF's 6, and keeps that too
    assert exif_6.tobytes() in data
    assert_close(decode_image(bytes(data), "it"), pillow(bytes(data)))
    assert decode_image(bytes(data), "it").shape == (40, 60, 3)


def test_damaged_avif_files_raise_nothing_else():
    whole = np.frombuffer(encode(RGB, "AVIF", 5), np.uint8)
    boxes = len(whole) - whole.tobytes()[::-1].index(b"tadm")
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(300):
        data = whole.copy()
        data[rng.integers(0, boxes, 2)] = rng.integers(0, 256, 2)
        try:
            found = decode_image(data.tobytes()[: rng.integers(boxes, len(whole) * 3)], "it")
        except ImageError:
            continue
        read += 1
        assert found.shape in ((40, 60, 3), (60, 40, 3))
    assert read > 10


JPEG = encode(Image.fromarray(cv2.resize(PIXELS[..., :3], (240, 160))), "JPEG")


def with_exif(*blocks):
    """Return a JPEG with so many EXIF blocks."""
    segments = [b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block for block in blocks]
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def block(orientation, order="<"):
    return exif((ORIENTATION, SHORT, [orientation]), order=order)


NO_ORIENTATION = exif((MAKE, ASCII, b"a camera"))
OUTSIDE = (500, b"\xff\xff\xff\x7f")
ODD = {
    "a string that lies outside": [exif((MAKE, ASCII, OUTSIDE), (ORIENTATION, SHORT, [6]))],
    "numbers that lie outside": [exif((MAKE, SHORT, OUTSIDE), (ORIENTATION, SHORT, [6]))],
    "an unknown type": [exif((MAKE, 77, (1, b"    ")), (ORIENTATION, SHORT, [6]))],
    "two": [block(6), block(3)],
    "two, the first upright": [block(1), block(6)],
    "two, the second without": [block(6), NO_ORIENTATION],
    "two, the first without": [NO_ORIENTATION, block(6)],
    "two, the first of no known order": [b"XX" + block(3)[2:], block(6)],
    "a LONG": [exif((ORIENTATION, LONG, [6]))],
    "a LONG, most significant byte first": [exif((ORIENTATION, LONG, [6]), order=">")],
    "two numbers": [exif((ORIENTATION, SHORT, [6, 3]))],
    "0": [block(0)],
    "9": [block(9)],
    "none": [NO_ORIENTATION],
}


@pytest.mark.parametrize("blocks", ODD.values(), ids=ODD)
@pytest.mark.filterwarnings("ignore:Tag data larger", "ignore:Metadata Warning")
def test_odd_exif_is_read_as_viewers_read_it(blocks):
    """As Pillow reads it, whole and reduced."""
    data = with_exif(*blocks)
    expected = pillow(data)
    whole = decode_image(data, "it")
    assert_close(whole, expected)
    assert_agree(data, whole)


def assert_agree(data, whole):
    """Check that a picture is turned alike, whole and reduced."""
    for scale in (2, 4, 8):
        picture = read_picture(data, 160 // scale)
        assert picture.size == whole.shape[:2]
        assert picture.pixels.shape[:2] == tuple(side // scale for side in whole.shape[:2])
        small = cv2.resize(whole, picture.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(picture.pixels.astype(int) - small).mean() < 8  # turned otherwise: 60


def test_whole_and_reduced_pictures_are_turned_alike_whatever_exif_says():
    rng = np.random.default_rng(0)
    full = [(MAKE, ASCII, b"a camera and its maker"), (ORIENTATION, SHORT, [6]), (283, LONG, [72])]
    shapes = set()
    for number, order in itertools.product(range(150), "<>"):
        blocks = []
        for _ in range(1 + number % 2):
            tags = [full[i] for i in rng.permutation(3)]
            damaged = np.frombuffer(exif(*tags, order=order), np.uint8).copy()
            places = rng.integers(0, len(damaged), rng.integers(0, 4))
            damaged[places] = rng.integers(0, 256, len(places))
            blocks.append(damaged[: rng.integers(8, 3 * len(damaged))].tobytes())
        data = with_exif(*blocks)
        whole = decode_image(data, "it")
        shapes.add(whole.shape)
        assert_agree(data, whole)
    assert shapes == {(160, 240, 3), (240, 160, 3)}
