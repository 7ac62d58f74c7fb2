"""Every metric by hand, and against PyTorch and the grad-cam package."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.metrics import road as theirs
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import nn
from torchvision.models import mobilenet_v2

from onnxplain import Box, BoxesError, Explainer
from onnxplain.evaluation import Measured, Outcome, Plan, bootstrap, summarise
from onnxplain.faithfulness import Predict, blurred, confidence_drop, deletion, impute, insertion, road
from onnxplain.heatmap import heatmap
from onnxplain.localization import (
    Annotation,
    Region,
    assign,
    box_overlap,
    energy_in_boxes,
    intersection_over_union,
    pointing_game,
    read_boxes,
)
from onnxplain.preprocessing import preprocess
from onnxplain_export import export

REALWORLD = Path(__file__).resolve().parents[2] / "shared" / "realworld"
PHOTOGRAPHS = sorted((REALWORLD / "images").glob("*.*"))
SIZE = (24, 32)
INDEX = 4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU())
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 6)))
    with torch.no_grad():  # probabilities that change with the image
        for parameter in model.parameters():
            parameter *= 3
    return model.eval()


@pytest.fixture(scope="module")
def explainer(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    path = tmp_path_factory.mktemp("faithful") / "model.onnx"
    export(model, torch.zeros(1, 3, *SIZE), path, layer="3")
    return Explainer(path)


@pytest.fixture(scope="module")
def image() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(3, *SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def heat() -> NDArray[np.float32]:
    """A heatmap without two pixels alike."""
    smooth = heatmap([np.random.default_rng(4).random((5, 6), np.float32)], SIZE)
    return smooth + 1e-3 * np.random.default_rng(5).random(SIZE, np.float32)


def of_class(explainer: Explainer, index: int) -> Predict:
    network = explainer.network

    def predict(images: NDArray[np.float32]) -> NDArray[np.float64]:
        probabilities = network.probabilities(network.predict(images))
        assert probabilities is not None
        return probabilities[:, index]

    return predict


def mean(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """A classifier whose probability is the image's mean."""
    return images.mean(axis=(1, 2, 3))


