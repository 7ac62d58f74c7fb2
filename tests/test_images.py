"""Decoding, against Pillow; and pictures that are none."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from imagecodecs import jpeg2k_encode
from PIL import Image, ImageOps

from onnxplain import ImageError
from onnxplain.images import decode_image, read_image, read_picture


def smooth_noise(height=40, width=60, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (height, width, channels), dtype=np.uint8), (0, 0), 3)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX)


RGB = Image.fromarray(smooth_noise())
RGBA = Image.fromarray(smooth_noise(channels=4))
GREY = RGB.convert("L")
CMYK = Image.fromarray(smooth_noise(channels=4), "CMYK")


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data):
    """Return what Pillow makes of a picture: upright, and over white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    rgba = image.convert("RGB").convert("RGBA") if image.mode == "CMYK" else image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def assert_as_pillow(data, tolerance=1):
    found, expected = decode_image(data, "it"), pillow(data)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance
    assert found.std() > 1  # and it isn't blank


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (RGB, "PNG", {}),
        (RGB, "JPEG", {}),
        (RGB, "JPEG", {"progressive": True}),
        (RGB, "WEBP", {}),
        (RGB, "WEBP", {"lossless": True}),
        (RGB, "TIFF", {}),
        (RGB, "TIFF", {"compression": "tiff_lzw"}),
        (RGB, "BMP", {}),
        (RGB, "GIF", {}),
        (RGB, "PPM", {}),
        (GREY, "PNG", {}),
        (GREY, "JPEG", {}),
        (GREY, "TIFF", {}),
        (RGB.convert("1"), "PNG", {}),
        (RGB.convert("1"), "TIFF", {}),
        (RGB.convert("P"), "PNG", {}),
        (RGB.quantize(16), "PNG", {"bits": 4}),
        (RGB.quantize(2), "PNG", {"bits": 1}),
        (RGB.quantize(16), "BMP", {}),
        (RGB.quantize(16), "TIFF", {}),
    ],
)
def test_formats(image, kind, options):
    assert_as_pillow(encode(image, kind, **options))


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (RGBA, "PNG", {}),
        (RGBA, "WEBP", {"lossless": True, "exact": True}),
        (RGBA, "TIFF", {}),
        (RGBA.convert("LA"), "PNG", {}),
        (RGB.quantize(16), "PNG", {"transparency": bytes(range(0, 160, 10))}),
        (RGB.quantize(16), "PNG", {"transparency": 3}),
        (RGB.quantize(16), "GIF", {"transparency": 3}),
        (GREY, "PNG", {"transparency": 100}),
        (RGB, "PNG", {"transparency": RGB.getpixel((3, 3))}),
    ],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparency_is_laid_over_white(image, kind, options):
    data = encode(image, kind, **options)
    assert_as_pillow(data)
    opaque = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (decode_image(data, "it") != opaque).any()  # transparency did count


@pytest.mark.parametrize(
    "data",
    [
        encode(RGB.convert("CMYK"), "JPEG"),
        encode(CMYK, "JPEG", quality=95),
        encode(CMYK, "JPEG", quality=95, subsampling=0),
        encode(CMYK, "TIFF"),
    ],
)
def test_cmyk(data):
    assert_as_pillow(data, tolerance=2)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits(channels, extension):
    """Pillow reads few of them, so the reference is what was encoded."""
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60, channels), dtype=np.uint16)
    data = cv2.imencode(extension, deep[..., [2, 1, 0, 3][:channels]] if channels > 1 else deep)[1].tobytes()
    colour, alpha = deep[..., : min(channels, 3)] / 65535, 1.0
    if channels == 4:
        alpha = deep[..., 3:] / 65535
    expected = (colour * alpha + 1 - alpha) * 255
    assert np.abs(decode_image(data, "it") - expected).max() <= 1
    assert np.abs(read_image(deep) - expected).max() <= 1


def deep(bits, channels):
    """Return numbers of so many bits, and the colours that a viewer shows of them."""
    white = 2**bits - 1
    values = smooth_noise(channels=channels).reshape(40, 60, channels) / 255
    numbers = np.round(values * white).astype(np.uint16 if bits > 8 else np.uint8)
    colour = numbers[..., :3] / white
    alpha = numbers[..., 3:] / white if channels == 4 else 1
    return numbers, np.broadcast_to((colour * alpha + 1 - alpha) * 255, (40, 60, 3))


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_depths_of_avif(channels, bits):
    numbers, expected = deep(bits, channels)
    options = [cv2.IMWRITE_AVIF_QUALITY, 100, cv2.IMWRITE_AVIF_DEPTH, bits]
    bgr = numbers if channels == 1 else numbers[..., [2, 1, 0, 3][:channels]]
    data = cv2.imencode(".avif", bgr, options)[1].tobytes()
    assert np.abs(decode_image(data, "it") - expected).max() <= 1


