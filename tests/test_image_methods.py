"""Maps of the image itself, and by many predictions: against PyTorch and the grad-cam package."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GuidedBackpropReLUModel, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from onnxplain import Explainer, MethodError
from onnxplain.heatmap import heatmap
from onnxplain.image_methods import IMAGE_METHODS
from onnxplain.manifest import Preprocessing
from onnxplain.perturbation import rise, rise_masks, scorecam
from onnxplain.pixel_maps import guided_gradcam, integrated_gradients, saliency, smoothgrad
from onnxplain.preprocessing import preprocess
from onnxplain_export import export

SIZE = (24, 32)
PICTURE = np.random.default_rng(1).integers(0, 256, (40, 52, 3), np.uint8)
INDEX = 4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU())
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 6)))
    return model.eval()


@pytest.fixture(scope="module")
def explainer(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    path = tmp_path_factory.mktemp("image") / "model.onnx"
    export(model, torch.zeros(1, 3, *SIZE), path, layer=["1", "3"], input_gradient=True, guided=True)
    return Explainer(path)


@pytest.fixture(scope="module")
def image(explainer: Explainer) -> NDArray[np.float32]:
    return preprocess(PICTURE, explainer.manifest.input)[0]


def gradient(model: nn.Module, image: NDArray[np.float32]) -> NDArray[np.float32]:
    given = torch.from_numpy(image)[None].requires_grad_()
    (found,) = torch.autograd.grad(model(given)[0, INDEX], given)
    return found[0].numpy()


@pytest.mark.parametrize("layer", ["1", "3"])
def test_scorecam_is_that_of_the_grad_cam_package(
    layer: str, model: nn.Module, explainer: Explainer, image: NDArray[np.float32]
) -> None:
    found = explainer.explain(PICTURE, INDEX, "scorecam", layer)
    assert found.layer == layer
    with ScoreCAM(model, [model[int(layer)]]) as theirs:
        theirs.get_target_width_height = lambda _: None
        expected = theirs(torch.from_numpy(image)[None], [ClassifierOutputTarget(INDEX)])[0]
    assert expected.max() > 0.99
    np.testing.assert_allclose(heatmap([found.cam], found.cam.shape), expected, rtol=0, atol=1e-4)


def test_scorecam_by_hand() -> None:
    """The masks are the channels themselves; the score is the sum of what they let through."""
    activations = np.array([[[0, 1], [1, 1]], [[4, 0], [0, 0]]], np.float32)
    image = np.array([[[1, 2], [3, 4]]], np.float32)
    done = []
    found = scorecam(
        lambda images: np.stack([images.sum(axis=(1, 2, 3)), -images.sum(axis=(1, 2, 3))], axis=1),
        image,
        activations,
        [0, 1],
        batch=1,
        progress=lambda *now: done.append(now),
    )
    a, b = np.exp(9) / (np.exp(9) + np.exp(1)), np.exp(1) / (np.exp(9) + np.exp(1))
    np.testing.assert_allclose(found, [[[4 * b, a], [a, a]], [[4 * a, b], [b, b]]], rtol=1e-5)
    assert done == [(1, 2), (2, 2)]


def test_rise_is_the_weighted_mean_of_its_masks(
    model: nn.Module, explainer: Explainer, image: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against PyTorch with the same masks."""
    masks = np.concatenate(list(rise_masks(SIZE, count=50, seed=3)))
    done = []

    def predict(images: NDArray[np.float32]) -> NDArray[np.float64]:
        probabilities = explainer.network.probabilities(explainer.network.predict(images))
        assert probabilities is not None
        return probabilities

    found = rise(
        predict, image, [INDEX, 0], count=50, seed=3, batch=7, progress=lambda *now: done.append(now)
    )
    with torch.no_grad():
        masked = torch.from_numpy(image) * torch.from_numpy(masks)[:, None]
        scores = torch.softmax(model(masked), dim=1)[:, [INDEX, 0]]
    expected = torch.einsum("nc,nhw->chw", scores, torch.from_numpy(masks)) / (50 * 0.5)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)
    assert done[-1] == (50, 50)
    assert len(done) == 8
    called = []
    monkeypatch.setattr(
        "onnxplain.perturbation.rise_masks", lambda *size, **rest: called.append(rest) or iter([masks])
    )
    explanation = explainer.explain(PICTURE, INDEX, "rise")
    assert called[0]["count"] == 4000
    assert explanation.layer == "image"
    np.testing.assert_allclose(explanation.cam, found[0] * 50 / 4000, rtol=0, atol=1e-6)


def test_rise_by_hand() -> None:
    """One mask that lets all through, and one that lets nothing."""
    image = np.ones((1, 2, 2), np.float32)
    found = rise(lambda images: images.sum(axis=(1, 2, 3))[:, None], image, [0], count=3, cells=1, keep=1.0)
    assert (found == 4).all()