def torch_area(
    model: nn.Module,
    start: torch.Tensor,
    end: torch.Tensor,
    heat: NDArray[np.float32],
    index: int,
    count: int,
) -> float:
    """The metric as its definition says it: one masked image for each share, and PyTorch's trapezoid."""
    ranks = torch.empty(heat.size, dtype=torch.long)
    ranks[torch.argsort(torch.from_numpy(heat).flatten(), descending=True, stable=True)] = torch.arange(
        heat.size
    )
    ranks = ranks.reshape(heat.shape)
    steps = [torch.where(ranks < k * heat.size // count, end, start) for k in range(count + 1)]
    with torch.no_grad():
        scores = torch.cat([torch.softmax(model(some), 1) for some in torch.stack(steps).split(32)])[:, index]
    return float(torch.trapezoid(scores.double(), dx=1 / count))


def torch_blurred(image: NDArray[np.float32]) -> torch.Tensor:
    places = torch.arange(-5.0, 6.0, dtype=torch.float64)
    line = torch.exp(-(places**2) / (2 * 5**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)
    padded = nn.functional.pad(torch.from_numpy(image).double()[None], (5,) * 4, mode="reflect")
    return nn.functional.conv2d(padded, kernel, groups=3)[0].float()


def assert_areas_are_those_of_torch(
    explainer: Explainer,
    model: nn.Module,
    image: NDArray[np.float32],
    heat: NDArray[np.float32],
    index: int,
    steps: int = 100,
) -> None:
    predict, tensor = of_class(explainer, index), torch.from_numpy(image)
    expected = torch_area(model, tensor, torch.zeros_like(tensor), heat, index, steps)
    assert deletion(predict, image, heat, steps=steps) == pytest.approx(expected, abs=1e-3)
    expected = torch_area(model, torch_blurred(image), tensor, heat, index, steps)
    assert insertion(predict, image, heat, steps=steps) == pytest.approx(expected, abs=1e-3)


def test_deletion_and_insertion_are_those_of_torch(model, explainer, image, heat):
    assert_areas_are_those_of_torch(explainer, model, image, heat, INDEX)
    assert_areas_are_those_of_torch(explainer, model, image, np.maximum(heat - 0.5, 0), INDEX)  # with ties


@pytest.mark.skipif(not PHOTOGRAPHS, reason="the photographs of ../shared are not here")
@pytest.mark.slow
def test_deletion_and_insertion_of_a_trained_network(tmp_path):
    network = mobilenet_v2()
    network.load_state_dict(torch.load(REALWORLD / "mobilenet_v2_imagenet.pth", weights_only=True))
    network.eval()
    export(network, torch.zeros(1, 3, 224, 224), tmp_path / "m.onnx")
    explainer = Explainer(tmp_path / "m.onnx")
    for photograph in PHOTOGRAPHS[5:20:10]:
        explanation = explainer.explain(photograph)
        image = preprocess(explanation.image, explainer.manifest.input)[0]
        heat = heatmap(explanation.cams, (224, 224))
        assert_areas_are_those_of_torch(explainer, network, image, heat, explanation.index, steps=20)


def test_deletion_and_insertion_by_hand():
    """Pixels of 4, 3, 2 and 1 in the order of the heat: the mean is 2.5, 1.5, 0.75, 0.25 and 0."""
    image = np.array([[[1, 2], [3, 4]]], np.float32)
    heat = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    expected = (2.5 / 2 + 1.5 + 0.75 + 0.25) / 4
    assert deletion(mean, image, heat, steps=4, batch=2) == pytest.approx(expected)
    assert deletion(mean, image, heat, steps=2) == pytest.approx((2.5 / 2 + 0.75) / 2)
    from_blurred = blurred(image)[0]
    scores = [from_blurred.mean()]
    for place in ((1, 1), (1, 0), (0, 1), (0, 0)):
        from_blurred[place] = image[0][place]
        scores.append(from_blurred.mean())
    expected = sum((a + b) / 2 for a, b in pairwise(scores)) / 4
    assert insertion(mean, image, heat, steps=4) == pytest.approx(expected)


def test_equally_hot_pixels_are_taken_in_reading_order():
    image = np.array([[[8, 4], [2, 1]]], np.float32)
    expected = (15 / 2 + 7 + 3 + 1) / 4 / 4
    assert deletion(mean, image, np.zeros((2, 2), np.float32), steps=4) == pytest.approx(expected)


def test_blur_is_a_gaussian(image):
    np.testing.assert_allclose(blurred(image), torch_blurred(image).numpy(), atol=1e-5)
    constant = np.full((2, 15, 9), 3, np.float32)
    np.testing.assert_allclose(blurred(constant), constant, rtol=1e-5)


def test_few_predictions_at_once(image, heat):
    sizes = []

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes.append(len(images))
        return mean(images)

    assert deletion(predict, image, heat, batch=16) == deletion(mean, image, heat, batch=101)
    assert sizes == [16] * 6 + [5]
    sizes.clear()
    road(predict, image, heat, batch=4)
    assert sizes == [4] * 4 + [2]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ([4, 0, 0, 0], (0.0, 0.0)),  # what counts is hot
        ([2, 2, 0, 0], (0.5, 0.0)),
        ([2, -2, 4, 0], (0.5, 0.0)),
        ([4, -2, 0, 0], (0.0, 1.0)),
        ([0, 0, 0, 0], (0.0, 0.0)),  # nothing to lose
    ],
)
def test_confidence_by_hand(pixels, expected):
    heat = np.array([[1, 0], [0, 0]], np.float32)
    image = np.array(pixels, np.float32).reshape(1, 2, 2)
    assert confidence_drop(mean, image, heat) == pytest.approx(expected)


def test_imputation_by_hand():
    """The middle of three, of a row of three whose last two are missing, and of nothing."""
    generator = np.random.default_rng(0)

    def fill(row: list[float], missing: list[bool]) -> list[float]:
        found = impute(np.array([[row]], np.float32), np.array([missing]), noise=0, generator=generator)
        return found.ravel().tolist()

    assert fill([1, 9, 4], [False, True, False]) == pytest.approx([1, 2.5, 4])
    assert fill([1, 9, 9], [False, True, True]) == pytest.approx([1, 1, 1])
    assert fill([7, 9, 9, 1], [False, True, True, False]) == pytest.approx([7, 5, 3, 1])
    assert fill([7, 9], [True, True]) == [0, 0]
    assert fill([7, 9], [False, False]) == [7, 9]
    # Of eight neighbours those at the edges weigh twice as much.
    image = np.array([[[1, 0, 1], [0, 9, 0], [1, 0, 1]]], np.float32)
    middle = np.zeros((3, 3), np.bool_)
    middle[1, 1] = True
    assert impute(image, middle, noise=0, generator=generator)[0, 1, 1] == pytest.approx(4 / 12)


def test_imputation_is_noisy(image):
    missing = np.random.default_rng(3).random(SIZE) < 0.5
    exact, noisy, again, other = (
        impute(image, missing, noise=noise, generator=np.random.default_rng(seed))
        for noise, seed in ((0, 1), (0.01, 1), (0.01, 1), (0.01, 2))
    )
    np.testing.assert_array_equal(noisy, again)
    assert not np.array_equal(noisy, other)
    np.testing.assert_array_equal(noisy[:, ~missing], image[:, ~missing])
    assert (noisy - exact)[:, missing].std() == pytest.approx(0.01, rel=0.1)


# Their code transposes a tensor by numpy's function.
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
def test_road_is_that_of_the_grad_cam_package(model, explainer, image, heat, monkeypatch):
    monkeypatch.setattr(theirs.NoisyLinearImputer.__init__, "__defaults__", (0, theirs.neighbors_weights))
    target = ClassifierOutputSoftmaxTarget(INDEX)
    expected = theirs.ROADCombined()(torch.from_numpy(image)[None], heat[None], [target], model)[0]
    assert abs(expected) > 1e-3
    assert road(of_class(explainer, INDEX), image, heat, noise=0) == pytest.approx(expected, abs=1e-5)
    assert road(of_class(explainer, INDEX), image, heat) == pytest.approx(expected, abs=0.02)


def test_road_of_a_map_that_says_nothing(explainer, image):
    """Half of it and more is 0: nothing is taken away twice, and nothing is not a number."""
    blank = np.zeros(SIZE, np.float32)
    assert road(of_class(explainer, INDEX), image, blank, noise=0) == pytest.approx(0, abs=1e-12)
    one = blank.copy()
    one[3, 4] = 1
    assert math.isfinite(road(of_class(explainer, INDEX), image, one))


def test_pointing_game_by_hand():
    heat = np.zeros((4, 6), np.float32)
    box = Region(1, 1, 3, 3)
    assert pointing_game(heat, [box]) == 0  # nothing is hot
    heat[2, 2] = 1
    assert pointing_game(heat, [box]) == 1
    assert pointing_game(heat, [Region(3, 0, 6, 4)]) == 0
    assert pointing_game(heat, [Region(3, 0, 6, 4), box]) == 1
    assert pointing_game(heat, [Region(4, 0, 6, 4)], tolerance=1) == 0
    assert pointing_game(heat, [Region(4, 0, 6, 4)], tolerance=1.5) == 1


def test_energy_by_hand():
    heat = np.array([[1, 2, 3], [4, 0, 0]], np.float32)
    assert energy_in_boxes(heat, [Region(0, 0, 1, 2)]) == pytest.approx(0.5)
    assert energy_in_boxes(heat, [Region(0.4, 0, 1.4, 1)]) == pytest.approx(0.1)
    assert energy_in_boxes(heat, [Region(0, 0, 2, 1), Region(1, 0, 3, 1)]) == pytest.approx(0.6)
    assert energy_in_boxes(heat, [Region(-5, -5, 9, 9)]) == 1
    assert energy_in_boxes(np.zeros((2, 2), np.float32), [Region(0, 0, 2, 2)]) == 0


def test_box_overlap_by_hand():
    assert intersection_over_union(Region(0, 0, 2, 2), Region(1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert intersection_over_union(Region(0, 0, 1, 1), Region(2, 2, 3, 3)) == 0
    found = [Box(0, 0, 2, 2), Box(5, 5, 6, 6)]
    assert box_overlap(found, [Region(5, 5, 6, 6)]) == 0  # the largest region's box counts alone
    assert box_overlap(found, [Region(5, 5, 6, 6), Region(0, 0, 2, 1)]) == pytest.approx(0.5)
    assert box_overlap([], [Region(0, 0, 1, 1)]) == 0


def test_bootstrap_of_a_known_case():
    """Of normal values the interval is the mean and 1.96 standard errors to each side."""
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap(values, seed=1)
    error = values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error
    )
    assert bootstrap(values, seed=1) == found
    assert bootstrap(values, seed=2) != found
    assert bootstrap(np.full(9, 3.0)) == type(found)(3.0, 3.0, 3.0)
    assert bootstrap(np.array([3.0])) == type(found)(3.0, None, None)


def test_summaries_are_paired():
    """One method is better on every picture by 0.1, far less than pictures differ; one by no telling."""
    rng = np.random.default_rng(0)
    outcomes = []
    for number, base in enumerate(rng.random(30)):
        scores = {"random": base, "gradcam": base - 0.1, "eigencam": base + rng.normal(), "rise": base + 0.1}
        outcomes.append(
            Outcome(
                number,
                "",
                (Measured(0, None, {name: {"deletion": value} for name, value in scores.items()}),),
            )
        )
    found = summarise(outcomes, Plan(("gradcam", "eigencam", "rise"), ("deletion", "iou")))
    by_method = {one.method: one for one in found}
    assert len(found) == 4  # no picture has boxes
    assert found[0].value.mean <= found[-1].value.mean
    assert {name: one.verdict for name, one in by_method.items()} == {
        "gradcam": "better",
        "random": "control",
        "eigencam": "no telling",
        "rise": "worse",
    }
    difference = by_method["gradcam"].difference
    assert difference is not None
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-0.1, -0.1, -0.1))
    value = by_method["gradcam"].value
    assert value.low is not None
    assert value.low < value.mean - 0.05