@pytest.mark.parametrize("container", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_depths_of_jpeg_2000(channels, bits, container):
    numbers, expected = deep(bits, channels)
    data = jpeg2k_encode(
        numbers.squeeze(),
        level=0,
        reversible=True,
        bitspersample=bits,
        codecformat=container,
        colorspace="GRAY" if channels == 1 else "SRGB",
    )
    assert np.abs(decode_image(data, "it") - expected).max() <= 1
    # A last channel of another depth, says the header.
    header = data.index(b"\xff\x4f\xff\x51")
    odd = bytearray(data)
    odd[header + 42 + 3 * (channels - 1)] ^= 3
    if channels > 1:
        with pytest.raises(ImageError, match=r"several depths|damaged"):
            decode_image(bytes(odd), "it")


@pytest.mark.parametrize("white", [1, 2, 15, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_depths_of_netpbm(kind, white):
    channels = 3 if kind in ("P3", "P6") else 1
    numbers = np.round(smooth_noise(channels=channels).reshape(40, 60, channels) / 255 * white).astype(int)
    header = f"{kind} # a comment\n#another\n60 40\n{white}\n".encode()
    as_text = " ".join(str(number) for number in numbers.ravel()).encode() + b"\n"
    as_bytes = numbers.astype(">u2" if white > 255 else np.uint8).tobytes()
    data = header + (as_text if kind in ("P2", "P3") else as_bytes)
    assert np.abs(decode_image(data, "it") - numbers / white * 255).max() <= 1


@pytest.mark.parametrize("kind", ["P1", "P4"])
def test_netpbm_in_black_and_white(kind):
    black = np.asarray(RGB.convert("1")) == 0
    pixels = b" ".join(b"%d" % one for one in black.ravel()) + b"\n"
    data = f"{kind}\n60 40\n".encode() + (np.packbits(black, axis=1).tobytes() if kind == "P4" else pixels)
    assert (decode_image(data, "it") == np.where(black, 0, 255)[..., None]).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("white", [1, 255, 65535])
def test_pam_is_refused(channels, white):
    """OpenCV swaps its colours, and fails at two channels."""
    pixels = np.zeros((40, 60, channels), ">u2" if white > 255 else np.uint8).tobytes()
    tuples = ("GRAYSCALE", "GRAYSCALE_ALPHA", "RGB", "RGB_ALPHA")[channels - 1]
    header = f"P7\nWIDTH 60\nHEIGHT 40\nDEPTH {channels}\nMAXVAL {white}\nTUPLTYPE {tuples}\nENDHDR\n"
    with pytest.raises(ImageError, match=r"^it\.pam is a PAM file, which isn't read; save it as PNG$"):
        decode_image(header.encode() + pixels, "it.pam")


@pytest.mark.parametrize(("header", "masks", "has_alpha"), [(40, 3, False), (108, 3, False), (108, 4, True)])
@pytest.mark.parametrize("fourth", [0, 128, 255])
def test_the_fourth_byte_of_a_bmp(header, masks, has_alpha, fourth):
    """It is alpha where a mask says so."""
    fields = struct.pack("<IiiHHIIiiII", header, 60, 40, 1, 32, 3, 0, 0, 0, 0, 0)
    masked = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)[: 4 * masks]
    info = fields + (masked if header == 40 else masked.ljust(header - 40, b"\0"))
    pixels = np.dstack([np.asarray(RGB)[::-1, :, ::-1], np.full((40, 60), fourth, np.uint8)])
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(info)) + info + pixels.tobytes()
    alpha = fourth / 255 if has_alpha else 1
    expected = np.asarray(RGB) * alpha + 255 * (1 - alpha)
    assert np.abs(decode_image(data, "it") - expected).max() <= 1


@pytest.mark.parametrize(
    "extension", [".tiff", ".png", ".jp2", ".webp", ".avif", ".bmp", ".hdr", ".pfm", ".ppm"]
)
def test_any_array_that_opencv_writes_is_a_picture_or_an_image_error(extension):
    """One odd picture doesn't stop the others."""
    rng = np.random.default_rng(0)
    written = 0
    for dtype in ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"):
        for channels in (1, 3, 4):
            if (extension, channels) == (".hdr", 4):
                continue  # which ends the process
            pixels = (rng.random((40, 60, channels)) * 100).astype(dtype)
            try:
                done, data = cv2.imencode(extension, pixels)
            except cv2.error:
                continue
            if done:
                written += 1
                with suppress(ImageError):
                    assert decode_image(data.tobytes(), "it").shape == (40, 60, 3)
    assert written > 3


LIMITED = """
import resource, sys
from onnxplain import ImageError
from onnxplain.images import read_image
import numpy as np
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 80_000_000, held + 80_000_000))
for picture in (sys.argv[1], sys.argv[2], np.broadcast_to(np.uint8(3), (9000, 9000, 3)), sys.argv[3]):
    try:
        print(read_image(picture).shape)
    except ImageError as error:
        print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux alone says what a process holds")
def test_a_picture_that_needs_more_memory_than_there_is(tmp_path):
    """The next one is read."""
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    (tmp_path / "file.png").touch()
    os.truncate(tmp_path / "file.png", 200_000_000)
    RGB.save(tmp_path / "small.png")
    names = [str(tmp_path / name) for name in ("large.png", "file.png", "small.png")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *names], capture_output=True, text=True, check=False
    )
    large, file, array, small = done.stdout.splitlines()
    for line, name in ((large, names[0]), (file, names[1]), (array, "the array")):
        assert line == f"{name} is too large: it needs more memory than there is", done.stderr
    assert small == "(40, 60, 3)"


def test_16_bits_with_a_transparent_grey():
    levels = np.full((4, 4), 30000, np.uint16)
    levels[1, 2] = 1000
    data = cv2.imencode(".png", levels)[1].tobytes()
    data = with_png_chunk(data, b"tRNS", (1000).to_bytes(2))
    found = decode_image(data, "it")
    assert (found[1, 2] == 255).all()
    assert (found[0, 0] == 117).all()


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.abs(decode_image(data, kind).astype(int) - (255, 0, 0)).max() <= 1


def test_a_path_bytes_and_an_array_are_the_same(tmp_path):
    data = encode(RGB, "PNG")
    path = tmp_path / "photo äö.png"
    path.write_bytes(data)
    for image in (path, str(path), data, bytearray(data), np.asarray(RGB)):
        assert (read_image(image) == np.asarray(RGB)).all()


@pytest.mark.parametrize(
    "array",
    [
        np.asarray(RGB).astype(np.float32) / 255,
        np.asarray(RGB).astype(np.float64) / 255,
        np.asarray(RGB).astype(np.uint16) * 257,
        np.asarray(RGB)[::1, ::-1][:, ::-1],
        np.asfortranarray(RGB),
    ],
)
def test_arrays(array):
    assert (read_image(array) == np.asarray(RGB)).all()
    assert read_image(array).flags.c_contiguous


def test_grey_and_rgba_arrays():
    grey = np.asarray(GREY)
    for array in (grey, grey[..., None], grey / 255):
        assert (read_image(array) == grey[..., None]).all()
        assert read_image(array).shape == (40, 60, 3)
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", RGBA.size, "white"), RGBA).convert("RGB"))
    assert np.abs(read_image(np.asarray(RGBA)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4, 3), np.nan), "NaN or infinite"),
        (np.full((4, 4, 3), np.inf), "NaN or infinite"),
        (np.full((4, 4, 3), 2.0), r"floats from 2 to 2; floats must be in \[0, 1\]"),
        (np.full((4, 4, 3), -0.1), r"floats must be in \[0, 1\]"),
        (np.zeros((4, 4, 3), np.int64), "dtype int64"),
        (np.zeros((4, 4, 3), bool), "dtype bool"),
        (np.zeros((4, 4, 3), complex), "dtype complex128"),
        (np.zeros((3, 4, 4), np.uint8)[None], r"shape \[1, 3, 4, 4\]"),
        (np.zeros((3, 40, 50), np.uint8), "channels last"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\]"),
        (np.zeros(4, np.uint8), r"shape \[4\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.float32), "no pixels"),
        (None, "not NoneType"),
        (3, "not int"),
        ([[1, 2], [3, 4]], "not list"),
    ],
)
def test_what_is_no_picture(array, message):
    with pytest.raises(ImageError, match=message):
        read_image(array)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9, -1])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 2}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("BMP", {}),
    ],
)
def test_cut_off_files(kind, options, keep):
    data = encode(Image.fromarray(smooth_noise(200, 300)), kind, **options)
    data = data[: int(len(data) * keep) if keep > 0 else keep]
    with pytest.raises(ImageError, match=r"^it\.x is (cut off|damaged)"):
        decode_image(data, "it.x")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture():
    thumbnail = encode(RGB, "JPEG")
    segment = b"\xff\xe2" + (len(thumbnail) + 6).to_bytes(2) + b"MPF\0" + thumbnail
    data = encode(Image.fromarray(smooth_noise(200, 300)), "JPEG")
    data = data[:2] + segment + data[2:]
    assert decode_image(data, "it").shape == (200, 300, 3)
    with pytest.raises(ImageError, match="cut off"):
        decode_image(data[: len(data) // 2], "it")


def test_what_follows_a_jpeg_does_not_matter():
    data = encode(RGB, "JPEG")
    assert (decode_image(data + b"\0" * 100, "it") == decode_image(data, "it")).all()


def test_a_png_with_a_wrong_checksum():
    data = bytearray(encode(RGB, "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        decode_image(bytes(data), "it")


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"hello " * 100,
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"GIF89a",
        b"BM",
        b"RIFF....WEBP",
        b"<svg/>",
        b"P5 4 4 0\n" + bytes(16),
        b"P5 4 4 " + b"9" * 5000 + b"\n" + bytes(16),
        b"\0" * 5000,
    ],
)
def test_other_files(data):
    with pytest.raises(ImageError, match=r"^it is (damaged|cut off)"):
        decode_image(data, "it")


def test_files_that_are_none(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(ImageError, match=r"empty\.jpg is empty"):
        read_image(empty)
    with pytest.raises(ImageError, match=r"there is no file .*missing\.jpg"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="can't read"):
        read_image("a\0b")
    with pytest.raises(ImageError, match="the encoded picture is empty"):
        read_image(b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_a_header_that_claims_too_much(size):
    header = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = with_png_chunk(data, b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"too large|damaged"):
        decode_image(data, "it")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_files_raise_nothing_else(kind):
    whole = np.frombuffer(encode(RGBA if kind in ("PNG", "WEBP", "TIFF") else RGB, kind), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(100):
        data = whole.copy()
        data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
        try:
            found = decode_image(data.tobytes(), "it")
        except ImageError:
            continue
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert found.shape[2] == 3


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_png_chunk(data, kind, content):
    """Return a PNG with one more chunk after its header."""
    return data[:33] + png_chunk(kind, content) + data[33:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(800, 600), (803, 601), (602, 601)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_reduced_jpegs(size, options, orientation):
    """They are as large as what is asked for, at least; `size` and `image` are the whole picture's."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = cv2.resize(smooth_noise(60, 80), size, interpolation=cv2.INTER_CUBIC)
    data = encode(Image.fromarray(smooth), "JPEG", exif=exif, **options)
    whole = decode_image(data, "it")
    for enough, scale in ((301, 1), (300, 2), (160, 2), (150, 4), (75, 8), (1, 8)):
        picture = read_picture(data, enough)
        assert picture.pixels.shape[:2] == tuple(-(-side // scale) for side in whole.shape[:2])
        assert picture.size == whole.shape[:2]
        assert (picture.image == whole).all()
        expected = cv2.resize(whole, picture.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(picture.pixels.astype(int) - expected).mean() < 8  # turned otherwise: 50


@pytest.mark.parametrize("image", [Image.fromarray(smooth_noise(channels=4), "CMYK"), GREY])
def test_reduced_jpegs_of_other_colours(image):
    data = encode(image.resize((480, 320)), "JPEG")
    picture = read_picture(data, 20)
    assert picture.pixels.shape == ((320, 480, 3) if image.mode == "CMYK" else (40, 60, 3))
    assert picture.size == (320, 480)


def test_what_is_not_reduced(tmp_path):
    path = tmp_path / "it.png"
    path.write_bytes(encode(RGB, "PNG"))
    for image in (path, path.read_bytes(), np.asarray(RGB)):
        picture = read_picture(image, 4)
        assert (picture.pixels == np.asarray(RGB)).all()
        assert picture.image is picture.pixels
    data = encode(RGB, "JPEG")
    assert (read_picture(data).pixels == decode_image(data, "it")).all()
    for bad, message in ((data[:-40], "cut off"), (b"", "empty"), (data[:100], "cut off")):
        with pytest.raises(ImageError, match=message):
            read_picture(bad, 4)
    with pytest.raises(ImageError, match="not int"):
        read_picture(3, 4)