def test_rise_by_hand_with_two_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.array([[[1, 0], [0, 0]], [[1, 1], [0, 1]]], np.float32)
    monkeypatch.setattr("onnxplain.perturbation.rise_masks", lambda size, **_: iter([masks]))
    image = np.array([[[1, 2], [3, 4]]], np.float32)
    # They let through 1 and 1 + 2 + 4; N E[M] = 2 * 0.5.
    found = rise(lambda images: images.sum(axis=(1, 2, 3))[:, None], image, [0], count=2)
    assert found.tolist() == [[[8, 7], [0, 7]]]


def test_rise_masks() -> None:
    masks = np.concatenate(list(rise_masks((30, 44), count=600, cells=5, keep=0.3, seed=1)))
    assert masks.shape == (600, 30, 44)
    assert masks.min() == 0
    assert masks.max() == 1
    np.testing.assert_allclose(masks.mean(axis=0), 0.3, atol=0.08)
    again = np.concatenate(list(rise_masks((30, 44), count=600, cells=5, keep=0.3, seed=1, batch=7)))
    np.testing.assert_array_equal(masks, again)
    assert not np.array_equal(
        masks[:50], np.concatenate(list(rise_masks((30, 44), count=50, cells=5, seed=2)))
    )


def test_saliency_and_guided_backpropagation(
    model: nn.Module, explainer: Explainer, image: NDArray[np.float32]
) -> None:
    expected = np.abs(gradient(model, image)).max(axis=0)
    found = explainer.explain(PICTURE, INDEX, "saliency").cam
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())
    theirs = GuidedBackpropReLUModel(copy.deepcopy(model), "cpu")(torch.from_numpy(image)[None], INDEX)
    guided = explainer.explain(PICTURE, INDEX, "guided_backprop").cam
    np.testing.assert_allclose(guided, np.abs(theirs).max(axis=-1), rtol=0, atol=1e-5 * guided.max())
    product = explainer.explain(PICTURE, INDEX, "guided_gradcam", "3")
    cam = explainer.explain(PICTURE, INDEX, layer="3").cam
    heat = heatmap([cam], SIZE, peaks=[cam.max()])
    np.testing.assert_allclose(product.cam, guided * heat, rtol=0, atol=1e-6 * guided.max())
    assert product.layer == "3"
    assert len(explainer.explain(PICTURE, INDEX, "guided_gradcam").cams) == 2


def test_smoothgrad(model: nn.Module, explainer: Explainer, image: NDArray[np.float32]) -> None:
    generator = np.random.default_rng(0)
    sigma = 0.15 * (image.max() - image.min())
    noisy = [image + sigma * generator.standard_normal(image.shape) for _ in range(25)]
    mean = np.mean([gradient(model, one.astype(np.float32)) for one in noisy], axis=0)
    expected = np.abs(mean).max(axis=0)
    found = explainer.explain(PICTURE, INDEX, "smoothgrad").cam
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.max())


def test_integrated_gradients(model: nn.Module, explainer: Explainer, image: NDArray[np.float32]) -> None:
    """Complete: the sum is what the class's logit gains over the baseline's."""
    found = explainer.explain(PICTURE, INDEX, "integrated_gradients").cam
    gradients = [gradient(model, ((i + 0.5) / 50 * image).astype(np.float32)) for i in range(50)]
    expected = (image * np.mean(gradients, axis=0)).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    with torch.no_grad():
        logits = model(torch.from_numpy(np.stack([image, np.zeros_like(image)])))[:, INDEX]
    assert found.sum() == pytest.approx(float(logits[0] - logits[1]), abs=0.02 * float(np.abs(found).sum()))


