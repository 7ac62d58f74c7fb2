"""What a file makes of the classes that it is asked to explain, in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import nn

from autograd import autograd
from graphs import Array
from onnxplain_export import export

CLASSES = 6
LOWEST, HIGHEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
IMAGES = np.random.default_rng(3).standard_normal((4, 1, 8, 8)).astype(np.float32)


class TwinClasses(nn.Module):
    """A classifier whose classes 1 and 4 have the same weights, and so always the same logit."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh())
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(3 * 16, 8)
        self.head = nn.Linear(8, CLASSES, bias=False)
        with torch.no_grad():
            self.head.weight[4] = self.head.weight[1]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hidden(self.pool(self.features(image)).flatten(1))))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return TwinClasses()


@pytest.fixture(scope="module")
def session(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path = tmp_path_factory.mktemp("selector") / "model.onnx"
    export(model, torch.zeros(1, 1, 8, 8), path, layer="features")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def ask(session: onnxruntime.InferenceSession, classes: object, images: Array = IMAGES) -> dict[str, Array]:
    """Run the file; the classes are [batch, classes], or the same ones for every image."""
    classes = np.asarray(classes, np.int64)
    if classes.ndim == 1:
        classes = np.tile(classes, (len(images), 1))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images, "class_index": classes}), strict=True))


def by_logit(logits: Array) -> Array:
    """Return each image's classes, the highest logit first; of equal ones the lower class first."""
    return np.argsort(-logits, axis=1, kind="stable")


def test_classes(session, model):
    every = np.arange(CLASSES)
    found = ask(session, every)
    np.testing.assert_array_equal(found["explained_class"], np.tile(every, (4, 1)))
    classes = torch.from_numpy(found["explained_class"])
    logits, gradients = autograd(model, ["features"], torch.from_numpy(IMAGES), classes)
    np.testing.assert_allclose(found["logits"], logits.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["gradients"], gradients["features"].numpy(), rtol=0, atol=1e-6)
    # The images' gradients differ, or a mixed-up batch wouldn't show.
    assert np.abs(found["gradients"][0] - found["gradients"][1]).max() > 1e-3


def test_ranks_and_ties(session):
    ranks = -1 - np.arange(CLASSES)
    found = ask(session, ranks)
    expected = by_logit(found["logits"])
    np.testing.assert_array_equal(found["logits"][:, 1], found["logits"][:, 4])
    np.testing.assert_array_equal(found["explained_class"], expected)
    named = ask(session, expected)
    np.testing.assert_array_equal(found["gradients"], named["gradients"])


@pytest.mark.parametrize("rank", [-1, -2, -CLASSES])
def test_a_rank_alone(session, rank):
    found = ask(session, [rank])
    np.testing.assert_array_equal(found["explained_class"][:, 0], by_logit(found["logits"])[:, -1 - rank])


def test_classes_and_ranks_differ_between_images(session):
    classes = np.array([[2, -1], [-3, 0], [-1, -6], [5, 5]])
    found = ask(session, classes)
    order = by_logit(found["logits"])
    expected = np.array([[2, order[0, 0]], [order[1, 2], 0], [order[2, 0], order[2, 5]], [5, 5]])
    np.testing.assert_array_equal(found["explained_class"], expected)
    np.testing.assert_array_equal(found["gradients"], ask(session, expected)["gradients"])


@pytest.mark.parametrize("nowhere", [CLASSES, CLASSES + 1, 10**12, HIGHEST, -CLASSES - 1, -(10**12), LOWEST])
def test_out_of_range(session, nowhere):
    """That entry is NaN and -1; those beside it, in other images and in the same, are as without it."""
    classes = np.array([[-2, 3, -1], [-2, nowhere, -1], [nowhere, -5, 0], [1, -6, nowhere]])
    inside = classes != nowhere
    found, plain = ask(session, classes), ask(session, np.where(inside, classes, 0))
    np.testing.assert_array_equal(found["explained_class"][~inside], -1)
    np.testing.assert_array_equal(found["explained_class"][inside], plain["explained_class"][inside])
    assert np.isnan(found["gradients"][~inside]).all()
    np.testing.assert_array_equal(found["gradients"][inside], plain["gradients"][inside])
    for output in ("logits", "activations"):
        np.testing.assert_array_equal(found[output], plain[output])


def test_nothing_in_range(session):
    found = ask(session, [[LOWEST], [HIGHEST], [CLASSES], [-CLASSES - 1]])
    np.testing.assert_array_equal(found["explained_class"], -1)
    assert np.isnan(found["gradients"]).all()


@pytest.mark.parametrize("batch", [1, 4])
def test_no_classes(session, batch):
    found = ask(session, np.zeros((batch, 0)), IMAGES[:batch])
    plain = ask(session, [0], IMAGES[:batch])
    assert found["gradients"].shape == (batch, 0, 3, 8, 8)
    assert found["explained_class"].shape == (batch, 0)
    for output in ("logits", "activations"):
        np.testing.assert_array_equal(found[output], plain[output])


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("classes", [1, 2, 9])
def test_other_numbers_than_at_export(session, batch, classes):
    wanted = np.arange(classes) % CLASSES
    found, whole = ask(session, wanted, IMAGES[:batch]), ask(session, wanted)
    assert found["gradients"].shape == (batch, classes, 3, 8, 8)
    np.testing.assert_allclose(found["gradients"], whole["gradients"][:batch], rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [0, 1, 3])
@pytest.mark.parametrize(("images", "rows"), [(3, 1), (1, 3), (3, 2), (4, 0)])
def test_unequal_batches(session, images, rows, classes):
    with pytest.raises((onnxruntime_errors.Fail, onnxruntime_errors.InvalidArgument)):
        ask(session, np.zeros((rows, classes)), IMAGES[:images])