CSV = "file,x0,y0,x1,y1,class\na.jpg,1,2,3.5,4,tabby\na.jpg,0,0,1,1,7\nsub/b.jpg,0,0,1,1,\n"
COCO = """{"images": [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "sub/b.jpg"}],
"categories": [{"id": 1, "name": "tabby"}],
"annotations": [{"image_id": 5, "category_id": 1, "bbox": [1, 2, 2.5, 2]}]}"""


def test_boxes_of_csv(tmp_path):
    (tmp_path / "b.csv").write_text(CSV, encoding="utf-8-sig")  # as spreadsheets write it
    assert read_boxes(tmp_path / "b.csv") == [
        Annotation("a.jpg", Region(1, 2, 3.5, 4), "tabby"),
        Annotation("a.jpg", Region(0, 0, 1, 1), 7),
        Annotation("sub/b.jpg", Region(0, 0, 1, 1), None),
    ]


def test_boxes_of_coco(tmp_path):
    (tmp_path / "b.json").write_text(COCO)
    assert read_boxes(tmp_path / "b.json") == [Annotation("a.jpg", Region(1, 2, 3.5, 4), "tabby")]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("b.csv", "", "no column file"),
        ("b.csv", "file,x0,y0,x1\n", "no column y1"),
        ("b.csv", "file,x0,y0,x1,y1\n", "has no boxes"),
        ("b.csv", "file,x0,y0,x1,y1\na.jpg,1,2,3\n", "line 2 has not as many cells"),
        ("b.csv", "file,x0,y0,x1,y1\na.jpg,1,2,3,4,5\n", "line 2 has not as many cells"),
        ("b.csv", "file,x0,y0,x1,y1\n,1,2,3,4\n", "names no file"),
        ("b.csv", "file,x0,y0,x1,y1\na.jpg,1,2,x,4\n", "line 2 has 'x' where a number belongs"),
        ("b.csv", "file,x0,y0,x1,y1\na.jpg,1,2,nan,4\n", "'nan' where a number"),
        ("b.csv", "file,x0,y0,x1,y1\na.jpg,1,2,1e999,4\n", "where a number"),
        ("b.csv", "file,x0,y0,x1,y1\na.jpg,3,2,1,4\n", "line 2 is an empty box"),
        ("b.csv", 'file,x0,y0,x1,y1\n"a.jpg,1,2,3,4\n', "is no CSV"),
        ("b.csv", "file,x0,y0,x1,y1\n" + "a" * 200_000 + ",1,2,3,4\n", "is no CSV"),
        ("b.json", "{", "is no JSON"),
        ("b.json", "[" * 100_000, "is no JSON"),
        ("b.json", "[]", "an object with images and annotations"),
        ("b.json", "{}", "images is a list of objects"),
        ("b.json", '{"images": [3]}', "images is a list of objects"),
        ("b.json", '{"images": [{"id": [], "file_name": "a"}]}', "images[0] has no id and file_name"),
        ("b.json", '{"images": []}', "annotations is a list"),
        ("b.json", '{"images": [], "annotations": []}', "has no boxes"),
        ("b.json", COCO.replace('"image_id": 5', '"image_id": 9'), "annotations[0].image_id is none"),
        ("b.json", COCO.replace('"image_id": 5', '"image_id": {}'), "annotations[0].image_id is none"),
        ("b.json", COCO.replace('"category_id": 1', '"category_id": 3'), "category_id is none"),
        ("b.json", COCO.replace("[1, 2, 2.5, 2]", "[1, 2, 3]"), "bbox is x, y, width and height"),
        ("b.json", COCO.replace("[1, 2, 2.5, 2]", "[1, 2, true, 3]"), "where a number belongs"),
        ("b.json", COCO.replace("[1, 2, 2.5, 2]", "[1, 2, NaN, 3]"), "where a number belongs"),
        ("b.json", COCO.replace("[1, 2, 2.5, 2]", f"[1, 2, 1{'0' * 400}, 3]"), "where a number belongs"),
        ("b.json", COCO.replace("[1, 2, 2.5, 2]", f"[1, 2, 1{'0' * 9000}, 3]"), "is no JSON"),
        ("b.json", COCO.replace("[1, 2, 2.5, 2]", "[1, 2, 0, 3]"), "is an empty box"),
    ],
)
def test_broken_boxes(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(BoxesError) as caught:
        read_boxes(tmp_path / name)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_boxes_that_cannot_be_read(tmp_path):
    with pytest.raises(BoxesError, match="can't read"):
        read_boxes(tmp_path / "missing.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BoxesError, match="not UTF-8"):
        read_boxes(tmp_path / "b.csv")


def test_boxes_find_their_pictures():
    pictures = [Path("photos/a.jpg"), Path("photos/sub/b.jpg"), Path("photos/other/b.jpg")]
    region = Region(0, 0, 1, 1)
    a, b, again = (Annotation(file, region, None) for file in ("a.jpg", "sub/b.jpg", "./a.jpg"))
    assert assign([a, b, again], pictures) == {0: [a, again], 1: [b]}
    with pytest.raises(BoxesError, match=r"boxes for b\.jpg, which names 2 of the pictures"):
        assign([Annotation("b.jpg", region, None)], pictures)
    for stranger in ("c.jpg", "../a.jpg", "/etc/passwd", "", "hotos/a.jpg"):
        with pytest.raises(BoxesError, match="not among the pictures"):
            assign([Annotation(stranger, region, None)], pictures)