def test_by_hand() -> None:
    """S = x0 x1 + 3 x1 of two channels and one place: the gradients are x1 and x0 + 3."""

    def gradients(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([images[:, 1], images[:, 0] + 3], axis=1)[:, None]

    image = np.array([[[2.0]], [[-4.0]]], np.float32)
    assert saliency(gradients(image[None]))[0].tolist() == [[[5]]]
    # S(2, -4) - S(0, 0) = -8 - 12
    np.testing.assert_allclose(integrated_gradients(gradients, image, steps=7, batch=2), [[[-20]]], rtol=1e-6)
    # Of the mean of S at the noisy images the gradients are those at their mean.
    noise = np.random.default_rng(0).standard_normal((25, 2)).mean(axis=0) * 0.15 * 6
    expected = max(abs(-4 + noise[1]), abs(5 + noise[0]))
    np.testing.assert_allclose(smoothgrad(gradients, image), [[[expected]]], rtol=1e-5)


def test_a_linear_score_by_hand() -> None:
    """Of S = sum W X the gradients are W, whatever X is."""
    weights = np.array([[[1, -2], [0, 3]], [[-4, 1], [0, 2]]], np.float32)
    image = np.array([[[1, 1], [5, 2]], [[1, 3], [5, -1]]], np.float32)

    def gradients(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.broadcast_to(weights, (len(images), 1, *weights.shape))

    assert saliency(weights).tolist() == [[4, 2], [0, 3]]
    np.testing.assert_allclose(smoothgrad(gradients, image), [[[4, 2], [0, 3]]], rtol=1e-6)
    np.testing.assert_allclose(integrated_gradients(gradients, image), [[[-3, 1], [0, 4]]], rtol=1e-6)


def test_guided_gradcam_by_hand() -> None:
    guided = np.array([[[[1, -2], [0, 3]], [[-4, 1], [0, 2]]]], np.float32)
    cams = np.array([[[1, 2], [3, 4]]], np.float32)  # of their largest 1/4, 1/2, 3/4, 1
    assert guided_gradcam(guided, cams).tolist() == [[[1, 1], [0, 3]]]
    assert not guided_gradcam(guided, 0 * cams).any()


def test_guided_backpropagation_by_hand(tmp_path: Path) -> None:
    """S = sum_xy u ReLU(r - 1/2) + v ReLU(g - b - 1/2), at four pixels that switch the units differently."""
    u, v = [[1, -1], [2, 0.5]], [[3, 1], [-1, 2]]
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0, 0, 0], [0, 1, -1]])[..., None, None]
        model[0].bias[:] = -0.5
        model[3].weight[:] = torch.tensor([u, v]).flatten() * torch.tensor([[1.0], [-1]])
    spec = Preprocessing(3, 2, 2, resize=None, crop="none", mean=(0.0,) * 3, std=(1.0,) * 3)
    path = tmp_path / "model.onnx"
    export(
        model, torch.zeros(1, 3, 2, 2), path, layer="1", preprocessing=spec, input_gradient=True, guided=True
    )
    # Both units are on; the first; the second; the first.
    picture = 255 * np.array([[[1, 1, 0], [1, 0, 1]], [[0, 1, 0], [1, 0, 0]]], np.uint8)
    explainer = Explainer(path)
    expected = {
        "saliency": [[3, 1], [1, 0.5]],  # of (1, 3, -3), (-1, 0, 0), (0, -1, 1) and (0.5, 0, 0)
        "guided_backprop": [[3, 0], [0, 0.5]],  # what is negative above a ReLU doesn't pass
        # alpha = (2.5, 5) / 4, the map 0.9375, 0.3125, 0.625, 0.3125, of its largest 1, 1/3, 2/3, 1/3
        "guided_gradcam": [[3, 0], [0, 0.5 / 3]],
    }
    for method, map_ in expected.items():
        np.testing.assert_allclose(explainer.explain(picture, 0, method).cam, map_, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_several_classes_and_pictures(
    method: str, explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "onnxplain.perturbation.rise_masks", lambda size, **_: iter([np.ones((4000, *size), np.float32)[:3]])
    )
    several = explainer.explain_classes(PICTURE, [INDEX, -1, 0], method=method)
    for one in several:
        alone = explainer.explain(PICTURE, one.index, method)
        np.testing.assert_allclose(one.cam, alone.cam, rtol=0, atol=1e-5 * (np.abs(alone.cam).max() + 1e-9))
        assert one.logit == pytest.approx(alone.logit, rel=1e-5)
    batch = explainer.explain_batch([PICTURE, PICTURE[::-1]], [INDEX, 0], method)
    np.testing.assert_allclose(batch[0].cam, several[0].cam, rtol=0, atol=1e-5 * np.abs(several[0].cam).max())
    assert batch[0].heatmap.shape == PICTURE.shape[:2]


def test_what_the_file_lacks(model: nn.Module, explainer: Explainer, tmp_path: Path) -> None:
    path, pixels = tmp_path / "model.onnx", tmp_path / "pixels.onnx"
    export(model, torch.zeros(1, 3, *SIZE), path, layer="3")
    export(model, torch.zeros(1, 3, *SIZE), pixels, layer="3", pixels=True)
    for method, option in (("smoothgrad", "--input-gradient"), ("guided_gradcam", "--guided")):
        with pytest.raises(MethodError, match=f"{method} needs the output .*; export it with {option}"):
            Explainer(path).explain(PICTURE, method=method)
    for method in ("scorecam", "rise"):
        with pytest.raises(MethodError, match=f"{method} works on .* without --pixels"):
            Explainer(pixels).explain(PICTURE, method=method)
    with pytest.raises(MethodError, match="eigen_smooth is for sums"):
        explainer.explain(PICTURE, method="rise", eigen_smooth=True)
    with pytest.raises(MethodError, match=r"unknown method 'lime'; there are cam, .*, scorecam, rise"):
        explainer.explain(PICTURE, method="lime")
