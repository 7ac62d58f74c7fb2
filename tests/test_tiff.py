"""TIFF: every tag that changes what is seen is obeyed, or the file is refused."""

from __future__ import annotations

import io
import itertools

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from onnxplain import ImageError, extras
from onnxplain.images import decode_image
from sample_pictures import turned
from tiff_files import (
    BLACK_IS_ZERO,
    CMYK,
    DEFLATE,
    LAB,
    ORIENTATION,
    PALETTE,
    RGB,
    SHORT,
    WHITE_IS_ZERO,
    YCBCR,
    tiff,
)

COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, CMYK: 4}
OTHER, ASSOCIATED, ALPHA = 0, 1, 2  # what an extra sample is


def smooth(channels, height=40, width=60):
    """Return floats from 0 to 1, [height, width, channels]."""
    noise = np.random.default_rng(channels).random((height, width, channels))
    blurred = cv2.GaussianBlur(noise, (0, 0), 3).reshape(noise.shape)
    low, high = blurred.min((0, 1)), blurred.max((0, 1))
    return (blurred - low) / (high - low)


def numbers(values, bits):
    """Return values from 0 to 1 as unsigned numbers of so many bits."""
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return np.round(values * (2**bits - 1)).astype(dtype)


def seen(values, photometric, extra=()):
    """Return what a viewer shows of samples from 0 to 1: RGB from 0 to 255."""
    count = COLOURS[photometric]
    colour = 1 - values[..., :count] if photometric in (WHITE_IS_ZERO, CMYK) else values[..., :count]
    if photometric == CMYK:
        colour = colour[..., :3] * colour[..., 3:]
    for number, kind in enumerate(extra, count):
        if kind != OTHER:
            alpha = values[..., number, None]
            colour = (colour if kind == ASSOCIATED else colour * alpha) + 1 - alpha
            break
    return 255 * np.broadcast_to(np.clip(colour, 0, 1), (*values.shape[:2], 3))


def assert_seen(data, expected, most=1.0, mean=1.0):
    found = decode_image(data, "it")
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    wrong = np.abs(found - np.asarray(expected, float))
    assert wrong.max() <= most
    assert wrong.mean() <= mean


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [*((bits, None) for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16, 32)), (16, "f2"), (32, "f4"), (64, "f8")],
)
@pytest.mark.parametrize("photometric", list(COLOURS))
def test_samples(photometric, bits, dtype):
    """Of all depths, together and apart, with alpha of both kinds and with what isn't alpha."""
    for extra, planes in itertools.product([(), (0,), (1,), (2,), (0, 2), (2, 0), (0, 0)], [1, 2]):
        count = COLOURS[photometric] + len(extra)
        if count == 1 and planes == 2:
            continue
        values = smooth(count)
        if ASSOCIATED in extra:
            values[..., : COLOURS[photometric]] *= values[..., -1:]
        samples = values.astype(dtype) if dtype else numbers(values, bits)
        exact = samples.astype(float) if dtype else samples / (2**bits - 1)
        assert_seen(
            tiff(samples, photometric, bits=bits, extra=extra, planes=planes), seen(exact, photometric, extra)
        )


LAYOUTS = [{}, {"rows": 7}, {"rows": 1}, {"tile": 16}, {"tile": 64}, {"tile": 16, "compression": DEFLATE}]


