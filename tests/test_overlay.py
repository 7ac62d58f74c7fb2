from __future__ import annotations

from typing import get_args

import cv2
import numpy as np
import pytest

from onnxplain.overlay import Colormap, overlay

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 256, 3), dtype=np.uint8)
RAMP = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(20, 0)


def colours(colormap):
    """Return the 256 colours of one of OpenCV's maps, RGB, as the ramp has them."""
    code = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    return cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], code)[..., ::-1].repeat(20, 0)


def test_no_heat_leaves_the_picture_as_it_is():
    assert (overlay(PICTURE, np.zeros((20, 256), np.float32)) == PICTURE).all()
    assert (overlay(PICTURE, RAMP, alpha=0) == PICTURE).all()


@pytest.mark.parametrize("colormap", get_args(Colormap))
def test_full_heat_at_full_weight_is_the_colour_map_itself(colormap):
    blended = overlay(PICTURE, np.ones((20, 256), np.float32), colormap, alpha=1)
    assert np.abs(blended.astype(int) - colours(colormap)[0, -1]).max() <= 1


@pytest.mark.parametrize("colormap", get_args(Colormap))
def test_blend(colormap):
    weight = 0.7 * RAMP[..., None]
    expected = PICTURE * (1 - weight) + colours(colormap) * weight
    blended = overlay(PICTURE, RAMP, colormap, alpha=0.7)
    assert blended.dtype == np.uint8
    assert np.abs(blended - expected).max() <= 1


def lightness(rgb):
    return cv2.cvtColor((rgb / np.float32(255)).astype(np.float32), cv2.COLOR_RGB2LAB)[0, :, 0]


def test_the_default_colour_map_gets_lighter_with_the_heat_and_jet_does_not():
    assert (np.diff(lightness(colours("inferno"))) > -0.2).all()
    assert (np.diff(lightness(colours("jet"))) < -0.2).any()
    default = overlay(np.zeros_like(PICTURE), RAMP, alpha=1)
    assert (default == overlay(np.zeros_like(PICTURE), RAMP, "inferno", 1)).all()


@pytest.mark.parametrize(("colormap", "alpha"), [("rainbow2", 0.5), ("", 0.5), ("jet", 1.1), ("jet", -1)])
def test_wrong_options(colormap, alpha):
    with pytest.raises(ValueError, match=r"colour map|alpha"):
        overlay(PICTURE, RAMP, colormap, alpha)
