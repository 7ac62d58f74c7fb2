"""Preprocessing, against torchvision's evaluation transform on PIL pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from onnxplain import Preprocessing
from onnxplain.images import read_image, read_picture
from onnxplain.preprocessing import View, enough_pixels, preprocess

PHOTOGRAPHS = sorted((Path(__file__).resolve().parents[2] / "shared" / "realworld" / "images").glob("*.*"))
TOLERANCE = 0.5  # of 255, mean absolute difference
REDUCED = 0.2  # where a JPEG is decoded at a reduced scale

MODES = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def spec(height, width, resize, interpolation="bilinear", **more):
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Preprocessing(3, height, width, resize=resize, interpolation=interpolation, **plain | more)


def torchvision_pixels(image, wanted):
    """Return what torchvision's transforms make of a picture, [3, height, width] in [0, 255]."""
    resize = (wanted.height, wanted.width) if wanted.resize is None else wanted.resize
    steps = transforms.Compose(
        [
            transforms.Resize(
                list(resize) if isinstance(resize, tuple) else resize, MODES[wanted.interpolation]
            ),
            transforms.CenterCrop((wanted.height, wanted.width)),
            transforms.ToTensor(),
        ]
    )
    return steps(Image.fromarray(image)).numpy() * 255


def difference(image, wanted):
    tensor, _ = preprocess(image, wanted)
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, wanted.height, wanted.width)
    assert tensor.flags.c_contiguous
    return np.abs(tensor * 255 - torchvision_pixels(image, wanted)).mean()


@pytest.mark.skipif(not PHOTOGRAPHS, reason="the photographs of ../shared are not here")
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_photographs(path):
    image = read_image(path)
    assert np.abs(image.astype(int) - np.asarray(Image.open(path).convert("RGB"))).max() <= 1
    assert difference(image, spec(224, 224, 256)) < TOLERANCE
    assert difference(image, spec(224, 224, None)) < TOLERANCE
    assert difference(image, spec(224, 224, 235, "bicubic")) < TOLERANCE
    assert difference(image, spec(299, 299, 342)) < TOLERANCE


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_other_photographs(name, interpolation):
    image = getattr(skimage.data, name)()
    assert difference(image, spec(224, 224, 256, interpolation)) < TOLERANCE


@pytest.mark.parametrize(
    "size",
    [
        (1, 1), (2, 3), (16, 12), (100, 90), (223, 225), (224, 224), (225, 223), (256, 256), (257, 301),
        (511, 513), (10, 2000), (2000, 7), (1, 700), (1500, 1100),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("height", "width", "resize"),
    [
        (224, 224, 256),
        (224, 224, 200),  # smaller than the crop: padded with black
        (97, 130, 96),  # odd sizes
        (224, 240, (230, 250)),
        (96, 128, None),
    ],
)
def test_sizes(size, height, width, resize):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert difference(noise, spec(height, width, resize)) < TOLERANCE


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
@pytest.mark.parametrize(
    ("height", "width", "resize"), [(224, 224, 256), (96, 128, None), (64, 64, (70, 90))]
)
def test_jpegs_decoded_at_a_reduced_scale(name, interpolation, height, width, resize):
    """With a sensor's noise, and no larger than a reduction to half its size needs."""
    wanted = spec(height, width, resize, interpolation)
    sharp = getattr(skimage.data, name)()
    short = 2 * enough_pixels(wanted)
    size = (short * 4 // 3 + 1, short + 1)
    large = cv2.resize(sharp, size, interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 6, large.shape)
    large = np.clip(large + noise, 0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", large[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    picture = read_picture(data, enough_pixels(wanted))
    assert picture.pixels.shape[0] == -(-size[1] // 2)
    tensor, view = preprocess(picture.pixels, wanted, picture.size)
    whole, whole_view = preprocess(picture.image, wanted)
    assert view == whole_view
    assert np.abs(tensor - whole).mean() * 255 < REDUCED


def test_bicubic_overshoot_is_clipped():
    checkers = (np.indices((64, 64)).sum(0) // 16 % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert difference(checkers, spec(224, 224, 256, "bicubic")) < TOLERANCE


def test_normalisation():
    image = skimage.data.astronaut()
    wanted = Preprocessing()
    plain = preprocess(image, spec(224, 224, 256))[0]
    normalise = transforms.Normalize(wanted.mean, wanted.std)
    expected = normalise(torch.from_numpy(plain)).numpy()
    np.testing.assert_allclose(preprocess(image, wanted)[0], expected, atol=1e-6)


def test_colour_order():
    image = skimage.data.astronaut()
    rgb = preprocess(image, spec(224, 224, 256))[0]
    bgr = preprocess(image, spec(224, 224, 256, color="BGR"))[0]
    assert (bgr == rgb[::-1]).all()


def test_grey():
    image = skimage.data.astronaut()
    wanted = Preprocessing(1, 224, 224, "L", resize=256, mean=(0.0,), std=(1.0,))
    steps = [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.Grayscale(),
        transforms.ToTensor(),
    ]
    expected = transforms.Compose(steps)(Image.fromarray(image)).numpy()
    tensor, _ = preprocess(image, wanted)
    assert tensor.shape == (1, 224, 224)
    assert np.abs(tensor - expected).mean() * 255 < TOLERANCE


def test_the_picture_is_left_alone():
    image = skimage.data.astronaut()
    before = image.copy()
    preprocess(image, spec(224, 224, 256))
    assert (image == before).all()


@pytest.mark.parametrize(
    ("size", "wanted", "view"),
    [
        ((300, 400), spec(224, 224, None), View(0, 0, 300, 400)),
        ((256, 256), spec(224, 224, 256), View(16, 16, 224, 224)),
        ((512, 1024), spec(224, 224, 256), View(32, 288, 448, 448)),
        ((1024, 512), spec(224, 224, 256), View(288, 32, 448, 448)),
        ((100, 100), spec(224, 224, 200), View(-6, -6, 112, 112)),
    ],
)
def test_view(size, wanted, view):
    assert preprocess(np.zeros((*size, 3), np.uint8), wanted)[1] == view


def test_the_view_is_where_the_pixels_came_from():
    """A bright spot of the picture arrives at the place in the tensor that the view says."""
    image = np.zeros((431, 613, 3), np.uint8)
    y, x = 300, 250
    image[y - 4 : y + 5, x - 4 : x + 5] = 255
    tensor, view = preprocess(image, spec(224, 224, 256))
    weights = tensor[0] / tensor[0].sum()
    centre_y = (weights.sum(1) * (np.arange(224) + 0.5)).sum() / 224 * view.height + view.top
    centre_x = (weights.sum(0) * (np.arange(224) + 0.5)).sum() / 224 * view.width + view.left
    assert abs(centre_y - (y + 0.5)) < 0.05
    assert abs(centre_x - (x + 0.5)) < 0.05