@pytest.mark.parametrize(
    ("photometric", "bits", "dtype", "extra", "planes"),
    [
        (BLACK_IS_ZERO, 8, None, (), 1),
        (WHITE_IS_ZERO, 8, None, (), 1),
        (BLACK_IS_ZERO, 1, None, (), 1),
        (BLACK_IS_ZERO, 16, None, (), 1),
        (RGB, 8, None, (), 1),
        (RGB, 8, None, (), 2),
        (RGB, 8, None, (ALPHA,), 1),
        (RGB, 16, None, (), 1),
        (RGB, 16, None, (ALPHA,), 2),
        (RGB, 32, "f4", (), 1),
        (CMYK, 8, None, (), 1),
    ],
)
def test_orientation(photometric, bits, dtype, extra, planes):
    """Of strips and tiles, in either byte order, in TIFF and BigTIFF."""
    values = smooth(COLOURS[photometric] + len(extra), 50, 75)
    samples = values.astype(dtype) if dtype else numbers(values, bits)
    expected = seen(samples.astype(float) if dtype else samples / (2**bits - 1), photometric, extra)
    for layout, orientation in itertools.product(LAYOUTS, range(1, 9)):
        data = tiff(
            samples,
            photometric,
            bits=bits,
            extra=extra,
            planes=planes,
            order="<>"[orientation % 2],
            big=orientation in (3, 4, 7, 8),
            more=[(ORIENTATION, SHORT, [orientation])],
            **layout,
        )
        assert_seen(data, turned(expected, orientation))


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    "compression",
    ["lzw", "deflate", "adobe_deflate", "packbits", "lzma", "zstd", "jpeg2000", "png", "jpegxl", "lerc"],
)
def test_compressions_without_loss(compression, dtype, tile):
    if dtype == np.float32 and compression in ("jpeg2000", "png"):
        return
    predictors = {np.float32: "floatingpoint"}.get(dtype, "horizontal")
    for channels in (1, 3):
        values = smooth(channels).squeeze()
        samples = (
            values.astype(dtype) if dtype == np.float32 else numbers(values, 8 * np.dtype(dtype).itemsize)
        )
        exact = samples.astype(float) if dtype == np.float32 else samples / np.iinfo(dtype).max
        photometric = "rgb" if channels == 3 else "minisblack"
        for predictor in (None, predictors) if compression in ("lzw", "deflate", "lzma", "zstd") else (None,):
            file = io.BytesIO()
            tifffile.imwrite(
                file,
                samples,
                photometric=photometric,
                compression=compression,
                predictor=predictor,
                tile=tile,
            )
            assert_seen(
                file.getvalue(), seen(exact.reshape(40, 60, -1), RGB if channels == 3 else BLACK_IS_ZERO)
            )


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, "TIFF", **options)
    return file.getvalue()


