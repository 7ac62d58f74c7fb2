"""The reference networks: their data, their training, their weights, and what needs no torch."""

import itertools
import subprocess
import sys
from importlib.resources import as_file
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.progress import Progress
from sklearn.datasets import load_digits, load_sample_images

from onnxplain import Explainer, Explanation
from onnxplain.errors import ModelError
from onnxplain.images import Picture
from onnxplain.localization import Region, intersection_over_union
from onnxplain.preprocessing import View, preprocess
from onnxplain_models import (
    LABELS,
    METHODS,
    NETWORKS,
    PREPROCESSING,
    TARGET_LAYERS,
    explainer_file,
    networks,
    samples,
    scenes,
    weights_file,
)
from onnxplain_models import train as training
from onnxplain_models.evaluate import evaluate
from onnxplain_models.make_samples import write_samples
from onnxplain_models.scenes import Scenes, digits, make_scenes, photographs

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def test_scenes():
    return make_scenes("test", 300)


@pytest.fixture
def no_fragments(monkeypatch):
    monkeypatch.setattr(scenes, "_free_corner", lambda *_: None)


# The data


def test_every_digit_is_in_exactly_one_split():
    in_split = {name: {digit.tobytes() for digit in digits(name).images} for name in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert in_split[one].isdisjoint(in_split[other])
    everything = {digit.tobytes() for digit in (load_digits().images / 16).astype(np.float32)}
    assert set.union(*in_split.values()) == everything
    assert all(np.bincount(digits(name).labels, minlength=10).min() >= 10 for name in SPLITS)


def test_no_stretch_of_photograph_is_in_two_splits():
    for index, photograph in enumerate(load_sample_images().images):
        marked = np.zeros(photograph.shape[1], int)
        for name in SPLITS:
            part = photographs(name)[index]
            width = part.shape[1]
            starts = [x for x in range(640 - width + 1) if np.array_equal(photograph[:, x : x + width], part)]
            assert len(starts) == 1
            marked[starts[0] : starts[0] + width] += 1
        assert marked.max() == 1


def test_a_scene_depends_on_its_number_seed_and_split_alone():
    whole, tail = make_scenes("test", 6), make_scenes("test", 2, start=4)
    np.testing.assert_array_equal(whole.images[4:], tail.images)
    np.testing.assert_array_equal(whole.boxes[4:], tail.boxes)
    np.testing.assert_array_equal(whole.labels[4:], tail.labels)
    assert not np.array_equal(whole.images, make_scenes("test", 6, seed=1).images)
    assert not np.array_equal(whole.images, make_scenes("train", 6).images)


def test_shapes_and_ranges(test_scenes):
    count = len(test_scenes.labels)
    assert test_scenes.images.shape == (count, 96, 96, 3)
    assert test_scenes.images.dtype == np.uint8
    assert set(test_scenes.labels) == set(range(10))
    x0, y0, x1, y1 = test_scenes.boxes.T
    assert min(x0.min(), y0.min()) >= 0
    assert max(x1.max(), y1.max()) <= 96
    assert (y1 - y0 >= scenes.SMALLEST_DIGIT).all()
    assert (x1 > x0).all()


@pytest.mark.usefixtures("no_fragments")
def test_the_box_is_that_of_the_ink(monkeypatch):
    monkeypatch.setattr(scenes, "_background", lambda *_: np.zeros((96, 96, 3), np.float32))
    made = make_scenes("test", 40)
    for image, box in zip(made.images, made.boxes, strict=True):
        ink = image.max(axis=2)
        rows, columns = np.nonzero(ink > ink.max() / 2)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(tight, box, atol=1)


def test_fragments_are_there_and_leave_the_digit_alone(monkeypatch):
    fragmented = make_scenes("test", 40)
    monkeypatch.setattr(scenes, "_free_corner", lambda *_: None)
    alone = make_scenes("test", 40)
    np.testing.assert_array_equal(fragmented.boxes, alone.boxes)
    for one, other, (x0, y0, x1, y1) in zip(fragmented.images, alone.images, alone.boxes, strict=True):
        np.testing.assert_array_equal(one[y0:y1, x0:x1], other[y0:y1, x0:x1])
        assert not np.array_equal(one, other)


def test_any_fragment_is_smaller_than_any_digit():
    rng = np.random.default_rng(0)
    images = digits("test").images
    largest = max(max(scenes._fragment(images[rng.integers(len(images))], rng).shape) for _ in range(200))
    assert largest <= scenes.LARGEST_FRAGMENT < scenes.SMALLEST_DIGIT


# The training


def test_training_is_repeatable_and_vgg_cam_starts_from_the_features_of_vgg_mlp(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "BATCH", 8)
    monkeypatch.setattr(
        training, "RECIPES", {name: training.Recipe(steps=3, learning_rate=1e-3) for name in NETWORKS}
    )
    made = make_scenes("train", 16)
    first, second = (training.train("vgg_mlp", made, tmp_path, Progress(disable=True)) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name

    training.save(first, tmp_path / "vgg_mlp.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["vgg_mlp.safetensors"]
    monkeypatch.setattr(training, "RECIPES", {"vgg_cam": training.Recipe(steps=2, learning_rate=0.0)})
    unmoved = training.train("vgg_cam", made, tmp_path, Progress(disable=True))
    for name, value in first.features.named_parameters():
        assert torch.equal(value, unmoved.features.get_parameter(name)), name


# The networks


@pytest.mark.parametrize("name", NETWORKS)
def test_accuracy_on_test_scenes(name, test_scenes):
    network = getattr(networks, name)()
    assert not network.training
    with torch.inference_mode():
        answers = network(training.normalise(test_scenes.images)).argmax(dim=1).numpy()
    assert (answers == test_scenes.labels).mean() >= 0.97


@pytest.mark.parametrize(("name", "mean_iou"), [("nin", 0.65), ("vgg_mlp", 0.45), ("vgg_cam", 0.67)])
def test_the_shipped_explainer_finds_the_digit(name, mean_iou, test_scenes):
    with as_file(explainer_file(name)) as path:
        explainer = Explainer(path)
    assert explainer.manifest.labels == LABELS
    assert explainer.manifest.input == PREPROCESSING
    scores = evaluate(explainer, METHODS[name], test_scenes)
    assert scores.accuracy >= 0.97
    assert scores.peak_in_box >= 0.98
    assert scores.mean_iou >= mean_iou


@pytest.mark.parametrize("name", NETWORKS)
def test_files_are_small(name):
    assert len(weights_file(name).read_bytes()) < 3_000_000
    assert len(explainer_file(name).read_bytes()) < 3_000_000


@pytest.mark.parametrize("name", NETWORKS)
def test_target_layer_is_a_map_of_12_by_12(name):
    network = networks.untrained(name).eval()
    shapes = []
    network.get_submodule(TARGET_LAYERS[name]).register_forward_hook(
        lambda *call: shapes.append(call[2].shape)
    )
    with torch.inference_mode():
        logits = network(torch.zeros(2, 3, 96, 96))
    assert logits.shape == (2, 10)
    assert shapes == [(2, 10 if name == "nin" else 96, 12, 12)]


def test_nin_has_no_linear_layer_and_vgg_cam_only_one():
    def count(name):
        return sum(isinstance(module, torch.nn.Linear) for module in networks.untrained(name).modules())

    assert (count("nin"), count("vgg_cam"), count("vgg_mlp")) == (0, 1, 2)


def test_unknown_network_is_refused():
    with pytest.raises(ModelError, match="choose one of nin, vgg_mlp, vgg_cam"):
        networks.load("alexnet")
    with pytest.raises(ModelError, match="choose one of"):
        networks.untrained("alexnet")


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "another network's"])
def test_bad_weights_are_one_clear_error(damage, tmp_path, monkeypatch):
    path = tmp_path / "nin.safetensors"
    whole = weights_file("nin").read_bytes()
    if damage != "missing":
        other = weights_file("vgg_cam").read_bytes()
        path.write_bytes({"empty": b"", "truncated": whole[:-100], "another network's": other}[damage])
    monkeypatch.setattr(networks, "weights_file", lambda name: path)
    with pytest.raises(ModelError, match="install onnxplain again") as caught:
        networks.load("nin")
    assert "\n" not in str(caught.value)


def test_training_and_runtime_normalise_alike(test_scenes):
    expected, _ = preprocess(test_scenes.images[0], PREPROCESSING)
    np.testing.assert_allclose(training.normalise(test_scenes.images[:1])[0], expected, atol=1e-6)


# What is known without torch


def test_the_package_imports_without_torch_or_the_data():
    code = (
        "import sys, onnxplain_models as models; models.samples(); models.explainer_file('nin');"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'sklearn', 'onnxplain_export'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_samples_are_test_scenes_and_can_be_made_again(tmp_path):
    write_samples(tmp_path)
    shipped = samples()
    assert len(shipped) >= 6
    assert len({sample.label for sample in shipped}) == len(shipped)
    for sample in shipped:
        assert sample.label in LABELS
        again = cv2.imread(str(tmp_path / f"{sample.name}.png"))
        picture = cv2.imdecode(np.frombuffer(sample.picture.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_allclose(
            picture.astype(int), again.astype(int), atol=1
        )  # another processor may round otherwise
        x0, y0, x1, y1 = sample.box
        assert 0 <= x0 < x1 <= 96
        assert 0 <= y0 < y1 <= 96
    written = Path(tmp_path / "samples.json").read_bytes()
    assert written == Path(str(shipped[0].picture)).with_name("samples.json").read_bytes()


# The evaluation


class DrawnExplainer:
    """Answers every picture with a given class and a map that is hot in one cell of a 12 x 12 map."""

    def __init__(self, answers, cells):
        self.answers, self.cells = iter(answers), iter(cells)

    def explain_batch(self, images, *, method):
        return [self._explanation(image, method) for image in images]

    def _explanation(self, image, method):
        cam = np.zeros((12, 12), np.float32)
        cell = next(self.cells)
        if cell is not None:
            cam[cell] = 1
        picture = Picture(image, (96, 96))
        return Explanation(
            next(self.answers), None, 1.0, None, method, ("features",), (cam,), picture, View(0, 0, 96, 96)
        )


def test_evaluation_counts_answers_peaks_and_boxes():
    made = Scenes(
        np.zeros((4, 96, 96, 3), np.uint8), np.array([3, 3, 5, 5]), np.array([[36, 36, 52, 52]] * 4, np.int64)
    )
    explainer = DrawnExplainer([3, 4, 5, 5], [(5, 5), (5, 5), (0, 11), None])
    scores = evaluate(explainer, "gradcam", made)
    assert (scores.accuracy, scores.peak_in_box) == (0.75, 0.5)
    # One hot cell covers pixels 40 to 48; bilinear, it is above 20 % on 38 to 50.
    assert scores.mean_iou == pytest.approx(2 * (12 * 12) / (16 * 16) / 4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),
        ((0, 0, 4, 4), (10, 10, 12, 12), 0.0),
    ],
)
def test_iou(a, b, expected):
    assert intersection_over_union(Region(*a), Region(*b)) == pytest.approx(expected)
    assert intersection_over_union(Region(*b), Region(*a)) == pytest.approx(expected)
