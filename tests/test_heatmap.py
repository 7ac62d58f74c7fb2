"""The heatmap, against torch's resize, grad-cam's pictures, and a picture's geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam.utils.image import scale_cam_image

from onnxplain.heatmap import heatmap
from onnxplain.preprocessing import View


def random_map(h, w, seed=0):
    return np.random.default_rng(seed).normal(size=(h, w)).astype(np.float32)


def minmax(values):
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize("cells", [(7, 7), (1, 5), (14, 10), (30, 20)])
@pytest.mark.parametrize("size", [(224, 224), (97, 131), (5, 3)])
def test_resize_is_bilinear_with_half_pixel_centres(cells, size):
    map_ = random_map(*cells)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(np.maximum(map_, 0)).double()[None, None], size, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    found = heatmap([map_], size)
    assert found.shape == size
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, minmax(resized), atol=1e-6)
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize("cells", [(7, 7), (14, 14), (12, 9)])
def test_it_is_the_picture_of_the_grad_cam_package(cells):
    """Which scales, resizes, and scales again, as its `BaseCAM.forward` does."""
    map_ = random_map(*cells)
    theirs = scale_cam_image(scale_cam_image(np.maximum(map_, 0)[None], (224, 224)))[0]
    np.testing.assert_allclose(heatmap([map_], (224, 224)), theirs, atol=1e-6)


def test_several_layers_are_those_of_the_grad_cam_package():
    maps = [random_map(7, 7, 1), 100 * random_map(14, 14, 2), random_map(28, 28, 3)]
    scaled = [scale_cam_image(np.maximum(map_, 0)[None], (224, 224))[0] for map_ in maps]
    theirs = scale_cam_image(np.mean(scaled, axis=0)[None])[0]
    np.testing.assert_allclose(heatmap(maps, (224, 224)), theirs, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, -3.0, 5.0, 1e-30])
def test_a_constant_map_is_blank(value):
    assert (heatmap([np.full((7, 7), value, np.float32)], (50, 60)) == 0).all()


def test_a_blank_layer_among_others_counts_as_nothing():
    map_ = random_map(7, 7)
    np.testing.assert_allclose(
        heatmap([map_, np.zeros((14, 14), np.float32)], (50, 60)), heatmap([map_], (50, 60)), atol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_the_scale_of_a_map_does_not_matter(scale):
    map_ = random_map(7, 7)
    np.testing.assert_allclose(
        heatmap([map_ * np.float32(scale)], (50, 60)), heatmap([map_], (50, 60)), atol=1e-5
    )


def test_it_lies_where_the_view_lies():
    """A view of whole pixels: there the heatmap of the view's size, and 0 around it."""
    map_ = random_map(7, 7)
    found = heatmap([map_], (60, 80), View(10, 20, 42, 35))
    np.testing.assert_allclose(found[10:52, 20:55], heatmap([map_], (42, 35)), atol=1e-6)
    found[10:52, 20:55] = 0
    assert (found == 0).all()


def test_a_view_beyond_the_picture_loses_what_is_outside():
    """A padded picture: its heatmap is a part of the padded one's, scaled again."""
    map_ = random_map(7, 7)
    padded = heatmap([map_], (70, 70))
    np.testing.assert_allclose(
        heatmap([map_], (50, 60), View(-12, -4, 70, 70)), minmax(padded[12:62, 4:64]), atol=1e-6
    )


def test_a_view_between_pixels():
    """Moving a view by half a pixel samples the map half a pixel off."""
    ramp = np.linspace(0, 1, 8, dtype=np.float32)[None].repeat(8, 0)
    found = heatmap([ramp], (8, 16), View(0, 0.25, 8, 8))
    inside = (np.arange(8) + 0.5 - 0.25 - 0.5).clip(0) / 7
    np.testing.assert_allclose(found[0, :8], minmax(inside), atol=1e-6)
    assert (found[:, 8:] == 0).all()


def test_a_view_that_holds_no_pixel_centre():
    assert (heatmap([random_map(7, 7)], (1, 10), View(0, 4.6, 1, 0.8)) == 0).all()


@pytest.mark.parametrize("cells", [(100, 7), (7, 100), (100, 130), (65, 1)])
def test_large_maps_are_resized_as_small_ones_are(cells, monkeypatch):
    """From two neighbours of each pixel, or by the weights of all cells."""
    map_ = np.random.default_rng(3).random(cells).astype(np.float32)
    view = View(3.5, -2, 90, 260)
    found = heatmap([map_], (80, 250), view)
    monkeypatch.setattr("onnxplain.heatmap._FEW_CELLS", 1000)
    np.testing.assert_allclose(found, heatmap([map_], (80, 250), view), rtol=0, atol=1e-5)