PICTURE = Image.fromarray(numbers(smooth(3), 8))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw"])
def test_compressions_of_black_and_white(compression):
    image = PICTURE.convert("1")
    assert_seen(saved(image, compression=compression), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_inside(mode):
    data = saved(PICTURE.convert(mode), compression="jpeg", quality=95)
    assert_seen(data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    file = io.BytesIO()
    samples = np.asarray(PICTURE.convert(mode))
    photometric = {"L": "minisblack", "RGB": "rgb", "CMYK": "separated"}[mode]
    tifffile.imwrite(file, samples, photometric=photometric, compression="jpeg", tile=(32, 32))
    decoded = Image.fromarray(tifffile.imread(io.BytesIO(file.getvalue())), mode)
    assert_seen(file.getvalue(), np.asarray(decoded.convert("RGB")), most=2)


def test_webp_inside():
    file = io.BytesIO()
    options = {"compressionargs": {"lossless": True}}
    tifffile.imwrite(file, np.asarray(PICTURE), photometric="rgb", compression="webp", **options)
    assert_seen(file.getvalue(), np.asarray(PICTURE))


def test_ycbcr():
    assert_seen(saved(PICTURE.convert("YCbCr")), np.asarray(PICTURE), most=3)


@pytest.mark.parametrize("bits", [8, 16])
def test_cielab(bits):
    """LittleCMS made it."""
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.applyTransform(PICTURE, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    data = saved(image)
    if bits == 16:
        deep = tifffile.imread(io.BytesIO(data)).astype(np.uint16) * (257, 256, 256)
        data = tiff(deep.astype(np.uint16), LAB)
    assert_seen(data, np.asarray(PICTURE), most=10)
    white = np.full((4, 4, 3), [2**bits - 1, 0, 0], f"u{bits // 8}")
    assert (decode_image(tiff(white, LAB), "it") == 255).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(bits, layout):
    image = PICTURE.quantize(2**bits)
    colours = np.zeros((2**bits, 3), int)
    given = np.reshape(image.getpalette(), (-1, 3))[: 2**bits]
    colours[: len(given)] = given
    index = np.asarray(image)[..., None]
    for scale in (257, 1):  # some write 8 bits, where it should be 16
        more = [(320, SHORT, (colours * scale).T.ravel())]
        assert_seen(tiff(index, PALETTE, bits=bits, more=more, **layout), colours[index[..., 0]])
    if bits == 8:
        alpha = numbers(smooth(1), 8)
        data = tiff(np.dstack([index, alpha]), PALETTE, extra=(ALPHA,), more=more, **layout)
        assert_seen(data, seen(np.dstack([colours[index[..., 0]], alpha]) / 255, RGB, (ALPHA,)))


@pytest.mark.parametrize("compression", [1, DEFLATE])
@pytest.mark.parametrize(("bits", "channels"), [(1, 1), (8, 1), (8, 3), (16, 3), (8, 2)])
def test_bits_in_the_other_order(bits, channels, compression):
    values = smooth(channels)
    samples = numbers(values, bits)
    extra = (ALPHA,) if channels == 2 else ()
    photometric = RGB if channels == 3 else BLACK_IS_ZERO
    data = tiff(samples, photometric, bits=bits, extra=extra, fill=2, compression=compression)
    assert_seen(data, seen(samples / (2**bits - 1), photometric, extra))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_fourth_sample_that_no_tag_explains_is_alpha(bits):
    """OpenCV writes it so; Pillow and libtiff take it for alpha."""
    samples = numbers(smooth(4), bits)
    expected = seen(samples / (2**bits - 1), RGB, (ALPHA,))
    assert_seen(cv2.imencode(".tiff", samples[..., [2, 1, 0, 3]])[1].tobytes(), expected)
    assert_seen(tiff(samples, RGB, tile=16), expected)


@pytest.mark.parametrize("missing", [259, 266, 278, 284, 317, 339])
def test_tags_have_defaults(missing):
    samples = numbers(smooth(3), 8)
    assert_seen(tiff(samples, RGB, without=[missing]), samples)
    samples = numbers(smooth(2), 8)
    assert_seen(
        tiff(samples, BLACK_IS_ZERO, extra=(ALPHA,), without=[missing]),
        seen(samples / 255, BLACK_IS_ZERO, (ALPHA,)),
    )


def test_the_first_page():
    pages = [Image.new("LA", (9, 9), (level, 255)) for level in (10, 200)]
    data = saved(pages[0], save_all=True, append_images=pages[1:])
    assert (decode_image(data, "it") == 10).all()


FOUR = numbers(smooth(4), 8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *((tiff(FOUR[..., :3].astype(dtype), RGB), "SampleFormat 2") for dtype in ("i1", "i2", "i4")),
        (tiff(FOUR[..., :1].astype("i2"), BLACK_IS_ZERO), "aren't unsigned or floats"),
        (tiff(FOUR, CMYK, more=[(332, SHORT, [2])]), "unusual colour space"),
        (tiff(FOUR[..., :3], 9), r"unusual colour space \(PhotometricInterpretation 9\)"),
        (tiff(FOUR[..., :3], RGB, without=[258], more=[(258, SHORT, [8, 8, 16])]), r"bits \[8, 8, 16\]"),
        (tiff(FOUR[..., :2], RGB), "2 samples a pixel"),
        (tiff(FOUR[..., :3], RGB, extra=(ALPHA,)), "3 samples a pixel"),
        (tiff(FOUR, RGB, extra=(7,)), r"ExtraSamples \[7\]"),
        (tiff(FOUR[..., :3], YCBCR, planes=2, tile=16), "YCbCr"),
        (tiff(FOUR[..., :1], PALETTE, bits=2), "palette is missing"),
        (tiff(FOUR[..., :3] / np.float32(100), RGB, planes=2), r"floats from 0 to 2\.55"),
        (tiff(np.full((4, 4, 2), np.nan, np.float32), RGB - 1, extra=(ALPHA,)), "NaN"),
        (tiff(FOUR[..., :3], RGB, without=[262]), "is damaged"),
        (tiff(FOUR[..., :3], RGB, without=[256], more=[(256, 4, [1 << 20])]), "is damaged"),
        (tiff(FOUR[..., :3], RGB, without=[256], more=[(256, 4, [1 << 30])]), "is too large"),
        (tiff(FOUR[..., :2], BLACK_IS_ZERO, extra=(ALPHA,), without=[273]), "can't read it"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(data, "it.tif")
    assert "it.tif" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits", "zstd"])
def test_cut_off_files(compression, keep):
    for samples, photometric, extra in (
        (FOUR, "rgb", "unassalpha"),
        (FOUR[..., :2], "minisblack", "unassalpha"),
    ):
        file = io.BytesIO()
        options = {"extrasamples": [extra], "planarconfig": "contig", "rowsperstrip": 8}
        tifffile.imwrite(file, samples, photometric=photometric, compression=compression, **options)
        data = file.getvalue()
        assert decode_image(data, "it").shape == (40, 60, 3)
        with pytest.raises(ImageError, match=r"it is damaged|can't read it"):
            decode_image(data[: int(keep * len(data))], "it")


def test_damaged_files_raise_nothing_else():
    rng = np.random.default_rng(0)
    deep = FOUR.astype(np.uint16)
    for whole in (
        tiff(FOUR[..., :2], BLACK_IS_ZERO, extra=(ALPHA,), compression=DEFLATE, rows=9),
        tiff(deep, RGB, bits=12, extra=(ASSOCIATED,), planes=2, tile=16),
        tiff(deep, CMYK, more=[(ORIENTATION, SHORT, [6])]),
        tiff(FOUR[..., :3] / np.float32(255), WHITE_IS_ZERO, extra=(OTHER, ALPHA), big=True, order=">"),
    ):
        for _ in range(150):
            data = np.frombuffer(whole, np.uint8).copy()
            data[-rng.integers(1, 300, 3)] = rng.integers(0, 256, 3)
            try:
                found = decode_image(data.tobytes(), "it")
            except ImageError:
                continue
            assert found.dtype == np.uint8
            assert found.ndim == 3


PLAIN = [
    tiff(FOUR[..., :1], BLACK_IS_ZERO),
    tiff(FOUR[..., :1], WHITE_IS_ZERO),
    tiff(FOUR[..., :1] // 128, BLACK_IS_ZERO, bits=1),
    tiff(FOUR[..., :3], RGB, compression=DEFLATE, predictor=2),
    tiff(FOUR[..., :3], RGB, planes=2),
    *(tiff(FOUR, RGB, extra=extra) for extra in ((), (OTHER,), (ASSOCIATED,), (ALPHA,))),
    tiff(FOUR, CMYK),
    tiff(FOUR[..., :3], RGB, compression=DEFLATE, tile=16),
    tiff(FOUR[..., :1].astype(np.uint16) * 257, BLACK_IS_ZERO),
    tiff(FOUR[..., :1].astype(np.uint16) * 257, WHITE_IS_ZERO),
    tiff(FOUR[..., :3].astype(np.uint16) * 257, RGB, tile=16),
    *(
        tiff(FOUR.astype(np.uint16) * 257, RGB, extra=extra)
        for extra in ((), (OTHER,), (ASSOCIATED,), (ALPHA,))
    ),
    tiff(FOUR[..., :3] / np.float32(255), RGB),
    saved(PICTURE.quantize(16)),
    saved(PICTURE, compression="jpeg"),
    saved(PICTURE.convert("1"), compression="group4"),
]


@pytest.fixture
def without_the_extra(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)


@pytest.mark.parametrize("data", PLAIN)
def test_plain_files_need_no_more_packages(data, without_the_extra):
    assert decode_image(data, "it").shape == (40, 60, 3)


@pytest.mark.parametrize(
    "data",
    [
        tiff(FOUR[..., :2], BLACK_IS_ZERO, extra=(ALPHA,)),
        tiff(FOUR[..., :3].astype(np.uint16), RGB, planes=2),
        tiff(FOUR[..., :3], RGB, compression=50000),
        tiff(FOUR[..., :3], RGB, tile=16),
        tiff(FOUR[..., :1].astype(np.uint16), BLACK_IS_ZERO, bits=12),
    ],
)
def test_others_name_the_line_that_installs_what_reads_them(data, without_the_extra):
    """In the error of the picture, so that the others of a batch go on."""
    with pytest.raises(ImageError) as caught:
        decode_image(data, "it.tif")
    assert str(caught.value) == (
        "it.tif is a TIFF of a kind that OpenCV misreads, and tifffile, imagecodecs are not installed; "
        'run: python -m pip install "onnxplain[tiff]"'
    )
