from __future__ import annotations

import numpy as np
import pytest

from onnxplain import TargetError
from onnxplain.targets import resolve_target

LABELS = ("tabby", "tiger cat", "crane", "Siamese cat", "crane", "Egyptian cat")


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (None, -1),
        (0, 0),
        (5, 5),
        (-1, -1),
        (-6, -6),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.array(3), 3),
        ("tiger cat", 1),
        ("Siamese cat", 3),
    ],
)
def test_targets(target, index):
    assert resolve_target(target, LABELS, 6) == index


@pytest.mark.parametrize("target", [6, -7, 10**30, np.int64(6)])
def test_out_of_range(target):
    with pytest.raises(TargetError, match=r"out of range: the model has 6 classes, 0 to 5"):
        resolve_target(target, LABELS, 6)


@pytest.mark.parametrize("target", [True, np.True_, 1.0, np.float32(1), [1], np.array([1, 2]), b"tabby"])
def test_what_is_no_target(target):
    with pytest.raises(TargetError, match="an index, a label or a negative rank"):
        resolve_target(target, LABELS, 6)


def test_an_ambiguous_label_lists_its_indices():
    with pytest.raises(TargetError, match=r"'crane' names 2 classes; give an index: 2, 4"):
        resolve_target("crane", LABELS, 6)


@pytest.mark.parametrize("written", ["tigercat", "Tiger Cat", "tiger  cat"])
def test_an_unknown_label_names_near_ones(written):
    with pytest.raises(TargetError, match=r"did you mean 'tiger cat'"):
        resolve_target(written, LABELS, 6)


def test_an_unknown_label_with_nothing_near():
    with pytest.raises(
        TargetError, match=r"no class 'zebra'; onnxplain inspect MODEL.onnx --json lists its labels$"
    ):
        resolve_target("zebra", LABELS, 6)


def test_a_label_where_the_model_has_none():
    with pytest.raises(TargetError, match="no labels"):
        resolve_target("tabby", None, 6)


def test_any_index_where_the_model_does_not_say_how_many():
    assert resolve_target(10**6, None, None) == 10**6
    for target in (2**63, -(2**63) - 1):
        with pytest.raises(TargetError, match="out of range"):
            resolve_target(target, None, None)
