from __future__ import annotations

import numpy as np
import pytest

from onnxplain.boxes import find_boxes


def test_components_largest_first():
    heatmap = np.zeros((20, 30), np.float32)
    heatmap[2:5, 3:6] = 1  # 9 pixels
    heatmap[10:18, 12:25] = 0.5  # 104 pixels
    heatmap[0, 29] = 0.1
    assert find_boxes(heatmap) == [(12, 10, 25, 18), (3, 2, 6, 5)]
    assert find_boxes(heatmap, 0.6) == [(3, 2, 6, 5)]
    assert find_boxes(heatmap, 0.05)[-1] == (29, 0, 30, 1)


def test_the_threshold_is_a_fraction_of_the_maximum():
    heatmap = np.zeros((20, 30), np.float32)
    heatmap[4:8, 4:8] = 0.01
    heatmap[5, 5] = 0.03
    assert find_boxes(heatmap, 0.5) == [(5, 5, 6, 6)]
    assert find_boxes(heatmap, 0.2) == [(4, 4, 8, 8)]


def test_diagonal_neighbours_are_connected():
    heatmap = np.eye(4, dtype=np.float32)
    assert find_boxes(heatmap) == [(0, 0, 4, 4)]


def test_a_blank_heatmap_has_no_boxes():
    assert find_boxes(np.zeros((20, 30), np.float32)) == []


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5, float("nan")])
def test_a_threshold_that_is_no_fraction(threshold):
    with pytest.raises(ValueError, match="threshold"):
        find_boxes(np.zeros((2, 2), np.float32), threshold)
