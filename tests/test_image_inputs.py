"""What a picture may be in Python: paths, bytes, files, arrays of all kinds, and Pillow's pictures."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from onnxplain import Explainer, ImageError
from onnxplain.images import kept, read_image, read_picture
from sample_pictures import RGB, RGBA, encode
from tiny_explainer import tiny_explainer

PIXELS = np.asarray(RGB)
GREY = RGB.convert("L")


def over_white(image):
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def test_a_file_that_is_open(tmp_path):
    data = encode(RGB, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo.png", data)
    with (
        path.open("rb") as buffered,
        path.open("rb", buffering=0) as raw,
        zipfile.ZipFile(tmp_path / "photos.zip") as archive,
        archive.open("photo.png") as member,
        tempfile.SpooledTemporaryFile() as spooled,
    ):
        spooled.write(data)  # and so it stands at its end
        for file in (buffered, raw, member, spooled, io.BytesIO(data), io.BufferedReader(io.BytesIO(data))):
            for _ in range(2):  # it is read from its start each time
                assert (read_image(file) == PIXELS).all()
            assert (read_picture(file, 4).pixels == PIXELS).all()


def test_a_stream_that_can_not_go_back():
    class Stream:
        def __init__(self):
            self.rest = [encode(RGB, "PNG")]

        def read(self):
            return self.rest.pop() if self.rest else b""

        def seek(self, position):
            raise io.UnsupportedOperation("seek")

    stream = Stream()
    assert (read_image(stream) == PIXELS).all()
    with pytest.raises(ImageError, match="the file is empty"):
        read_image(stream)


def test_a_large_jpeg_in_a_file_is_reduced():
    file = io.BytesIO(encode(RGB.resize((480, 320)), "JPEG", 6))
    picture = read_picture(file, 40)
    assert (picture.pixels.shape, picture.size) == ((60, 40, 3), (480, 320))
    file.close()
    assert picture.image.shape == (480, 320, 3)


@pytest.mark.parametrize("mode", ["text", "closed", "write", "failing", "list"])
def test_files_that_can_not_be_read(mode, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode(RGB, "PNG"))

    class Failing:
        name = str(path)

        def read(self):
            raise RuntimeError("the connection\nis lost")

    if mode == "text":
        file, message = io.StringIO("words"), "the file returns str, not bytes; open it in binary mode"
    elif mode == "closed":
        file, message = path.open("rb"), f"can't read {path}: read of closed file"
        file.close()
    elif mode == "write":
        file, message = (tmp_path / "new.png").open("wb"), f"can't read {tmp_path / 'new.png'}: read"
    elif mode == "failing":
        file, message = Failing(), f"can't read {path}: the connection"
    else:
        file, message = [path], "a picture is a path, encoded bytes, a binary file, a picture of Pillow, "
        message += "or a numpy array, not list"
    with pytest.raises(ImageError) as caught:
        read_image(file)
    assert str(caught.value) == message
    if hasattr(file, "close"):
        file.close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_of_pillow_is_the_same_as_its_path(kind, orientation, tmp_path):
    """Before it is decoded and after, converted, and turned by hand as Pillow's users do."""
    path = tmp_path / "photo"
    path.write_bytes(encode(RGB, kind, orientation))
    expected = read_image(path)
    assert expected.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    with Image.open(path) as image, Image.open(path) as loaded:
        loaded.load()
        for one in (image, loaded, loaded.convert("RGB"), loaded.copy(), ImageOps.exif_transpose(image)):
            found = read_image(one)
            assert found.shape == expected.shape
            assert np.abs(found.astype(int) - expected).max() <= 2
            picture = read_picture(one, 4)
            assert picture.size == expected.shape[:2]
            assert (picture.pixels == found).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_modes_of_pillow(mode):
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(RGB, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
        expected = np.asarray(image.convert("RGB"))
    else:
        image = RGBA.convert("P").convert("PA") if mode == "PA" else RGBA.convert(mode)
        opaque = mode in ("RGBX", "CMYK", "YCbCr", "HSV")
        expected = np.asarray(image.convert("RGB")) if opaque else over_white(image)
    found = read_image(image)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert found.flags.writeable


@pytest.mark.parametrize(
    ("mode", "dtype", "white"),
    [("I;16", "<u2", 65535), ("I;16L", "<u2", 65535), ("I;16B", ">u2", 65535), ("F", "=f4", 1)],
)
def test_deep_modes_of_pillow(mode, dtype, white):
    levels = np.asarray(GREY)
    image = Image.frombytes(mode, GREY.size, (levels * np.float32(white / 255)).astype(dtype).tobytes())
    assert (read_image(image) == levels[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparent_colours_of_pillow(kind):
    for image, transparency in ((RGB.quantize(16), 3), (GREY, 100), (RGB, RGB.getpixel((3, 3)))):
        if kind == "PNG" or image.mode != "RGB":
            data = encode(image, kind, transparency=transparency)
            found = read_image(Image.open(io.BytesIO(data)))
            assert np.abs(found.astype(int) - read_image(data)).max() <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB.convert("I"), r"^the picture of Pillow has dtype int32; a picture is uint8, uint16, or floats"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (RGBA.convert("LA").convert("La"), r"^can't read the picture of Pillow: .*La"),
        (
            Image.open(io.BytesIO(encode(RGB.resize((400, 400)), "PNG")[:3000])),
            r"^can't read the picture of Pillow",
        ),
    ],
)
def test_pictures_of_pillow_that_are_none(image, message):
    with pytest.raises(ImageError, match=message):
        read_image(image)


def test_a_closed_picture_of_pillow(tmp_path):
    path = tmp_path / "photo.png"
    RGB.save(path)
    image = Image.open(path)
    image.close()
    with pytest.raises(ImageError, match=rf"^can't read {path}: "):
        read_image(image)


def test_pillow_is_not_imported(tmp_path):
    """Neither to read a picture, nor to see that one is none of Pillow's."""
    code = (
        "import sys, numpy\n"
        "from onnxplain.images import read_image\n"
        "read_image(numpy.zeros((4, 4, 3), numpy.uint8)); read_image(open(sys.argv[1], 'rb'))\n"
        "print('PIL' in sys.modules)"
    )
    path = tmp_path / "photo.png"
    RGB.save(path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr


class Subclass(np.ndarray):
    """An array that isn't quite one."""


@pytest.mark.parametrize(
    "array",
    [
        (PIXELS.astype("u2") * 257).astype(">u2"),
        (PIXELS.astype("u2") * 257).astype("<u2"),
        (PIXELS / 255).astype(">f4"),
        (PIXELS / 255).astype(">f8"),
        (PIXELS / 255).astype("f2"),
        (PIXELS / 255).astype(np.longdouble),
        np.broadcast_to(PIXELS, PIXELS.shape),  # read-only
        np.repeat(np.repeat(PIXELS, 2, 0), 3, 1)[::2, ::3],
        PIXELS[::-1, ::-1].copy()[::-1, ::-1],
        np.dstack([PIXELS[..., ::-1], PIXELS])[..., 2::-1],
        np.asfortranarray(PIXELS),
        np.ma.array(PIXELS),
        np.ma.array(PIXELS, mask=False),
        PIXELS.view(Subclass),
        np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(PIXELS.shape),
    ],
)
def test_arrays_of_all_kinds(array):
    before = np.array(array)
    found = read_image(array)
    assert type(found) is np.ndarray
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert np.abs(found.astype(int) - PIXELS).max() == 0
    assert not np.shares_memory(found, array)
    assert (np.asarray(array) == before).all()


@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4"])
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_is_an_array(dtype):
    """Numpy 2.4 ends the process where an axis is added to one."""
    levels = np.asarray(GREY)
    white = {"u1": 255, ">u2": 65535, "f4": 1}[dtype]
    matrix = np.asmatrix((levels * np.float32(white / 255)).astype(dtype))
    found = read_image(matrix)
    assert type(found) is np.ndarray
    assert (found == levels[..., None]).all()
    assert (read_picture(matrix, 4).pixels == levels[..., None]).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.ma.masked_less(PIXELS, 100),
            r"^the array is masked in places, which have no colour; fill them: array\.filled\(255\)$",
        ),
        (np.array([[None]]), "dtype object"),
        (np.array([["a"]]), "dtype <U1"),
        (np.zeros((4, 4), [("r", "u1")]), "dtype"),
        (np.zeros((4, 4, 3), ">i2"), "dtype int16"),
        (np.zeros((), np.uint8), r"shape \[\]"),
        (np.zeros((4, 4, 3), "M8[s]"), "dtype datetime64"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(ImageError, match=message):
        read_image(array)


def test_a_stream_takes_files_and_pictures_before_they_are_closed(tmp_path):
    """It asks for the next before a thread comes to the last."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(RGB, "JPEG", 6))
    expected = read_image(path)

    def images():
        for number in range(20):
            if number % 2:
                with path.open("rb") as file:
                    yield file
            else:
                with Image.open(path) as image:
                    yield image

    explainer = Explainer(tiny_explainer(), threads=1)
    found = list(explainer.stream(images()))
    assert len(found) == 20
    for one in found:
        assert np.abs(one.image.astype(int) - expected).max() <= 2
    reused = io.BytesIO()

    def frames():
        for level in range(20):
            reused.seek(0)
            reused.write(encode(Image.new("RGB", (40, 30), (level, 0, 0)), "PNG"))
            reused.truncate()
            yield reused

    assert [one.image[0, 0, 0] for one in explainer.stream(frames(), 0)] == list(range(20))


def test_a_file_that_can_not_be_read_is_raised_at_its_turn():
    closed = io.BytesIO()
    closed.close()
    cut = Image.open(io.BytesIO(encode(RGB.resize((400, 400)), "PNG")[:3000]))
    masked = np.ma.masked_less(PIXELS, 100)
    explainer = Explainer(tiny_explainer(), threads=1)
    for bad, message in ((closed, "closed file"), (cut, "can't read"), (masked, "masked")):
        stream = explainer.stream([RGB, PIXELS, bad, RGB])
        for _ in range(2):
            assert (next(stream).image == PIXELS).all()
        with pytest.raises(ImageError, match=message) as caught:
            next(stream)
        assert str(caught.value).count("can't read") <= 1


def test_what_is_kept_of_a_picture():
    array = PIXELS.copy()
    assert not np.shares_memory(kept(array), array)
    for one in ("a/path", Path("a/path"), b"bytes"):
        assert kept(one) is one
    assert kept(io.BytesIO(b"bytes")) == b"bytes"
    assert cv2.norm(kept(RGB), PIXELS) == 0
